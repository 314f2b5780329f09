"""What the pipeline asks of an image tokenizer."""

from __future__ import annotations

from typing import Protocol

import torch

from codeprior.codebook import Codebook


class Tokenizer(Protocol):
    """Images to codes and back. B images, T = h·w tokens in rows of w; images are NCHW float32 in [-1, 1]."""

    @property
    def codebook(self) -> Codebook:
        """The code vectors and the space in which they are compared."""

    @property
    def downsample(self) -> int:
        """Pixels a token, along each side."""

    @property
    def image_size(self) -> int:
        """Side of the images that it was trained on, pixels."""

    @property
    def digest(self) -> str:
        """Digest of the artifact that it was loaded from."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> codes int64 (B, T); H and W are multiples of `downsample`."""

    def decode(self, codes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Codes (B, T) on a grid of (h, w) -> images (B, 3, H, W), not clamped."""
