"""Squares cut from images, and the views of them that are encoded; the crops of LlamaGen and its kin."""

from __future__ import annotations

import numpy as np
from PIL import Image

CROP_RANGES = {"ten-crop-1.1": (1.1,), "ten-crop-1.05": (1.05,), "ten-crop-1.1+1.05": (1.1, 1.05)}
"""The sides of the squares that ten crops are cut from, in units of the crops' own, range by range."""
N_VIEWS = {"centre": 1, "flip": 2, "shift": 5} | {name: 10 * len(ranges) for name, ranges in CROP_RANGES.items()}


def centre_crop(image: Image.Image, image_size: int) -> np.ndarray:
    """The central square, scaled: uint8 (image_size, image_size, 3).

    As ADM crops (Dhariwal and Nichol 2021): halved by box averages while the shorter side is at least twice the size,
    scaled bicubically until the shorter side is the size, then cut.
    """
    image = to_rgb(image)
    while min(image.size) >= 2 * image_size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = image_size / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - image_size) // 2, (pixels.shape[1] - image_size) // 2
    return pixels[top : top + image_size, left : left + image_size]


def all_views(image: Image.Image, name: str, image_size: int) -> np.ndarray:
    """All views of an image: uint8 (N_VIEWS[name], image_size, image_size, 3).

    `ten-crop-R` are ten crops of the central square of side int(image_size * R), scaled once;
    `ten-crop-1.1+1.05` those of both ranges, 20 views. LlamaGen trains on either range, drawn for each sample.
    """
    image = to_rgb(image)
    if name in CROP_RANGES:
        squares = [centre_crop(image, int(image_size * crop_range)) for crop_range in CROP_RANGES[name]]
        return np.concatenate([ten_crop(square, image_size) for square in squares])
    return np.stack(views(centre_crop(image, image_size), name))


def ten_crop(square: np.ndarray, side: int) -> np.ndarray:
    """Ten crops of a square (S, S, 3): (10, side, side, 3), in the order of torchvision's TenCrop.

    Top left, top right, bottom left, bottom right, centre; then the same five of the mirrored square. An odd margin is
    halved to the even pixel, as Python rounds.
    """
    far = len(square) - side
    middle = round(far / 2)
    corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    return np.stack(
        [whole[top : top + side, left : left + side] for whole in (square, square[:, ::-1]) for top, left in corners]
    )


def view(square: np.ndarray, name: str, index: int) -> np.ndarray:
    """One of the views of a square (H, W, 3) that keep its size; the first is the square itself.

    `flip`: 1 is mirrored left to right. `shift`: 1 to 4 are moved by one pixel, the edge repeated.
    """
    if name in CROP_RANGES or not 0 <= index < N_VIEWS[name]:
        raise ValueError(f"{name} has views 0 to {N_VIEWS[name] - 1}, got {index}")
    if index == 0:
        return square
    if name == "flip":
        return square[:, ::-1]
    top, left = ((0, 1), (2, 1), (1, 0), (1, 2))[index - 1]
    padded = np.pad(square, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return padded[top : top + square.shape[0], left : left + square.shape[1]]


def views(square: np.ndarray, name: str) -> list[np.ndarray]:
    """All views of a square (H, W, 3) that keep its size, the square itself first."""
    return [view(square, name, index) for index in range(N_VIEWS[name])]


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits, of whatever an image file held; transparency is dropped."""
    if image.mode[0] == "I":  # 16-bit greyscale; Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
