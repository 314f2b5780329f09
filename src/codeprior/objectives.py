"""What a transformer is trained to predict, as one module: its forward pass is the loss.

- token: the next token (LlamaGen).
- cluster: the next token's cluster, in place of the token (DCPE); a token of it is picked when decoding.
- iar: the next token, and its cluster as far as the model's own tokens say it (IAR); decoding needs no prior.
- factorised: the next token's cluster, and the token within it, from one state; decoding needs no prior.
- refine: the tokens of an image whose clusters are given, all at once (CTF's second stage, after `cluster`).

Training knows none of them: it asks `build` for an objective and minimises what that gives.

Shapes: B batch, T tokens, V codebook, G clusters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from codeprior.codes import CodeStore
from codeprior.config import TrainConfig
from codeprior.errors import InputError
from codeprior.losses import cross_entropy_nats, factorised_nats, iar_nats, member_nats, projected, token_nats
from codeprior.model import Transformer, model_config
from codeprior.prior import CodebookPrior

ObjectiveName = Literal["token", "cluster", "iar", "factorised", "refine"]


def resolve_objective(name: ObjectiveName | None, prior: CodebookPrior | None) -> ObjectiveName:
    """The objective of that name; by default "cluster" where a prior is given, else "token".

    Raises
    ------
    InputError
        If it needs a prior and there is none, or has no use for the one given.
    """
    name = name or ("token" if prior is None else "cluster")
    if name == "token" and prior is not None:
        others = ", ".join(other for other in _KINDS if other != "token")
        raise InputError(f"objective token has no use for a prior; leave out --prior, or give --objective {others}")
    if name != "token" and prior is None:
        raise InputError(f"objective {name} needs a prior: give --prior, as `codeprior extract` makes it")
    return name


def build(config: TrainConfig, codes: CodeStore, prior: CodebookPrior | None) -> Objective:
    """The objective that the settings name, with a new transformer for these codes, on the CPU.

    Raises
    ------
    InputError
        If the objective and the prior do not fit together, or there is no such model.
    """
    kind = _KINDS[resolve_objective(config.objective, prior)]
    if kind.predicts_members and prior is not None and prior.usage is None:
        prior = with_usage(prior, codes.usage())
    architecture = model_config(
        config.model,
        n_layers=config.n_layers,
        n_classes=len(codes.class_names),
        grid=codes.grid,
        dropout=config.dropout,
        token_dropout=config.token_dropout,
        drop_path=config.drop_path,
        null_class=config.class_dropout > 0,
        positions=config.positions,
        qk_norm=config.qk_norm,
        **kind.vocabularies(codes.codebook_size, 0 if prior is None else prior.n_clusters),
    )
    model = Transformer(architecture, torch.Generator().manual_seed(config.seed))
    return kind(model, config, prior)


def with_usage(prior: CodebookPrior, usage: np.ndarray) -> CodebookPrior:
    """The prior with the training codes' usage (V,): what never occurs is never picked.

    A cluster that never occurs keeps all of its tokens: a model may still predict it, if hardly ever.
    """
    occurs = np.bincount(prior.token_to_cluster, weights=usage) > 0
    return replace(prior, usage=np.where(occurs[prior.token_to_cluster], usage, 1))


class Objective(nn.Module, ABC):
    """A transformer with its loss; `forward(classes, tokens)` is what training minimises.

    Parameters
    ----------
    model : Transformer
        With the vocabularies that `vocabularies` says.
    config : TrainConfig
    prior : CodebookPrior, optional
        None for "token" alone.
    """

    name: ClassVar[ObjectiveName]
    predicts_members: ClassVar[bool] = False
    """Whether a token is chosen among the live ones of a cluster, so that it must be known which those are."""
    needs_prior: ClassVar[bool] = False
    """Whether sampling needs the prior, so that it is kept with the checkpoint."""
    asks_device: bool = False
    """Whether the loss needs to know, on the way, what a GPU has found, so that its orders cannot be recorded."""
    loss_unit: str = "nats_per_token"
    """Unit of the loss, as it is logged."""
    unit: str = "nats_per_token"
    """Unit of `token_nats`."""

    def __init__(self, model: Transformer, config: TrainConfig, prior: CodebookPrior | None) -> None:
        super().__init__()
        self.model, self.prior, self.compiled = model, prior, False

    def compile_parts(self) -> None:
        """Let torch's compiler have each block, and the loss of logits, when they are first used."""
        for block in self.model.layers:
            block.compile()
        self.compiled = True

    @staticmethod
    def vocabularies(codebook_size: int, n_clusters: int) -> dict[str, Any]:
        """What `ModelConfig` has to know of the V codes and G clusters."""
        return {"vocab_size": codebook_size}

    @abstractmethod
    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        """The loss, nats per token, of classes (B,) and tokens (B, T); logits are never held all at once."""

    def token_nats(self, classes: Tensor, tokens: Tensor) -> Tensor:
        """-log p(token), mean in nats: one unit for whatever is minimised."""
        return self.forward(classes, tokens)

    @abstractmethod
    def initial_nats(self, usage: np.ndarray) -> float:
        """The loss of a new model, which prefers nothing, on tokens that occur as often as `usage` (V,) says."""

    def _nats(self, loss: Callable[[Tensor, Tensor], Tensor], classes: Tensor, targets: Tensor) -> Tensor:
        """The mean of a loss of logits and targets, which go in too."""
        states = self._states(classes, targets)
        return projected(loss, states, self.model.output.weight, targets, compiled=self.compiled)

    def _states(self, classes: Tensor, inputs: Tensor) -> Tensor:
        """What each of the inputs (B, T) is predicted from, (B, T, D): those before it."""
        return self.model.states(self.model.embed(classes, inputs[:, :-1]))


