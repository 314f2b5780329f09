"""Clusters to tokens, all positions of an image at once: CTF's second stage, after a model that generates clusters.

Shapes: B batch, T tokens, V codebook, G clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codeprior.checkpoint import Checkpoint
from codeprior.errors import InputError
from codeprior.generation.decoding import Decoding, logits_to_probs, sample_tokens
from codeprior.losses import LOGITS_AT_ONCE
from codeprior.model import Transformer
from codeprior.prior import CodebookPrior, Pick


@torch.inference_mode()
def refine(
    model: Transformer,
    classes: Tensor,
    clusters: Tensor,
    uniforms: Tensor,
    token_to_cluster: Tensor,
    live: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Draw a token of each cluster, given all of them.

    Parameters
    ----------
    model : Transformer
        Trained with the objective "refine", in `eval()`.
    classes : Tensor of shape (B,), int64
    clusters : Tensor of shape (B, T), int64
    uniforms : Tensor of shape (B, T), float64
        Uniform numbers in [0, 1): all the randomness there is.
    token_to_cluster : Tensor of shape (V,), int64
    live : Tensor of shape (V,), bool
        Which tokens may be drawn. A token is always one of its cluster's: what the first stage decided stays.
    temperature : float
        Logits are divided by it; 0 takes the likeliest token.

    Returns
    -------
    tokens : Tensor of shape (B, T), int64
    """
    decoding = Decoding(temperature)
    states = model.states(model.embed(classes, clusters))[:, 1:].flatten(0, 1)
    tokens = torch.empty_like(clusters).flatten()
    at_once = max(1, LOGITS_AT_ONCE // len(live))
    for start in range(0, len(states), at_once):
        rows = slice(start, start + at_once)
        allowed = live & (token_to_cluster == clusters.flatten()[rows, None])
        logits = model.head(states[rows]).masked_fill(~allowed, -torch.inf)
        tokens[rows] = sample_tokens(logits_to_probs(logits, decoding), uniforms.flatten()[rows])
    return tokens.view_as(clusters)


Chooser = Callable[[Tensor, Any, Tensor], Tensor]
"""Of what a model generated (B, T), the classes (B,) or captions and uniform numbers (B, T): the tokens (B, T)."""


def chooser(checkpoint: Checkpoint, refiner: Checkpoint | None, pick: Pick, temperature: float) -> Chooser:
    """How what a model generates becomes tokens: as it is, or a token of each cluster, picked blindly or refined.

    Raises
    ------
    InputError
        If `refiner` is no second stage to this model, the model generates nothing, or `pick` has nothing to pick from.
    """
    if pick != "uniform" and (refiner is not None or checkpoint.prior is None):
        predicted = "--refine chooses it" if refiner is not None else f"{checkpoint.config.objective} predicts tokens"
        raise InputError(f"--pick {pick} chooses a token of a predicted cluster, but {predicted}; leave it out")
    if refiner is not None:
        check_refines(refiner, checkpoint)
        return _refiner(refiner, temperature)
    if checkpoint.config.objective == "refine":
        raise InputError(
            "this checkpoint refines clusters: give it as --refine, and one that makes them as --checkpoint"
        )
    if checkpoint.prior is None:
        return lambda tokens, classes, uniforms: tokens
    return _picker(checkpoint.prior, pick)


def _refiner(refiner: Checkpoint, temperature: float) -> Chooser:
    assert refiner.prior is not None
    device = refiner.model.output.weight.device
    labels = torch.from_numpy(refiner.prior.token_to_cluster).to(device)
    live = torch.from_numpy(refiner.prior.live).to(device)

    def choose(clusters: Tensor, classes: Tensor, uniforms: Tensor) -> Tensor:
        return refine(refiner.model, classes, clusters, uniforms, labels, live, temperature)

    return choose


def _picker(prior: CodebookPrior, pick: Pick) -> Chooser:
    def choose(clusters: Tensor, classes: Tensor, uniforms: Tensor) -> Tensor:
        picked = prior.pick_tokens_at(clusters.cpu().numpy(), uniforms.cpu().numpy(), by=pick)
        return torch.from_numpy(picked).to(clusters.device)

    return choose


def check_refines(refiner: Checkpoint, first: Checkpoint) -> None:
    """Refuse a second stage that is none, or belongs to other clusters, codes, classes or grid than the first."""
    if refiner.config.objective != "refine":
        raise InputError(f"--refine wants a checkpoint of --objective refine, got one of {refiner.config.objective}")
    if first.config.objective != "cluster":
        raise InputError(f"--refine goes with a checkpoint of --objective cluster, got one of {first.config.objective}")
    assert refiner.prior is not None
    assert first.prior is not None
    first.config.verify(refiner.config.codebook_digest, "the checkpoint of --refine")
    if not (refiner.prior.token_to_cluster == first.prior.token_to_cluster).all():
        raise InputError(
            f"the clusters of --refine are those of another prior than the checkpoint's: {refiner.prior.method} with "
            f"{refiner.prior.n_clusters} clusters, and {first.prior.method} with {first.prior.n_clusters}; train both "
            "with one prior"
        )
    ours, theirs = first.config, refiner.config
    if (ours.class_names, ours.model.grid) != (theirs.class_names, theirs.model.grid):
        raise InputError(
            "the checkpoint and that of --refine were trained on other classes or grids; train both on one"
        )
