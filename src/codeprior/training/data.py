"""The training batches: which images and views each step sees, and their codes on the device, a step ahead.

Nothing is drawn from a state that would have to be kept: rows belong to (seed, epoch), dropped classes to (seed, step).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from codeprior.codes import CodeStore
from codeprior.config import TrainConfig
from codeprior.errors import InputError
from codeprior.randomness import generator

Batch = tuple[Tensor, Tensor]
"""Classes (B,) and tokens (B, T), int64."""


def batch_rows(seed: int, step: int, batch_size: int, n_images: int, n_views: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images and which view of each a step sees: int64 (B,) twice.

    Every epoch is a new order of all images with a random view of each; batches run on over its end.
    """
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), n_images)
    images, views = np.empty(batch_size, dtype=np.int64), np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order, view_of_image = _epoch(seed, int(epoch), n_images, n_views)
        images[here] = order[places[here]]
        views[here] = view_of_image[images[here]]
    return images, views


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, n_images: int, n_views: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        generator(seed, "order", epoch).permutation(n_images),
        generator(seed, "view", epoch).integers(n_views, size=n_images),
    )


def read_batch(store: CodeStore, images: np.ndarray, views: np.ndarray | int) -> Batch:
    """Classes and tokens of some rows of a store, one view of each, on the CPU.

    Raises
    ------
    InputError
        If the codes have vanished or been cut short since the store was opened.
    """
    _require_whole(store.codes)
    return torch.from_numpy(store.labels[images]), torch.from_numpy(store.codes[images, views].astype(np.int64))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, without waiting for its way there."""
    classes, tokens = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in batch)
    return classes.to(device, non_blocking=True), tokens.to(device, non_blocking=True)


def _require_whole(codes: np.ndarray) -> None:
    """A mapped file that was cut short would end the process without a word."""
    if not isinstance(codes, np.memmap) or codes.filename is None:
        return
    try:
        size = os.stat(codes.filename).st_size
    except OSError as error:
        raise InputError(f"the codes {codes.filename} have vanished: {error.strerror}") from None
    if size < codes.offset + codes.nbytes:
        raise InputError(f"the codes {codes.filename} were cut short while they were read")


class Feed:
    """The batches of a run's steps, for one of its processes.

    Parameters
    ----------
    store : CodeStore
    config : TrainConfig
    null_class : int
        Number of the class that dropped ones become.
    part, n_parts : int
        Which of how many equal parts of each batch this process has.
    """

    def __init__(self, store: CodeStore, config: TrainConfig, null_class: int, part: int, n_parts: int) -> None:
        self.store, self.config, self.null_class = store, config, null_class
        n_rows = config.batch_size // n_parts
        self.rows = slice(part * n_rows, (part + 1) * n_rows)

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of a step, with a share of the classes dropped, on the CPU."""
        config = self.config
        images, views = batch_rows(config.seed, step, config.batch_size, *self.store.codes.shape[:2])
        dropped = generator(config.seed, "class", step).random(config.batch_size) < config.class_dropout
        classes, tokens = read_batch(self.store, images[self.rows], views[self.rows])
        return classes.masked_fill(torch.from_numpy(dropped[self.rows]), self.null_class), tokens

    def batches(self, first: int, stop: int, device: torch.device) -> Iterator[Batch]:
        """The batches of the steps from `first` to before `stop`, each read while the one before is worked on."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self.batch, first) if first < stop else None
            for step in range(first, stop):
                assert coming is not None
                batch = coming.result()
                coming = pool.submit(self.batch, step + 1) if step + 1 < stop else None
                yield to_device(batch, device)
