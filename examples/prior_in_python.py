"""A prior in a few lines of Python: cluster a codebook, cut it anew, decode clusters to tokens.

Run: python examples/prior_in_python.py
"""

import numpy as np

from codeprior import DCPE, Codebook, CodebookPrior

codebook = Codebook(np.random.default_rng(0).standard_normal((2048, 8)), normalize=True)

dcpe = DCPE(n_clusters=1024).fit(codebook.space)
prior = CodebookPrior(dcpe.labels_, codebook.digest, method="dcpe", linkage=dcpe.linkage_)
print(f"{len(prior)} codes in {prior.n_clusters} clusters, the largest of {prior.sizes.max()} codes")

codes = np.random.default_rng(1).integers(len(codebook), size=(2, 256))  # two images of 16 x 16 tokens
clusters = prior.token_to_cluster[codes]  # what a generator is trained on
tokens = prior.pick_tokens(clusters, np.random.default_rng(2))  # what its predictions are decoded from
moved = np.linalg.norm(codebook.space[codes] - codebook.space[tokens], axis=-1).mean()
print(f"replacing each token within its cluster moves it by {moved:.3f} on average")

coarser = prior.cut(128)  # the same tree, fewer clusters
print(f"cut at {coarser.n_clusters}: the largest cluster has {coarser.sizes.max()} codes")
