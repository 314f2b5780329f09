"""Logits to a token.

Shapes: B batch, V vocabulary of the model (tokens or clusters).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_COLDEST = 1e-5  # LlamaGen's: what a temperature of 0 stands for


@dataclass(frozen=True)
class Decoding:
    """How logits become tokens."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest."""
    top_k: int = 0
    """Keep the k likeliest, and ties; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest that together reach this probability; 1 keeps all."""


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with all but the k largest, and what ties with the k-th, at -inf."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with all but the likeliest at -inf: those before which less than, or exactly, p is gathered."""
    ordered, order = logits.sort(descending=True)
    gathered = ordered.softmax(-1).cumsum(-1)
    beyond = torch.zeros_like(gathered, dtype=torch.bool)
    beyond[:, 1:] = gathered[:, :-1] > p
    return logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)


def logits_to_probs(logits: Tensor, decoding: Decoding) -> Tensor:
    """Probabilities (B, V) of logits (B, V): temperature, then top-k, then top-p, as LlamaGen orders them."""
    if decoding.temperature != 1:
        logits = logits / max(decoding.temperature, _COLDEST)
    if decoding.top_k:
        logits = keep_top_k(logits, decoding.top_k)
    if decoding.top_p < 1:
        logits = keep_top_p(logits, decoding.top_p)
    return logits.softmax(-1)


def sample_tokens(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (B,) from probabilities (B, V) and uniform numbers (B,) in [0, 1), by the inverse distribution function.

    Gathered in float64, for float32 would lose the rare ones of a large vocabulary. What is looked up stays below the
    end of the distribution function, so a token of probability 0 is never drawn.
    """
    gathered = probs.cumsum(-1, dtype=torch.float64)
    end = gathered[:, -1]
    aim = torch.minimum(uniforms * end, torch.nextafter(end, torch.zeros_like(end)))
    return torch.searchsorted(gathered, aim[:, None], right=True)[:, 0]


def uniforms_of(seed: int, indices: np.ndarray, shape: tuple[int, ...], *, stream: int = 0) -> np.ndarray:
    """Uniform numbers in [0, 1) that belong to (seed, index, stream): float64 (len(indices), *shape)."""
    generators = (np.random.Philox(key=[seed, int(index)], counter=[0, 0, 0, stream]) for index in indices)
    return np.array([np.random.Generator(generator).random(shape) for generator in generators])
