"""A factorised output in a trainer that knows nothing of this package: one more layer, and one line changes.

Run: python examples/factorised_in_your_trainer.py
"""

import numpy as np
import torch

from codeprior import DCPE
from codeprior.losses import cross_entropy_nats, factorised_log_probs, factorised_nats

codebook = np.random.default_rng(0).standard_normal((512, 8))  # yours: codeprior.Codebook.load("vq_ds16_c2i.pt").space
token_to_cluster = torch.from_numpy(DCPE(n_clusters=64).fit(codebook).labels_)  # or CodebookPrior.load(...)

torch.manual_seed(0)
trunk = torch.nn.Embedding(512, 64)  # yours: tokens in, states out
tokens_out, clusters_out = torch.nn.Linear(64, 512, bias=False), torch.nn.Linear(64, 64, bias=False)
parameters = [*trunk.parameters(), *tokens_out.parameters(), *clusters_out.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=1e-2)
tokens = torch.randint(512, (8, 65))
for step in range(20):
    states, targets = trunk(tokens[:, :-1]), tokens[:, 1:]
    # loss = cross_entropy(tokens_out(states).flatten(0, 1), targets.flatten())  # as it was
    loss = factorised_nats(states, tokens_out.weight, clusters_out.weight, targets, token_to_cluster)  # no (..., 512)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0:
        print(f"step {step}: {loss.item():.3f} nats per token")

live = torch.ones(512, dtype=torch.bool)  # or which codes are in use
log_probs = factorised_log_probs(tokens_out(states), clusters_out(states), token_to_cluster, live)  # to sample from
print(f"the same from all logits: {cross_entropy_nats(log_probs, targets).item():.3f} nats per token")
