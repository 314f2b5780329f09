"""Captions as the features that a text encoder made of them: what a text-conditional transformer begins with.

Shapes: B captions, P slots, C numbers a token. LlamaGen's are flan-t5-xl's: 120 slots of 2048.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codeprior.artifact import digest_array, digest_json
from codeprior.errors import InputError


@dataclass(frozen=True, eq=False)
class Captions:
    """Features of captions, padded at the left with zeros to as many slots as the transformer has.

    Raises
    ------
    InputError
        If the shapes do not fit together, or a caption has no token or more than there are slots.
    """

    features: Tensor
    """(B, P, C) float32; the last `lengths` slots of each are its tokens."""
    lengths: Tensor
    """(B,) int64, 1 to P."""

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or self.lengths.shape != self.features.shape[:1]:
            shapes = f"{tuple(self.features.shape)} and {tuple(self.lengths.shape)}"
            raise InputError(f"captions are features (B, P, C) and lengths (B,), got {shapes}")
        n_slots = self.features.shape[1]
        if len(self) and not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= n_slots:
            raise InputError(f"a caption must have 1 to {n_slots} tokens, got {self.lengths.tolist()[:8]}")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def padding(self) -> Tensor:
        """How many slots before each caption's first token are empty: (B,) int64."""
        return self.features.shape[1] - self.lengths

    def take(self, indices: Tensor) -> Captions:
        """Captions at these indices."""
        return Captions(self.features[indices], self.lengths[indices])

    def to(self, device: torch.device) -> Captions:
        """The same on a device."""
        return Captions(self.features.to(device), self.lengths.to(device))


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """Captions out of files: the features of each, (L, C) with its own L, and how it is called."""

    rows: tuple[np.ndarray, ...]
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of all features."""
        return digest_json([digest_array(row) for row in self.rows])

    def padded(self, n_slots: int, width: int) -> Captions:
        """Padded at the left; of longer captions the first `n_slots` tokens, as in LlamaGen's training.

        Raises
        ------
        InputError
            If the features are not `width` wide.
        """
        features = torch.zeros(len(self.rows), n_slots, width)
        lengths = torch.tensor([min(len(row), n_slots) for row in self.rows])
        for number, (row, length) in enumerate(zip(self.rows, lengths.tolist(), strict=True)):
            if row.shape[1] != width:
                raise InputError(f"caption {number} has features of {row.shape[1]} numbers, the model takes {width}")
            features[number, n_slots - length :] = torch.from_numpy(row[:length])
        return Captions(features, lengths)


def read_captions(path: Path | str) -> CaptionSet:
    """Read features of captions, which a text encoder made before.

    Parameters
    ----------
    path : path or str
        A `.npy` of shape (N, L, C) or (L, C); a folder of such, as LlamaGen's `extract_t5_feature.py` writes them
        (`0.npy`, `1.npy`, ...: in the order of their numbers); or a `.npz` with `features` (N, L, C) and, where the
        captions have different lengths, `mask` (N, L), 1 at their tokens: a text encoder's attention mask. `captions`
        (N,) may hold the texts.

    Raises
    ------
    InputError
        If there is nothing at the path, or something else.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.npy"), key=lambda file: (len(file.stem), file.stem))
        if not files:
            raise InputError(f"{path} holds no captions (.npy files of features)")
        found = [row for file in files for row in _rows(_load(file), None, file)]
        return CaptionSet(tuple(found), tuple(map(str, range(len(found)))))
    if not path.is_file():
        raise InputError(f"no captions at {path}: there is no such file or folder")
    if path.suffix == ".npz":
        return _read_npz(path)
    rows = _rows(_load(path), None, path)
    return CaptionSet(tuple(rows), tuple(map(str, range(len(rows)))))


def _read_npz(path: Path) -> CaptionSet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files if name in ("features", "mask", "captions")}
    except Exception as error:  # NumPy raises a dozen types for a damaged file
        raise InputError(f"cannot read captions from {path}: {error}; is the file complete?") from None
    if "features" not in found:
        raise InputError(f"{path} must hold `features` (N, L, C), and `mask` (N, L) where lengths differ")
    rows = _rows(found["features"], found.get("mask"), path)
    names = found.get("captions", np.arange(len(rows)))
    if names.shape != (len(rows),):
        raise InputError(f"{path} has {len(rows)} features, but captions of shape {names.shape}")
    return CaptionSet(tuple(rows), tuple(map(str, names)))


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # as above
        raise InputError(f"cannot read captions from {path}: {error}; is it a complete .npy file?") from None


def _rows(features: np.ndarray, mask: np.ndarray | None, path: Path) -> list[np.ndarray]:
    """The tokens of each caption, float32, without padding on either side."""
    features = features[None] if features.ndim == 2 else features
    if features.ndim != 3 or 0 in features.shape or features.dtype.kind != "f":
        raise InputError(f"{path} must hold features (N, L, C) of floats, got {features.dtype} {features.shape}")
    if mask is None:
        mask = np.ones(features.shape[:2])
    if mask.shape != features.shape[:2]:
        raise InputError(f"{path} has features {features.shape}, but a mask {mask.shape}; it must be (N, L)")
    rows = [row[kept].astype(np.float32) for row, kept in zip(features, mask.astype(bool), strict=True)]
    if bad := [number for number, row in enumerate(rows) if not len(row) or not np.isfinite(row).all()]:
        raise InputError(f"caption {bad[0]} of {path} has no token, or numbers that are not finite")
    return rows