class TokenObjective(Objective):
    """-log p(token)."""

    name = "token"

    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        return self._nats(cross_entropy_nats, classes, tokens)

    def initial_nats(self, usage: np.ndarray) -> float:
        return float(np.log(len(usage)))


class PriorObjective(Objective):
    """What the objectives that need a prior share."""

    prior: CodebookPrior
    token_to_cluster: Tensor

    def __init__(self, model: Transformer, config: TrainConfig, prior: CodebookPrior) -> None:
        super().__init__(model, config, prior)
        self.register_buffer("token_to_cluster", torch.from_numpy(prior.token_to_cluster), persistent=False)

    def _size_nats(self, sizes: np.ndarray, usage: np.ndarray) -> float:
        """Mean log size of a token's cluster, of sizes (G,)."""
        return float(np.average(np.log(sizes)[self.prior.token_to_cluster], weights=usage))


class ClusterObjective(PriorObjective):
    """-log p(cluster), and the log of the number of tokens that one is then picked from: -log p(token).

    The second part has no gradient: it makes the loss comparable between vocabularies, which that of clusters alone is
    not (fewer are easier to predict).
    """

    name = "cluster"
    predicts_members = needs_prior = True
    log_sizes: Tensor

    def __init__(self, model: Transformer, config: TrainConfig, prior: CodebookPrior) -> None:
        super().__init__(model, config, prior)
        self.live_sizes = np.bincount(prior.token_to_cluster, weights=prior.live)
        self.register_buffer("log_sizes", torch.from_numpy(self.live_sizes).log().float(), persistent=False)

    @staticmethod
    def vocabularies(codebook_size: int, n_clusters: int) -> dict[str, Any]:
        return {"vocab_size": n_clusters}

    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        return self._nats(partial(token_nats, log_sizes=self.log_sizes), classes, self.token_to_cluster[tokens])

    def initial_nats(self, usage: np.ndarray) -> float:
        return float(np.log(len(self.live_sizes))) + self._size_nats(self.live_sizes, usage)


