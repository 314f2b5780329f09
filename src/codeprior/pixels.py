"""Pixels and tensors: uint8 images as people store them, float images as networks take them."""

from __future__ import annotations

import numpy as np
import torch


def to_tensor(pixels: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Pixels uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], rounded as torchvision's ToTensor and Normalize."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return tensor.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5).contiguous()


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3): 127.5 x + 128, clamped and truncated, as LlamaGen does."""
    scaled = images.float().mul(127.5).add_(128).clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
