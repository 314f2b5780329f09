"""Losses of a transformer over codes: functions of tensors, in nats.

Shapes: B batch, T tokens, V vocabulary, G clusters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log p(target): logits (B, T, V) float32, targets (B, T) int64; a scalar, nats per token."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def token_nats(logits: Tensor, targets: Tensor, log_sizes: Tensor) -> Tensor:
    """Mean of -log p(token) under a model of clusters that picks a token of the predicted cluster uniformly.

    p(token) = p(cluster of the token) / size of the cluster, so the loss is the clusters' cross-entropy plus the mean
    log size of the target's cluster: comparable between vocabularies, which the cross-entropy alone is not (fewer
    clusters are easier to predict). Its gradient is that of `cross_entropy_nats`.

    Parameters
    ----------
    logits : Tensor of shape (B, T, G), float32
    targets : Tensor of shape (B, T), int64
        The cluster of each token.
    log_sizes : Tensor of shape (G,), float32
        Logarithm of the number of tokens that may be picked from each cluster; zeros where clusters are tokens.

    Returns
    -------
    nats : scalar Tensor
        Nats per token.
    """
    return cross_entropy_nats(logits, targets) + log_sizes[targets].mean()
