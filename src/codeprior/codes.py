"""Codes: images encoded once, kept in one packed array that training maps into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import Workspace, read_json, read_manifest, write_json
from codeprior.crops import N_VIEWS
from codeprior.errors import InputError
from codeprior.parts import Parts, Rows, waiting
from codeprior.tokenizers import Tokenizer

CODES = "codes.npy"
LABELS = "labels.npy"
META = "meta.json"
SKIPPED = "skipped.txt"
_PARTS = "parts"
_TOKENS_COUNTED_AT_ONCE = 1 << 24  # as int64, 134 MB


@dataclass(frozen=True, eq=False)
class CodeStore:
    """The codes of a set of images, by one tokenizer.

    `codes` is uint16 (uint32 beyond 65,536 codes), (N, A, T): N images, A views of each, T tokens in rows of a grid of
    (h, w); read-only, mapped from disk. `labels` is int64 (N,). The digests say which codebook and tokenizer the codes
    belong to, and name the store itself. `missing` are the numbers, ascending, of the bad images that were left out.
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
    missing: tuple[int, ...] = ()

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
        meta = {name: tuple(value) if isinstance(value, list) else value for name, value in meta.items()}
        return cls(codes=codes, labels=labels, digest=manifest.digest, **meta)

    def usage(self) -> np.ndarray:
        """How often each code occurs, all views counted: int64 (V,); counted once, some 3 ns a token."""
        return self._usage

    @cached_property
    def _usage(self) -> np.ndarray:
        return count_codes(self.codes, self.codebook_size)

    def image_numbers(self) -> np.ndarray:
        """Which image of the set each row is of: int64 (N,), ascending."""
        return np.setdiff1d(np.arange(len(self) + len(self.missing)), self.missing)


def count_codes(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each of the codes occurs in codes (N, A, T), a mapped array included: int64 (V,)."""
    counts = np.zeros(codebook_size, dtype=np.int64)
    n_rows = max(1, _TOKENS_COUNTED_AT_ONCE // math.prod(codes.shape[1:]))
    for start in range(0, len(codes), n_rows):
        counts += np.bincount(codes[start : start + n_rows].reshape(-1), minlength=codebook_size)
    return counts


def unigram_entropy_nats(usage: np.ndarray) -> float:
    """Entropy of the codes' frequencies, from counts (V,): what a model that only counts would score."""
    shares = usage[usage > 0] / usage.sum()
    return float(-(shares * np.log(shares)).sum())


class StoreWriter:
    """Writes a code store from rows that come in batches, from several processes if need be, each of which may die."""

    def __init__(self, tokenizer: Tokenizer, image_size: int, views: str) -> None:
        """For codes of this tokenizer, of square images of that size, in these views.

        Raises
        ------
        InputError
            If the tokenizer cannot encode images of that size.
        """
        grid = tokenizer.grid(image_size)
        self.image_size = image_size
        self.views = views
        self.codebook_size = len(tokenizer.codebook)
        self.shape = (N_VIEWS[views], math.prod(grid))
        self.meta: dict[str, Any] = {
            "grid": grid,
            "image_size": image_size,
            "views": views,
            "codebook_size": self.codebook_size,
            "codebook_digest": tokenizer.codebook.digest,
            "tokenizer_digest": tokenizer.digest,
        }
        self.dtype = np.dtype(np.uint16 if self.codebook_size <= 2**16 else np.uint32)

    def write(
        self, workspace: Workspace, n_images: int, group: int, batches: Callable[[range], Iterator[Rows]], label: str
    ) -> None:
        """Make what is missing of this process's share; `batches(run)` yields rows of `group` images at a time."""
        self.parts = Parts(workspace.path(_PARTS), n_images, self.shape, self.dtype)
        self.parts.make_share(workspace, group, batches, label)

    def finish(
        self,
        workspace: Workspace,
        read_labels: Callable[[], np.ndarray],
        class_names: Sequence[str] | None,
        skipped: Sequence[str] = (),
    ) -> None:
        """Join the parts and sign the store, if nothing is missing and no other process has done it.

        `read_labels()` gives the classes of all images; without names, they are numbered.
        """
        with workspace.alone():
            if workspace.complete or self.parts.missing(range(self.parts.n_items)):
                return
            bad, labels = self.parts.bad(), read_labels()
            if len(bad) == len(labels):
                raise InputError(f"none of the {len(labels)} images can be read")
            names = tuple(class_names or map(str, range(int(labels.max()) + 1)))
            if labels.max() >= len(names):
                raise InputError(f"there is a class {labels.max()}, but only {len(names)} class names")
            codes = self.parts.assemble(workspace.path(CODES))
            np.save(workspace.path(LABELS), np.delete(labels, list(bad)))
            write_json(workspace.path(META), {"class_names": names, **self.meta, "missing": list(bad)})
            skipped = [*skipped, *bad.values()]
            if skipped:
                workspace.path(SKIPPED).write_text("\n".join(skipped) + "\n")
            usage = count_codes(codes, self.codebook_size)
            results = {
                "n_images": len(codes),
                "n_views": codes.shape[1],
                "n_tokens": codes.shape[2],
                "codes_used": int((usage > 0).sum()),
                "codebook_size": len(usage),
                "codebook_digest": self.meta["codebook_digest"],
                "unigram_entropy_nats": unigram_entropy_nats(usage),
                "n_skipped": len(skipped),
            }
            workspace.finish([CODES, LABELS, META], results)
            self.parts.remove()

    def results(self, workspace: Workspace) -> dict[str, Any]:
        """What the store holds, or that it waits for other processes."""
        return waiting(workspace.shard) if workspace.manifest is None else workspace.manifest.results
