"""Pixels and tensors: uint8 images as people store them, float images as networks take them."""

from __future__ import annotations

import numpy as np
import torch

Range = tuple[float, float]
"""What black and white are to a network."""
SIGNED: Range = (-1.0, 1.0)


def to_tensor(pixels: np.ndarray, device: torch.device | str = "cpu", pixel_range: Range = SIGNED) -> torch.Tensor:
    """Pixels uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in a range, rounded as torchvision's ToTensor and Normalize."""
    low, high = pixel_range
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return tensor.permute(0, 3, 1, 2).float().div_(255).mul_(high - low).add_(low).contiguous()


def to_pixels(images: torch.Tensor, pixel_range: Range = SIGNED) -> np.ndarray:
    """Images (B, 3, H, W) in a range -> uint8 (B, H, W, 3): rounded half up, clamped, as 127.5 x + 128 in LlamaGen."""
    low, high = pixel_range
    scale = 255 / (high - low)
    scaled = images.float().mul(scale).add_(0.5 - low * scale).clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def resize_bicubic(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (B, 3, H, W) at another size, without antialiasing, before they are clamped: LlamaGen's 384 to 256."""
    return torch.nn.functional.interpolate(images.float(), size=(size, size), mode="bicubic")
