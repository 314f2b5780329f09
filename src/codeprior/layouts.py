"""How other projects keep codes on disk: a file an image (LlamaGen, IAR, GigaTok), or JSON lines (RAR)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from codeprior.artifact import digest_file, digest_json, digest_sampled
from codeprior.errors import InputError
from codeprior.progress import track

_FILES_DIGESTED = 64
_NAMES_SHOWN = 6
_CLASS_ID = re.compile(rb'"class_id"\s*:\s*(\d+)')


class CodeFiles(Protocol):
    """Codes of images, read one by one."""

    @property
    def digest(self) -> str:
        """Digest of the content, of a sample of it where it is large."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, number: int) -> np.ndarray:
        """Codes of one image: integers (A, T)."""

    def labels(self) -> np.ndarray:
        """Classes of all images: int64 (N,)."""


def open_code_files(source: Path, n_views: int) -> CodeFiles:
    """Open what another project wrote.

    Raises
    ------
    InputError
        If it is neither a folder with `<name>_codes` and `<name>_labels` nor a `.jsonl` file, or not complete.
    """
    if not source.exists():
        raise InputError(f"no codes at {source}: there is no such file or folder")
    return NpyCodes(source) if source.is_dir() else JsonlCodes(source, n_views)


class NpyCodes:
    """LlamaGen's, IAR's and GigaTok's: `<name>_codes/{i}.npy`, `<name>_labels/{i}.npy`, i from 0.

    Codes are (1, A, T) in LlamaGen's and IAR's, (A, T) in GigaTok's files; labels (1,) or ().
    """

    def __init__(self, folder: Path) -> None:
        names = sorted(os.listdir(folder))
        found = [name for name in names if name.endswith("_codes") and (folder / name).is_dir()]
        if len(found) != 1:
            holds = ", ".join((found or names)[:_NAMES_SHOWN]) or "nothing"
            raise InputError(
                f"{folder} must hold one folder <name>_codes, such as imagenet256_codes, or be a .jsonl file; it holds "
                f"{holds}"
            )
        self.codes_folder = folder / found[0]
        self.labels_folder = folder / f"{found[0].removesuffix('_codes')}_labels"
        if not self.labels_folder.is_dir():
            raise InputError(f"{self.labels_folder} is missing: the labels of {self.codes_folder.name}")
        self.n_images = min(_count_numbered(self.codes_folder), _count_numbered(self.labels_folder))

    def __len__(self) -> int:
        return self.n_images

    @property
    def digest(self) -> str:
        sample = np.unique(np.linspace(0, self.n_images - 1, _FILES_DIGESTED).round().astype(np.int64))
        return digest_json([self.n_images, [digest_file(self.codes_folder / f"{number}.npy") for number in sample]])

    def read(self, number: int) -> np.ndarray:
        path = self.codes_folder / f"{number}.npy"
        codes = _load(path)
        if codes.ndim == 4:
            raise InputError(
                f"{path} has shape {codes.shape}: IAR2 keeps two codes a token, of two codebooks, which a store of one "
                "codebook cannot hold"
            )
        if codes.ndim == 3 and len(codes) == 1:
            codes = codes[0]
        if codes.ndim != 2 or codes.dtype.kind not in "iu":
            raise InputError(f"{path} must hold integers (1, A, T) or (A, T), got {codes.dtype} {codes.shape}")
        return codes

    def labels(self) -> np.ndarray:
        labels = np.empty(self.n_images, dtype=np.int64)
        for number in track(range(self.n_images), "labels"):
            path = self.labels_folder / f"{number}.npy"
            label = _load(path)
            if label.size != 1 or label.dtype.kind not in "iu" or label.min() < 0:
                raise InputError(f"{path} must hold one label from 0, got {label.dtype} {label.shape}")
            labels[number] = label.item()
        return labels


class JsonlCodes:
    """RAR's: a line `{"class_id": int, "tokens": [int, ...]}` a view; an image's views follow each other."""

    def __init__(self, path: Path, n_views: int) -> None:
        self.path, self.n_views = path, n_views
        lengths, classes = [], []
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                match = _CLASS_ID.search(line)
                if match is None or not line.endswith(b"}\n"):
                    raise InputError(f'{path} line {number} is not {{"class_id": .., "tokens": [..]}}; is it complete?')
                lengths.append(len(line))
                classes.append(int(match[1]))
        if not lengths or len(lengths) % n_views:
            raise InputError(f"{path} has {len(lengths)} lines, which must be a multiple of the {n_views} views")
        self.starts = np.cumsum([0, *lengths])
        by_image = np.array(classes, dtype=np.int64).reshape(-1, n_views)
        if len(mixed := np.flatnonzero((by_image != by_image[:, :1]).any(axis=1))):
            first = int(mixed[0]) * n_views + 1
            raise InputError(f"{path}: the {n_views} lines from {first} on are of several classes, not of one image")
        self._labels = by_image[:, 0]

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def digest(self) -> str:
        return digest_sampled(self.path)

    def read(self, number: int) -> np.ndarray:
        first = number * self.n_views
        with open(self.path, "rb") as file:
            file.seek(self.starts[first])
            lines = file.read(self.starts[first + self.n_views] - self.starts[first]).splitlines()
        try:
            codes = np.array([json.loads(line)["tokens"] for line in lines])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} lines from {first + 1}: {error}") from None
        if codes.ndim != 2 or codes.dtype.kind != "i":
            raise InputError(f"{self.path} lines from {first + 1}: tokens must be integers")
        return codes

    def labels(self) -> np.ndarray:
        return self._labels


def write_npy(folders: tuple[Path, Path], number: int, codes: np.ndarray, label: int, *, leading_axis: bool) -> None:
    """Write an image's codes (A, T) and its class as LlamaGen (with a leading axis of 1) or GigaTok (without) do."""
    codes, target = codes.astype(np.int64), np.array(label, dtype=np.int64)
    np.save(folders[0] / f"{number}.npy", codes[None] if leading_axis else codes)
    np.save(folders[1] / f"{number}.npy", target[None] if leading_axis else target)


def write_jsonl(file: IO[str], codes: np.ndarray, label: int) -> None:
    """Write an image's codes (A, T) as RAR does: a line a view."""
    for view in codes.tolist():
        file.write(json.dumps({"class_id": label, "tokens": view}) + "\n")


def _count_numbered(folder: Path) -> int:
    """How many files 0.npy, 1.npy, ... a folder holds, none of them missing."""
    numbers = np.sort(np.fromiter(_numbers(folder), dtype=np.int64))
    gaps = np.flatnonzero(numbers != np.arange(len(numbers)))
    if not len(numbers) or len(gaps):
        raise InputError(f"{folder / str(gaps[0] if len(gaps) else 0)}.npy is missing; is the extraction complete?")
    return len(numbers)


def _numbers(folder: Path) -> Iterator[int]:
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, suffix = entry.name.partition(".")
            if stem.isdecimal() and dot and suffix == "npy":
                yield int(stem)


def _load(path: Path) -> np.ndarray:
    try:
        array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    return array
