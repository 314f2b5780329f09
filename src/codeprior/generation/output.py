"""Samples as people hand them on: the field's `.npz`, a folder of PNG files, a picture of some of each class."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from codeprior.checkpoint import CheckpointConfig
from codeprior.config import SampleConfig
from codeprior.machine import available_threads
from codeprior.model import preset_name
from codeprior.npz import MappedNpz, Stream, write_npz
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


def write_pngs(folder: Path, samples: Path) -> None:
    """Write the images of an `.npz` as `000000.png`, `000001.png`, ..., by their rows; those that are there stay."""
    folder.mkdir(exist_ok=True)
    images = MappedNpz(samples)["arr_0"]

    def write(row: int) -> None:
        path = folder / f"{row:06d}.png"
        if not path.exists():
            temporary = folder / f".{row:06d}.{os.getpid()}.partial"
            Image.fromarray(images[row]).save(temporary, "PNG")
            os.replace(temporary, path)

    with ThreadPoolExecutor(available_threads()) as pool:
        for _ in pool.map(write, range(len(images))):
            pass


def llamagen_name(config: SampleConfig, checkpoint: CheckpointConfig) -> str:
    """Name of the `.npz` that LlamaGen's script for FID would give it."""
    sizes = f"size-{checkpoint.image_size}-size-{config.image_size_eval or checkpoint.image_size}"
    made_by = f"{preset_name(checkpoint.model)}-{config.checkpoint.stem}-{sizes}-{config.tokenizer.stem}"
    filtered = f"topk-{config.top_k}-topp-{config.top_p}-temperature-{config.temperature}"
    return f"{made_by}-{filtered}-cfg-{config.cfg_scale}-seed-{config.seed}.npz"


def link(path: Path, name: str) -> None:
    """A second name for a file, beside it."""
    with contextlib.suppress(FileExistsError):
        (path.parent / name).symlink_to(path.name)


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
