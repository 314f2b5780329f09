"""What a transformer is trained to predict, as one module: its forward pass is the loss.

- token: the next token (LlamaGen).
- cluster: the next token's cluster, in place of the token (DCPE); a token of it is picked when decoding.
- iar: the next token, and its cluster as far as the model's own tokens say it (IAR); decoding needs no prior.

Shapes: B batch, T tokens, V codebook, G clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from codeprior.errors import InputError
from codeprior.losses import ClusterForm, cross_entropy_nats, iar_nats, projected, token_nats
from codeprior.model import Transformer
from codeprior.prior import CodebookPrior

ObjectiveName = Literal["token", "cluster", "iar"]

# The mean-logit loss is skewed where the largest cluster has this many times the mean number of tokens.
SKEWED = 4


def resolve_objective(name: ObjectiveName | None, prior: CodebookPrior | None) -> ObjectiveName:
    """The objective of that name; by default "cluster" where a prior is given, else "token".

    Raises
    ------
    InputError
        If it needs a prior and there is none, or has no use for the one given.
    """
    name = name or ("token" if prior is None else "cluster")
    if name == "token" and prior is not None:
        raise InputError(
            "objective token has no use for a prior; leave out --prior, or give --objective cluster or iar"
        )
    if name != "token" and prior is None:
        raise InputError(f"objective {name} needs a prior: give --prior, as `codeprior extract` makes it")
    return name


class Objective(nn.Module):
    """A transformer with its loss; `forward(classes, tokens)` is what training minimises.

    Parameters
    ----------
    model : Transformer
        Over the clusters of the prior for "cluster", else over the V tokens.
    name : {"token", "cluster", "iar"}
    codebook_size : int
    prior : CodebookPrior, optional
        For "cluster" and "iar".
    iar_weight, iar_form
        See `losses.iar_nats`.
    """

    token_to_target: Tensor
    log_sizes: Tensor
    token_to_cluster: Tensor

    def __init__(
        self,
        model: Transformer,
        name: ObjectiveName,
        codebook_size: int,
        prior: CodebookPrior | None = None,
        *,
        iar_weight: float = 1.0,
        iar_form: ClusterForm = "logsumexp",
    ) -> None:
        super().__init__()
        self.model = model
        targets, log_sizes = np.arange(codebook_size), np.zeros(codebook_size, dtype=np.float32)
        if name == "cluster" and prior is not None:
            offsets, _ = prior.members()
            targets, log_sizes = prior.token_to_cluster, np.log(np.diff(offsets)).astype(np.float32)
        self.loss = cross_entropy_nats
        if name == "iar" and prior is not None:
            token_to_cluster = torch.from_numpy(prior.token_to_cluster)
            self.register_buffer("token_to_cluster", token_to_cluster, persistent=False)
            self.loss = partial(self._iar, weight=iar_weight, form=iar_form)
        self.register_buffer("token_to_target", torch.from_numpy(targets), persistent=False)
        self.register_buffer("log_sizes", torch.from_numpy(log_sizes), persistent=False)

    def _iar(self, logits: Tensor, targets: Tensor, weight: float, form: ClusterForm) -> Tensor:
        return iar_nats(logits, targets, self.token_to_cluster, weight=weight, form=form)

    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        """The loss, nats per token, of classes (B,) and tokens (B, T); logits are never held all at once."""
        return self._mean_nats(self.loss, classes, tokens)

    def token_nats(self, classes: Tensor, tokens: Tensor) -> Tensor:
        """-log p(token), mean in nats: the same unit for every objective, whatever it minimises."""
        return self._mean_nats(partial(token_nats, log_sizes=self.log_sizes), classes, tokens)

    def _mean_nats(self, loss: Callable[[Tensor, Tensor], Tensor], classes: Tensor, tokens: Tensor) -> Tensor:
        targets = self.token_to_target[tokens]
        states = self.model.states(self.model.embed(classes, targets[:, :-1]))
        return projected(loss, states, self.model.output.weight, targets)


def skew_warning(name: str | None, form: ClusterForm, prior: CodebookPrior | None) -> str | None:
    """A warning if the mean-logit loss meets clusters of very different sizes; None if not.

    A token's gradient through its cluster's mean logit is (p(cluster) - 1) / size: in the largest cluster it is as many
    times weaker as that one is larger, whereas log-sum-exp gives each member its own share of the probability.
    """
    if name != "iar" or form != "mean" or prior is None or prior.sizes.max() < SKEWED * prior.sizes.mean():
        return None
    times = prior.sizes.max() / prior.sizes.mean()
    return (
        f"the largest cluster has {prior.sizes.max()} tokens, {times:.0f} times the mean: with --iar-form mean its "
        "tokens get a gradient as many times weaker; use logsumexp, or a prior made with --max-cluster-size"
    )
