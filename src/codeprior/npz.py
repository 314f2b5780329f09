"""Arrays of an `.npz` larger than memory: mapped from disk where they are stored as they are, as `np.savez` does."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from codeprior.artifact import write_atomically
from codeprior.errors import InputError

HELD_IN_MEMORY_BYTES = 2 * 2**30


class MappedNpz(Mapping[str, np.ndarray]):
    """The arrays of an `.npz` by their names, read when asked for: mapped, or whole where they are compressed.

    Raises
    ------
    InputError
        If the file is none or damaged, or one of its arrays holds objects, or is compressed and too large to unpack.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"cannot read {path}: {_first_line(error)}; is it a complete .npz?") from error
        self._members = {name.removesuffix(".npy"): info for name, info in members.items() if name.endswith(".npy")}

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        info = self._members[name]
        try:
            stored = info.compress_type == zipfile.ZIP_STORED
            return self._map(name, info) if stored else self._unpack(name, info)
        except InputError:
            raise
        except Exception as error:  # zip, header and tokenizer errors of a damaged file
            raise InputError(f"cannot read {name} of {self.path}: {_first_line(error)}; is it complete?") from error

    def _unpack(self, name: str, info: zipfile.ZipInfo) -> np.ndarray:
        if info.file_size > HELD_IN_MEMORY_BYTES:
            size = f"{info.file_size / 1e9:.1f} GB"
            raise InputError(f"{name} of {self.path} is compressed, {size} unpacked; write it by np.savez to map it")
        with zipfile.ZipFile(self.path) as archive, archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def _map(self, name: str, info: zipfile.ZipInfo) -> np.ndarray:
        with open(self.path, "rb") as file:
            file.seek(info.header_offset + 26)  # of the local header, whose last fields are two strings' lengths
            name_length, extra_length = np.frombuffer(file.read(4), "<u2")
            file.seek(int(name_length) + int(extra_length), os.SEEK_CUR)
            major, _ = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read_header(file)
            start = file.tell()
        if dtype.hasobject:
            raise InputError(f"{name} of {self.path} holds Python objects, not numbers")
        order: Literal["C", "F"] = "F" if fortran else "C"
        if 0 in shape:
            return np.empty(shape, dtype, order)
        return np.memmap(self.path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)


class Stream(NamedTuple):
    """An array that is written as it comes: pieces of its first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]


def write_npz(path: Path, arrays: Mapping[str, np.ndarray | Stream]) -> None:
    """Write an `.npz` as `np.savez` does, atomically, and never hold a whole `Stream`."""
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                if not isinstance(array, Stream):
                    np.lib.format.write_array(file, np.asanyarray(array), version=(1, 0), allow_pickle=False)
                    continue
                header = {"descr": np.dtype(array.dtype).str, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in array.pieces:
                    file.write(np.ascontiguousarray(piece, dtype=array.dtype).tobytes())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
