"""What the pipeline asks of an image tokenizer, and how pixels become tensors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
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


def to_tensor(pixels: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Pixels uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return tensor.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3): 127.5 x + 128, clamped and truncated, as LlamaGen does."""
    scaled = images.float().mul(127.5).add_(128).clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
