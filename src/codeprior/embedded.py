"""Two labelled image sets that come with other packages: scikit-learn's digits, twelve photographs of scikit-image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from codeprior.errors import InputError

NAMES = ("digits", "digits:heldout", "photos12", "photos12:heldout")

N_HELDOUT_DIGITS = 297
_SPLIT_SEED = 0  # fixed: what is held out must not depend on the seed of a run

PHOTOS = {
    "astronaut.png": "bottom",
    "brick.png": "right",
    "camera.png": "bottom",
    "chelsea.png": "right",
    "coffee.png": "bottom",
    "coins.png": "right",
    "grass.png": "right",
    "gravel.png": "right",
    "hubble_deep_field.jpg": "right",
    "ihc.png": "right",
    "retina.jpg": "right",
    "rocket.jpg": "right",
}
"""Files, and the end of each at which a strip is held out: where it resembles the rest most."""
PHOTO_SIDE = 256
"""Shorter side that the photographs are scaled to, pixels."""
HELDOUT_STRIP = 0.36
"""Share of the width or height that is never trained on."""
CROP_SIZE = 64
N_CROPS = 450
N_HELDOUT_CROPS = 100


def load(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Squares uint8 (N, S, S) or (N, S, S, 3), labels int64 (N,), class names.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    seed : int
        Seed of the random crops of photos12.
    """
    base, _, part = name.partition(":")
    return load_digits(heldout=bool(part)) if base == "digits" else load_photos(seed, heldout=bool(part))


def load_digits(*, heldout: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Scikit-learn's 1,797 handwritten digits, 8x8 greyscale: 1,500 to train on, 297 held out."""
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    chosen = np.sort(order[:N_HELDOUT_DIGITS] if heldout else order[N_HELDOUT_DIGITS:])
    squares = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return squares, digits.target[chosen].astype(np.int64), tuple("0123456789")


def load_photos(seed: int, *, heldout: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Random square crops of twelve photographs; a class is a photograph.

    A crop's side is 50 to 100 % of the shorter side of the part that is trained on. The held-out crops come from a
    strip that no training crop touches; their scales are those of the smaller training crops, which fit in the strip.
    """
    squares, labels = [], []
    for label, (photo, end) in enumerate(PHOTOS.items()):
        image = _open_photo(photo)
        generator = np.random.default_rng((seed, label, heldout))
        n_crops = N_HELDOUT_CROPS if heldout else N_CROPS
        for box in crop_boxes(image.size, end, n_crops, generator, heldout=heldout):
            squares.append(_crop(image, box))
            labels.append(label)
    return np.stack(squares), np.array(labels, dtype=np.int64), tuple(photo.split(".")[0] for photo in PHOTOS)


def crop_boxes(
    size: tuple[int, int], end: str, n_crops: int, generator: np.random.Generator, *, heldout: bool
) -> np.ndarray:
    """Squares (left, top, right, bottom) in a photograph of `size` (width, height): int64 (n_crops, 4)."""
    axis = {"right": 0, "bottom": 1}[end]
    origin, training, strip = [0, 0], list(size), list(size)
    training[axis] = round(size[axis] * (1 - HELDOUT_STRIP))
    strip[axis] -= training[axis]
    smallest, largest = min(training) // 2, min(training)
    if heldout:
        origin[axis] = training[axis]
        largest = min(*strip, largest)
        smallest = min(smallest, largest)
    extent = strip if heldout else training
    sides = generator.integers(smallest, largest, size=n_crops, endpoint=True)
    corners = np.stack([origin[i] + generator.integers(0, extent[i] - sides, endpoint=True) for i in (0, 1)], axis=1)
    return np.concatenate([corners, corners + sides[:, None]], axis=1)


def _crop(image: Image.Image, box: np.ndarray) -> np.ndarray:
    left, top, right, bottom = (int(edge) for edge in box)
    square = image.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.asarray(square)


def _open_photo(name: str) -> Image.Image:
    import skimage

    # By path: skimage.data's functions may download what the wheel lacks.
    path = Path(skimage.__file__).parent / "data" / name
    if not path.exists():
        raise InputError(f"{path} is missing from scikit-image; pip install --force-reinstall scikit-image")
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = PHOTO_SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)
