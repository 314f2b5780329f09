"""Codes: images encoded once, kept in one packed array that training maps into memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeprior.artifact import Workspace, read_json, read_manifest, write_json
from codeprior.config import EncodeConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.images import N_VIEWS, ImageSet, open_images, view
from codeprior.pixels import to_tensor
from codeprior.progress import track
from codeprior.tokenizers import Tokenizer, load_tokenizer

CODES = "codes.npy"
LABELS = "labels.npy"
META = "meta.json"
_PROGRESS = "progress.json"
_SECONDS_BETWEEN_RECORDS = 2.0
_ROWS_COUNTED_AT_ONCE = 65536


@dataclass(frozen=True, eq=False)
class CodeStore:
    """The codes of a set of images, by one tokenizer.

    `codes` is uint16 (uint32 beyond 65,536 codes), (N, A, T): N images, A views of each, T tokens in rows of a grid of
    (h, w); read-only, mapped from disk. `labels` is int64 (N,). The digests say which codebook and tokenizer the codes
    belong to, and name the store itself.
    """

    codes: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    grid: tuple[int, int]
    image_size: int
    views: str
    codebook_size: int
    codebook_digest: str
    tokenizer_digest: str
    digest: str

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def open(cls, folder: Path | str) -> CodeStore:
        """Open a folder that `encode` made.

        Raises
        ------
        InputError
            If the folder is absent, unfinished, truncated or damaged.
        """
        manifest = read_manifest(folder, "codes")
        meta = read_json(manifest.path(META))
        try:
            codes = np.load(manifest.path(CODES), mmap_mode="r", allow_pickle=False)
            labels = np.load(manifest.path(LABELS), allow_pickle=False)
        except (ValueError, OSError) as error:
            raise InputError(f"cannot read the codes at {folder}: {error}; remove them and encode again") from error
        meta = {**meta, "class_names": tuple(meta["class_names"]), "grid": tuple(meta["grid"])}
        return cls(codes=codes, labels=labels, digest=manifest.digest, **meta)

    def usage(self) -> np.ndarray:
        """How often each code occurs, all views counted: int64 (V,)."""
        return count_codes(self.codes, self.codebook_size)


def encode(config: EncodeConfig) -> dict[str, Any]:
    """Encode images into a code store; an interrupted run is continued.

    Raises
    ------
    InputError
        If the images, the tokenizer or the output are not as they should be.
    """
    device = resolve_device(config.device)
    tokenizer = load_tokenizer(config.tokenizer, device)
    images = open_images(config.data, bad_images=config.bad_images, seed=config.seed)
    image_size = config.image_size or tokenizer.image_size
    if image_size % tokenizer.downsample:
        raise InputError(f"image_size must be a multiple of {tokenizer.downsample}, got {image_size}")
    inputs = {"images": images.digest, "tokenizer": tokenizer.digest}
    with Workspace(
        config.output, kind="codes", settings=config.settings(), inputs=inputs, overwrite=config.overwrite
    ) as workspace:
        if not workspace.complete:
            codes = _encode_all(config, workspace, tokenizer, images, image_size, device)
            _finish(config, workspace, tokenizer, images, codes, image_size)
        assert workspace.manifest is not None
        return {"output": str(config.output), **workspace.manifest.results}


def count_codes(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each of the codes occurs in codes (N, A, T), a mapped array included: int64 (V,)."""
    counts = np.zeros(codebook_size, dtype=np.int64)
    for start in range(0, len(codes), _ROWS_COUNTED_AT_ONCE):
        counts += np.bincount(codes[start : start + _ROWS_COUNTED_AT_ONCE].reshape(-1), minlength=codebook_size)
    return counts


def unigram_entropy_nats(usage: np.ndarray) -> float:
    """Entropy of the codes' frequencies, from counts (V,): what a model that only counts would score."""
    shares = usage[usage > 0] / usage.sum()
    return float(-(shares * np.log(shares)).sum())


def _encode_all(
    config: EncodeConfig,
    workspace: Workspace,
    tokenizer: Tokenizer,
    images: ImageSet,
    image_size: int,
    device: torch.device,
) -> np.ndarray:
    """Fill `codes.npy`, from where the last record says that the disk holds it."""
    n_views, side = N_VIEWS[config.views], image_size // tokenizer.downsample
    shape = (len(images), n_views, side * side)
    codes, done = _open_array(workspace, shape, len(tokenizer.codebook))
    starts = range(done, len(images), config.batch_size)
    n_batches_before = -(-done // config.batch_size)
    recorded = time.monotonic()
    for start in track(starts, "encode", total=n_batches_before + len(starts), start=n_batches_before):
        chosen = range(start, min(start + config.batch_size, len(images)))
        pixels = images.read_many(chosen, image_size)
        for index in range(n_views):
            batch = np.stack([view(image, config.views, index) for image in pixels])
            codes[start : chosen.stop, index] = tokenizer.encode(to_tensor(batch, device)).cpu().numpy()
        if time.monotonic() - recorded >= _SECONDS_BETWEEN_RECORDS:
            codes.flush()
            write_json(workspace.path(_PROGRESS), {"images": chosen.stop})
            workspace.checkpoint()
            recorded = time.monotonic()
    codes.flush()
    return codes


def _open_array(workspace: Workspace, shape: tuple[int, ...], codebook_size: int) -> tuple[np.memmap, int]:
    """The array on disk, and how many of its images are encoded already."""
    dtype = np.uint16 if codebook_size <= 2**16 else np.uint32
    if workspace.path(_PROGRESS).exists():
        codes = np.lib.format.open_memmap(workspace.path(CODES), mode="r+")
        return codes, int(read_json(workspace.path(_PROGRESS))["images"])
    return np.lib.format.open_memmap(workspace.path(CODES), mode="w+", dtype=dtype, shape=shape), 0


def _finish(
    config: EncodeConfig,
    workspace: Workspace,
    tokenizer: Tokenizer,
    images: ImageSet,
    codes: np.ndarray,
    image_size: int,
) -> None:
    side = image_size // tokenizer.downsample
    meta = {
        "class_names": images.class_names,
        "grid": (side, side),
        "image_size": image_size,
        "views": config.views,
        "codebook_size": len(tokenizer.codebook),
        "codebook_digest": tokenizer.codebook.digest,
        "tokenizer_digest": tokenizer.digest,
    }
    np.save(workspace.path(LABELS), images.labels)
    write_json(workspace.path(META), meta)
    if images.skipped:
        workspace.path("skipped.txt").write_text("\n".join(images.skipped) + "\n")
    usage = count_codes(codes, len(tokenizer.codebook))
    results = {
        "n_images": len(images),
        "n_views": codes.shape[1],
        "n_tokens": codes.shape[2],
        "codes_used": int((usage > 0).sum()),
        "codebook_size": len(usage),
        "codebook_digest": tokenizer.codebook.digest,
        "unigram_entropy_nats": unigram_entropy_nats(usage),
        "n_skipped": len(images.skipped),
    }
    workspace.finish([CODES, LABELS, META], results)
    workspace.path(_PROGRESS).unlink(missing_ok=True)