class IARObjective(PriorObjective):
    """-log p(token) - weight log p(cluster): more than the likelihood of tokens, and logged as such."""

    name = "iar"
    loss_unit = "loss_nats"

    def __init__(self, model: Transformer, config: TrainConfig, prior: CodebookPrior) -> None:
        super().__init__(model, config, prior)
        self.weight, self.form = config.iar_weight, config.iar_form
        self.asks_device = self.form != "logsumexp"  # what the sizes of the clusters are

    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        loss = partial(iar_nats, token_to_cluster=self.token_to_cluster, weight=self.weight, form=self.form)
        return self._nats(loss, classes, tokens)

    def token_nats(self, classes: Tensor, tokens: Tensor) -> Tensor:
        return self._nats(cross_entropy_nats, classes, tokens)

    def initial_nats(self, usage: np.ndarray) -> float:
        token_nats = float(np.log(len(usage)))
        if self.form == "logsumexp":  # the larger a cluster, the likelier
            return token_nats + self.weight * (token_nats - self._size_nats(self.prior.sizes, usage))
        return token_nats + self.weight * float(np.log(self.prior.n_clusters))


class FactorisedObjective(PriorObjective):
    """-log p(cluster) - log p(token, given its cluster), both from one state."""

    name = "factorised"
    predicts_members = asks_device = True

    def __init__(self, model: Transformer, config: TrainConfig, prior: CodebookPrior) -> None:
        super().__init__(model, config, prior)
        model.factorise(self.token_to_cluster, torch.from_numpy(prior.live))

    @staticmethod
    def vocabularies(codebook_size: int, n_clusters: int) -> dict[str, Any]:
        return {"vocab_size": codebook_size, "n_clusters": n_clusters}

    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        assert self.model.cluster_output is not None
        weights = self.model.output.weight, self.model.cluster_output.weight
        states, partition = self._states(classes, tokens), self.token_to_cluster
        return factorised_nats(states, *weights, tokens, partition, compiled=self.compiled)

    def initial_nats(self, usage: np.ndarray) -> float:
        return float(np.log(self.prior.n_clusters)) + self._size_nats(self.prior.sizes, usage)


class RefineObjective(PriorObjective):
    """-log p(token, given the clusters of all tokens), over the members of its cluster or, as CTF, over all codes."""

    name = "refine"
    predicts_members = needs_prior = True
    unit = "nats_per_token_given_clusters"

    def __init__(self, model: Transformer, config: TrainConfig, prior: CodebookPrior) -> None:
        super().__init__(model, config, prior)
        self.over = config.refine_over
        self.asks_device = self.over == "cluster"  # which members the clusters have
        self.loss_unit = self.unit if self.over == "cluster" else "loss_nats"

    @staticmethod
    def vocabularies(codebook_size: int, n_clusters: int) -> dict[str, Any]:
        return {"vocab_size": n_clusters, "output_size": codebook_size, "causal": False}

    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        if self.over == "cluster":
            return self.token_nats(classes, tokens)
        return self._nats(cross_entropy_nats, classes, tokens)

    def token_nats(self, classes: Tensor, tokens: Tensor) -> Tensor:
        """-log p(token, given all clusters), mean in nats; the clusters' own share is the first stage's."""
        states = self._states(classes, tokens)
        return member_nats(states, self.model.output.weight, tokens, self.token_to_cluster)

    def _states(self, classes: Tensor, inputs: Tensor) -> Tensor:
        """What each token is predicted from: all clusters."""
        return self.model.states(self.model.embed(classes, self.token_to_cluster[inputs]))[:, 1:]

    def initial_nats(self, usage: np.ndarray) -> float:
        return self._size_nats(self.prior.sizes, usage) if self.over == "cluster" else float(np.log(len(usage)))


_KINDS: dict[str, type[Any]] = {
    kind.name: kind for kind in (TokenObjective, ClusterObjective, IARObjective, FactorisedObjective, RefineObjective)
}
