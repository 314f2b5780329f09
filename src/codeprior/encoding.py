"""Images to codes: `codeprior encode`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from codeprior.artifact import Workspace
from codeprior.codes import StoreWriter
from codeprior.config import EncodeConfig
from codeprior.device import resolve_device
from codeprior.images import BadImageError, ImageSet, open_images
from codeprior.parts import Rows, in_order, read_ahead
from codeprior.pixels import to_tensor
from codeprior.shards import Shard
from codeprior.tokenizers import Tokenizer, load_tokenizer
from codeprior.tokenizers.folder import FolderTokenizer

# Pixels a forward pass: on a CPU larger activations leave the caches, on a GPU these fill it (128 images of 256 x 256).
_PIXELS_AT_ONCE = {"cpu": 2**16, "cuda": 2**23}


def encode(config: EncodeConfig) -> dict[str, Any]:
    """Encode images into a code store; an interrupted run is continued.

    Where RANK and WORLD_SIZE are set, as by `torchrun`, each process encodes its share of the images, and the last one
    to finish writes the store. A run may be continued by another number of processes. The store is that of one process
    alone, byte for byte, if all compute alike.

    Raises
    ------
    InputError
        If the images, the tokenizer or the output are not as they should be.
    """
    shard = Shard.from_environment()
    device = resolve_device(config.device)
    tokenizer = load_tokenizer(config.tokenizer, device)
    images = open_images(config.data, bad_images="later" if config.bad_images == "skip" else "refuse", seed=config.seed)
    writer = StoreWriter(tokenizer, config.image_size or tokenizer.image_size, config.views)
    inputs = {"images": images.digest, "tokenizer": tokenizer.digest}
    with Workspace(
        config.output,
        kind="codes",
        settings=config.settings(),
        inputs=inputs,
        overwrite=config.overwrite,
        shard=shard,
    ) as workspace:
        if not workspace.complete:
            batch_size = config.batch_size or max(1, _PIXELS_AT_ONCE.get(device.type, 2**23) // writer.image_size**2)
            group = max(1, batch_size // writer.shape[0])

            def read(numbers: range) -> tuple[np.ndarray, dict[int, str]]:
                return _read_views(images, numbers, writer, skip=config.bad_images == "skip")

            def compute(found: tuple[np.ndarray, dict[int, str]]) -> Rows:
                return encode_views(tokenizer, found[0], batch_size, device), found[1]

            def batches(run: range) -> Iterator[Rows]:
                with _one_by_one_or_together(tokenizer, device) as encoded:
                    yield from encoded(compute, read_ahead(read, run, group))

            writer.write(workspace, len(images), group, batches, "encode")
            writer.finish(workspace, lambda: images.labels, images.class_names, images.skipped)
        return {"output": str(config.output), **writer.results(workspace)}


def _read_views(
    images: ImageSet, numbers: range, writer: StoreWriter, *, skip: bool
) -> tuple[np.ndarray, dict[int, str]]:
    """All views of some images, uint8 (n, A, S, S, 3), and which of them are bad."""
    views, bad = [], {}
    for number in numbers:
        try:
            views.append(images.read_views(number, writer.image_size, writer.views))
        except BadImageError as error:
            if not skip:
                raise
            bad[number] = error.reason
    return np.stack(views) if views else np.empty((0, writer.shape[0], 0, 0, 3), np.uint8), bad


@contextlib.contextmanager
def _one_by_one_or_together(tokenizer: Tokenizer, device: torch.device) -> Iterator[Callable[..., Iterator[Rows]]]:
    """How groups of views are encoded, in their order: on a CPU several at once, each by one thread.

    That spares threads the waiting for each other in every layer, and the codes do not depend on how many there are. A
    GPU does not need it, and a tokenizer of somebody's own may not bear it.
    """
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1 or not isinstance(tokenizer, FolderTokenizer):
        yield map
        return
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda work, items: in_order(pool, work, items, n_threads)
    finally:
        torch.set_num_threads(n_threads)


def encode_views(tokenizer: Tokenizer, views: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Views (n, A, S, S, 3) -> codes (n, A, T)."""
    if not len(views):
        return np.empty((0, views.shape[1], 0))
    flat = views.reshape(-1, *views.shape[2:])
    codes = [
        tokenizer.encode(to_tensor(flat[start : start + batch_size], device, tokenizer.pixel_range)).cpu().numpy()
        for start in range(0, len(flat), batch_size)
    ]
    return np.concatenate(codes).reshape(*views.shape[:2], -1)
