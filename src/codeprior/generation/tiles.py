"""Tiles: how many sequences are computed together, and by whom, so that no image depends on the images beside it.

On a CPU a matrix product may round differently with the number of its rows, and with the number of threads. So there
samples are made in tiles of a fixed number of sequences, which begin at the same indices whatever is asked for, the
last one filled up; and a tile is computed by one thread, as many tiles at a time as there are threads. On other devices
a tile is a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from codeprior.model import ModelConfig

# Numbers in a layer's input: fewer rows leave a core waiting for the weights, more of them gain no more than a tenth.
_NUMBERS_A_TILE = 2**13
_SMALLEST_TILE, _LARGEST_TILE = 8, 64
_BATCH = 128  # on other devices, unless asked for otherwise

Make = Callable[[np.ndarray], np.ndarray]
"""What the samples with these indices (B,) become, a row each."""


def tile_size(model: ModelConfig, device: torch.device, batch_size: int | None) -> int:
    """Sequences of a tile: on a CPU as many as the width of the model leaves room for, else the batch size."""
    if device.type != "cpu":
        return batch_size or _BATCH
    return max(_SMALLEST_TILE, min(_LARGEST_TILE, _NUMBERS_A_TILE // model.dim // _SMALLEST_TILE * _SMALLEST_TILE))


def in_tiles(
    make: Make, indices: range, tile: int, batch_size: int | None, device: torch.device
) -> Iterator[np.ndarray]:
    """Rows of the indices, tile by tile, in order."""
    tiles = [np.arange(start, min(start + tile, indices.stop)) for start in range(indices.start, indices.stop, tile)]
    n_threads = torch.get_num_threads() if device.type == "cpu" else 1
    n_workers = min(n_threads, max(1, (batch_size or n_threads * tile) // tile))

    def made(numbers: np.ndarray) -> np.ndarray:
        filled = np.concatenate([numbers, np.repeat(numbers[-1:], tile - len(numbers))])
        return make(filled)[: len(numbers)]

    if n_threads == 1:
        yield from map(made, tiles)
        return
    try:
        with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from _in_order(pool, made, tiles, 2 * n_workers)
    finally:
        torch.set_num_threads(n_threads)  # threads that begin from now on have as many as this one again


def _in_order(pool: ThreadPoolExecutor, made: Make, tiles: list[np.ndarray], n_ahead: int) -> Iterator[np.ndarray]:
    """Results of a pool in order, of which no more than `n_ahead` are waited for at a time."""
    waiting: deque[Future[np.ndarray]] = deque()
    try:
        for numbers in tiles:
            waiting.append(pool.submit(made, numbers))
            if len(waiting) == n_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
