"""IAR's cluster loss in a trainer that knows nothing of this package: one line changes.

Run: python examples/iar_in_your_trainer.py
"""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from codeprior import DCPE
from codeprior.losses import iar_nats

codebook = np.random.default_rng(0).standard_normal((512, 8))  # yours: codeprior.Codebook.load("vq_ds16_c2i.pt").space
token_to_cluster = torch.from_numpy(DCPE(n_clusters=64).fit(codebook).labels_)  # or CodebookPrior.load(...)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(512, 64), torch.nn.Linear(64, 512))  # yours: tokens in, logits out
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
tokens = torch.randint(512, (8, 65))
for step in range(20):
    logits, targets = model(tokens[:, :-1]), tokens[:, 1:]
    # loss = cross_entropy(logits.flatten(0, 1), targets.flatten())  # as it was
    loss = iar_nats(logits, targets, token_to_cluster)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0:
        plain = cross_entropy(logits.detach().flatten(0, 1), targets.flatten())
        print(f"step {step}: {loss.item():.3f} nats, {plain.item():.3f} of them the token's")
