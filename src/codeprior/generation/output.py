"""Samples as people hand them on: the field's `.npz`, a folder of PNG files, a picture of some of each class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from codeprior.machine import available_threads
from codeprior.npz import Stream, write_npz
from codeprior.plots import image_grid

_BYTES_AT_ONCE = 2**26
_GRID_ROWS, _GRID_COLUMNS = 20, 10

Take = Callable[[np.ndarray], np.ndarray]
"""Images uint8 (n, H, W, 3) of the samples with these indices (n,)."""


def write_samples(path: Path, take: Take, image_shape: tuple[int, ...], labels: np.ndarray, order: np.ndarray) -> None:
    """Write the samples in an order, as ADM's evaluator reads them: arr_0 images uint8 NHWC, arr_1 labels int64.

    As a stream, for the images may not fit in memory; of equal samples equal bytes.
    """
    images = Stream((len(order), *image_shape), np.dtype(np.uint8), map(take, _runs(order, image_shape)))
    write_npz(path, {"arr_0": images, "arr_1": labels[order]})


def write_pngs(folder: Path, take: Take, image_shape: tuple[int, ...], order: np.ndarray) -> None:
    """Write the samples in an order as `000000.png`, `000001.png`, ...: the rows of the `.npz`, by their numbers."""
    folder.mkdir(exist_ok=True)

    def write(number: int, pixels: np.ndarray) -> None:
        path = folder / f"{number:06d}.png"
        if not path.exists():
            temporary = folder / f".{number:06d}.partial"
            Image.fromarray(pixels).save(temporary, "PNG")
            os.replace(temporary, path)

    with ThreadPoolExecutor(available_threads()) as pool:
        number = 0
        for run in _runs(order, image_shape):
            numbers = range(number, number + len(run))
            list(pool.map(write, numbers, take(run)))
            number += len(run)


def write_grid(path: Path, take: Take, classes: np.ndarray, names: tuple[str, ...]) -> None:
    """A picture of the first samples of (up to 20) classes: one row a class, under its name."""
    present, counts = np.unique(classes, return_counts=True)
    shown = np.unique(np.linspace(0, len(present) - 1, _GRID_ROWS).astype(int))
    n_columns = min(_GRID_COLUMNS, int(counts[shown].min()))
    rows = np.stack([np.flatnonzero(classes == number)[:n_columns] for number in present[shown]])
    images = take(rows.ravel())
    image_grid(images.reshape(*rows.shape, *images.shape[1:]), [names[number] for number in present[shown]], path)


def _runs(order: np.ndarray, image_shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    n_at_once = max(1, _BYTES_AT_ONCE // int(np.prod(image_shape)))
    for start in range(0, len(order), n_at_once):
        yield order[start : start + n_at_once]
