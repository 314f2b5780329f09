"""Codebook: the code vectors of a tokenizer, checked and named by their digest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from codeprior.artifact import digest_array, read_manifest
from codeprior.errors import InputError

FAMILY_KEY = "quantize.embedding.weight"


@dataclass(frozen=True, eq=False)
class Codebook:
    """The V code vectors of a tokenizer.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32
        One row a code, as the tokenizer stores them.
    normalize : bool
        Whether the tokenizer compares codes after l2-normalising them, as LlamaGen's does; it decides the space in
        which the codebook is clustered, not what is stored.

    Raises
    ------
    InputError
        If `vectors` is not a non-empty matrix of finite numbers.
    """

    vectors: np.ndarray
    normalize: bool = False

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
        """The vectors in the space that the quantizer uses: (V, E) float32, of unit length if `normalize`."""
        if not self.normalize:
            return self.vectors
        norms = np.linalg.norm(self.vectors.astype(np.float64), axis=1, keepdims=True)
        if not norms.all():
            row = int(np.flatnonzero(norms == 0)[0])
            raise InputError(f"code {row} is the zero vector and has no direction; use --no-normalize")
        return (self.vectors / norms).astype(np.float32)

    @classmethod
    def load(cls, path: Path | str, *, normalize: bool | None = None) -> Codebook:
        """Read a codebook from a `.npy`, `.npz`, `.safetensors` or a tokenizer folder of ours.

        Parameters
        ----------
        path : path
            A `.npz` or `.safetensors` file must hold one matrix, or one under `quantize.embedding.weight`.
        normalize : bool, optional
            Overrides what the file says; files that say nothing are taken as they are.

        Raises
        ------
        InputError
            If the file is absent, unreadable, or holds no codebook or several.
        """
        path = Path(path)
        if path.is_dir():
            manifest = read_manifest(path, "tokenizer")
            matrix, stored_normalize = _read_matrix(manifest.path("model.safetensors")), True
        elif not path.exists():
            raise InputError(f"no such file: {path}")
        else:
            matrix, stored_normalize = _read_matrix(path), False
        return cls(matrix, normalize=stored_normalize if normalize is None else normalize)


def _read_matrix(path: Path) -> np.ndarray:
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        allowed = ", ".join(readers)
        raise InputError(f"cannot read a codebook from {path.name}; give {allowed} or a tokenizer folder of codeprior")
    try:
        return readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # the readers raise a dozen types for a damaged file
        raise InputError(f"cannot read {path}: {error}; is the file complete?") from error


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[_choose_key(path, [name for name in arrays.files if arrays[name].ndim == 2])]


def _read_safetensors(path: Path) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:
        matrices = [name for name in tensors.keys() if len(tensors.get_slice(name).get_shape()) == 2]  # noqa: SIM118
        return tensors.get_tensor(_choose_key(path, matrices))


def _choose_key(path: Path, names: list[str]) -> str:
    named = [name for name in names if name == FAMILY_KEY or name.endswith(f".{FAMILY_KEY}")]
    candidates = named or names
    if not candidates:
        raise InputError(f"{path} holds no matrix that could be a codebook")
    if len(candidates) > 1:
        raise InputError(f"{path} holds several matrices: {', '.join(candidates[:8])}; save the codebook alone as .npy")
    return candidates[0]


def read_counts(path: Path | str) -> np.ndarray:
    """Read how often each code is used: a `.npy` of counts, or a `.safetensors` with one tensor `cluster_size`.

    Returns
    -------
    counts : ndarray of shape (V,), int64
        Moving averages, as EMA codebooks keep them, are rounded up, so that only codes never used count as dead.

    Raises
    ------
    InputError
        If the file is absent or unreadable or holds no counts.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no usage counts at {path}: there is no such file")
    try:
        counts = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _read_cluster_size(path)
    except InputError:
        raise
    except Exception as error:  # as in _read_matrix
        raise InputError(f"cannot read counts from {path}: {error}; is it a complete .npy file?") from error
    counts = np.squeeze(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iuf" or not np.isfinite(counts).all() or (counts < 0).any():
        raise InputError(f"{path} must hold counts of 0 or more, one a code; got {counts.dtype} {counts.shape}")
    return np.ceil(counts).astype(np.int64)


def _read_cluster_size(path: Path) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:
        names = [name for name in tensors.keys() if name.split(".")[-1] == "cluster_size"]  # noqa: SIM118
        if len(names) != 1:
            raise InputError(f"{path} must hold one tensor `cluster_size`, has {len(names)}")
        return tensors.get_tensor(names[0])
