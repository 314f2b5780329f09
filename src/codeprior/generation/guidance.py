"""Classifier-free guidance: how two branches become one, and how strongly at each token.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codeprior.config import GuidanceSchedule

_OFF = 1.0 + 1e-4  # GigaTok's: with 1 its sampler would leave the unconditional branch out
_PEAK = 0.5  # of the triangle, the only one that GigaTok's script can ask for


@dataclass(frozen=True)
class Guidance:
    """How strongly the condition is followed, token by token."""

    scale: float = 1.0
    """s in uncond + s (cond - uncond); 1 is none."""
    schedule: GuidanceSchedule = "constant"
    """How the scale goes from the first token to the last; see `scales`."""
    interval: int = -1
    """Guidance ends after this many tokens past the first; -1 never."""
    window: tuple[float, float] = (0.0, 1.0)
    """Where in the image guidance is on, for step (which heeds the start alone) and rectangular."""
    power: float = 1.0
    """Exponent of power_cosine."""

    def scales(self, n_tokens: int) -> np.ndarray:
        """The scale of every token: float64 (T,).

        constant, with the interval, is LlamaGen's. linear, linear_re, triangular, rectangular, step and cosine are
        GigaTok's, over the share r = t / (T - 1) of the tokens t after the first, which has the full scale; what they
        add to 1 is theirs too. power_cosine is RAR's, 1 + (s - 1) (1 - cos(pi (t / T)^power)) / 2, the first included.
        """
        if self.scale == 1:
            return np.ones(n_tokens)
        if self.schedule == "power_cosine":
            share = np.arange(n_tokens) / n_tokens
            scales = 1 + (self.scale - 1) * (1 - np.cos(np.pi * share**self.power)) / 2
        else:
            share = np.arange(1, n_tokens) / max(1, n_tokens - 1)
            scales = np.concatenate([[self.scale], self._after_the_first(share)])
        if self.interval >= 0:
            scales[self.interval + 2 :] = 1  # LlamaGen counts from the token after the first
        return scales

    def _after_the_first(self, share: np.ndarray) -> np.ndarray:
        start, end = self.window
        if self.schedule == "constant":
            return np.full(len(share), self.scale)
        if self.schedule == "step":
            return np.where(share >= start, self.scale, _OFF)
        if self.schedule == "rectangular":
            return np.where((share >= start) & (share <= end), self.scale, _OFF)
        if self.schedule == "cosine":
            return 1 + (self.scale - 1) * (1 + np.cos(np.pi * share)) / 2
        triangle = np.where(share < _PEAK, share / _PEAK, (1 - share) / (1 - _PEAK))
        risen = {"linear": share, "linear_re": 1 - share, "triangular": triangle}[self.schedule]
        return _OFF + (self.scale - 1) * risen


def count_guided(scales: np.ndarray) -> int:
    """How many tokens, from the first on, need the unconditional branch: up to the last whose scale is not 1."""
    return int(np.max(np.flatnonzero(scales != 1), initial=-1)) + 1


def guide(logits: Tensor, scale: Tensor) -> Tensor:
    """Logits (2B, V), conditional then unconditional, to (B, V): uncond + s (cond - uncond), exactly cond where s is 1.

    Ho and Salimans 2022, in the form of LlamaGen, 2.2. `scale` is s, of no dimension.
    """
    conditional, unconditional = logits.chunk(2)
    return torch.where(scale == 1, conditional, unconditional + scale * (conditional - unconditional))
