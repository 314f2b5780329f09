"""Codebook: the code vectors of a tokenizer, checked and named by their digest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from codeprior.artifact import digest_array, is_artifact, read_manifest
from codeprior.errors import InputError
from codeprior.families import find_codebook, find_counts
from codeprior.hub import is_on_hub
from codeprior.machine import require_memory
from codeprior.own import call_own, is_own
from codeprior.weights import SUFFIXES, is_checkpoint, open_checkpoint


@dataclass(frozen=True)
class Origin:
    """Where a codebook was found, and what its file or its family says of the space in which codes are compared."""

    key: str = ""
    wrapper: str = ""
    family: str | None = None
    projected: bool = False
    note: str = ""
    question: str = ""
    """Asks for the space where nothing tells it; empty where something does."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """The V code vectors of a tokenizer.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32
        One row a code, as the tokenizer stores them (behind its projection, if it compares projected rows).
    normalize : bool
        Whether the tokenizer compares codes after l2-normalising them, as LlamaGen's does; it decides the space in
        which the codebook is clustered, not what is stored.
    origin : Origin, optional
        Where the vectors were found.

    Raises
    ------
    InputError
        If `vectors` is not a non-empty matrix of finite numbers.
    """

    vectors: np.ndarray
    normalize: bool = False
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors)
        if vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind not in "fiu":
            raise InputError(f"a codebook is a matrix of numbers, one row a code; got {vectors.dtype} {vectors.shape}")
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            raise InputError(
                f"codebook has {bad.size} non-finite vectors, first at index {bad[0]}; is the checkpoint complete?"
            )
        object.__setattr__(self, "vectors", vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def digest(self) -> str:
        """Digest of the stored vectors, by which priors, codes and checkpoints name their codebook."""
        return digest_array(self.vectors)

    @property
    def space(self) -> np.ndarray:
        """The vectors in the space that the quantizer uses: (V, E) float32, of unit length if `normalize`.

        Raises
        ------
        InputError
            If nothing tells what that space is, or a vector that should have a direction is zero.
        """
        if self.origin.question:
            raise InputError(self.origin.question)
        if not self.normalize:
            return self.vectors
        norms = np.linalg.norm(self.vectors.astype(np.float64), axis=1, keepdims=True)
        if not norms.all():
            row = int(np.flatnonzero(norms == 0)[0])
            raise InputError(f"code {row} is the zero vector and has no direction; use --no-normalize")
        return (self.vectors / norms).astype(np.float32)

    @property
    def n_untouched(self) -> int:
        """Codes that still lie where training starts them, within 1/V of the origin in every coordinate.

        So taming, VAR, MaskGIT and others initialise their codebooks; a code that was ever used has left that box.
        """
        return int((np.abs(self.vectors).max(axis=1) <= 1 / len(self)).sum())

    @property
    def space_name(self) -> str:
        """The space in words: raw, normalised, projected, or projected and then normalised."""
        words = ["projected"] * self.origin.projected + ["normalised"] * self.normalize
        return "unknown" if self.origin.question else ", then ".join(words) or "raw"

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        normalize: bool | None = None,
        family: str | None = None,
        key: str | None = None,
    ) -> Codebook:
        """Read a codebook: of a tokenizer folder of ours, anybody's checkpoint, a tokenizer of your own; an array.

        Parameters
        ----------
        path : path or str
            Checkpoints are `.pt`, `.pth`, `.ckpt`, `.bin` and `.safetensors` files, Hugging Face folders, and
            `hf:owner/name[/file]`. A `.npz` must hold one matrix, or one under `quantize.embedding.weight`.
            `package.module:function` and `file.py:function` name a tokenizer of your own.
        normalize : bool, optional
            Overrides what the file or its family says. Arrays say nothing and are taken as they are; of a checkpoint
            that says nothing, `space` cannot be had without this or `family`.
        family : str, optional
            A name of `families.FAMILIES`, where the checkpoint does not tell it.
        key : str, optional
            Name of the codebook, where the checkpoint holds several.

        Raises
        ------
        InputError
            If the source is absent, unreadable, or holds no codebook or several, or does not fit family or key.
        """
        origin, told = Origin(), False
        is_ours = is_artifact(path)
        if (family is not None or key is not None) and (is_ours or not is_checkpoint(path)):
            raise InputError(f"family and key choose within other people's checkpoints; {path} is none")
        if is_own(path):
            own: Codebook = call_own(path).codebook
            return own if normalize is None else cls(own.vectors, normalize, own.origin)
        if is_ours:
            manifest = read_manifest(path, "tokenizer")
            found = find_codebook(open_checkpoint(manifest.path("model.safetensors")))
            matrix, told, origin = found.vectors, True, Origin(found.key)
        elif is_checkpoint(path):
            found = find_codebook(open_checkpoint(path), family, key)
            question = found.question if normalize is None else ""
            origin = Origin(found.key, found.wrapper, found.family, found.projected, found.note, question)
            matrix, told = found.vectors, bool(found.normalize)
        else:
            matrix = _read_matrix(Path(path))
        return cls(matrix, normalize=told if normalize is None else normalize, origin=origin)


def _read_matrix(path: Path) -> np.ndarray:
    readers = {".npy": _read_npy, ".npz": _read_npz}
    if not path.exists():
        raise InputError(f"no such file: {path}")
    if path.suffix not in readers:
        allowed = ", ".join((*readers, *SUFFIXES))
        raise InputError(f"cannot read a codebook from {path.name}; give {allowed} or a folder")
    try:
        return readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # the readers raise a dozen types for a damaged file
        raise InputError(f"cannot read {path}: {error}; is the file complete?") from error


def _read_npy(path: Path) -> np.ndarray:
    require_memory(3 * path.stat().st_size, f"the codebook {path}")
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> np.ndarray:
    require_memory(3 * path.stat().st_size, f"the codebook {path}")
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if arrays[name].ndim == 2]
        names = [name for name in names if name.endswith("quantize.embedding.weight")] or names
        if not names:
            raise InputError(f"{path} holds no matrix that could be a codebook")
        if len(names) > 1:
            raise InputError(f"{path} holds several matrices: {', '.join(names[:8])}; save the codebook alone as .npy")
        return arrays[names[0]]


def read_counts(path: Path | str, key: str = "") -> np.ndarray:
    """Read how often each code is used: a `.npy` of counts, or a checkpoint that keeps them beside its codebook.

    Parameters
    ----------
    path : path or str
        Checkpoints keep `cluster_size` (moving averages of EMA codebooks) or `ema_vocab_hit_SV` (VAR, summed over its
        scales).
    key : str, optional
        The codebook's name, where a checkpoint holds counts of several.

    Returns
    -------
    counts : ndarray of shape (V,), int64
        Moving averages are rounded up, so that only codes never used count as dead.

    Raises
    ------
    InputError
        If the file is absent or unreadable or holds no counts.
    """
    if not is_on_hub(path) and not Path(path).exists():
        raise InputError(f"no usage counts at {path}: there is no such file")
    counts = np.squeeze(find_counts(open_checkpoint(path), key) if is_checkpoint(path) else _read_array(Path(path)))
    if counts.ndim != 1 or counts.dtype.kind not in "iuf" or not ((counts >= 0) & (counts < 2**53)).all():
        raise InputError(f"{path} must hold counts of 0 or more, one a code; got {counts.dtype} {counts.shape}")
    return np.ceil(counts).astype(np.int64)


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # as in _read_matrix
        raise InputError(f"cannot read counts from {path}: {error}; is it a complete .npy file?") from error
