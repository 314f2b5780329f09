"""Torch's pickled checkpoints, read lazily and without running anything.

A pickle is a program: `torch.load` runs it. Here it is read with a door that opens for a short list of builders only:
tensors become descriptions of where their numbers lie (`StoredTensor`), plain containers are themselves, and any other
object (argparse.Namespace, what Lightning and omegaconf leave behind) becomes an inert `Leftover`. A pickle that wants
to call anything else is refused by name. Formats: the zip archives of torch >= 1.6 and the streams before them.
"""

from __future__ import annotations

import _compat_pickle
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from codeprior.errors import InputError
from codeprior.machine import require_memory

# What numbers of each torch dtype look like in a file, little-endian; bfloat16 is the upper half of a float32.
DTYPES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8", "int32": "<i4",
    "int16": "<i2", "int8": "i1", "uint8": "u1", "bool": "?", "complex64": "<c8", "complex128": "<c16",
    "float8_e4m3fn": "u1", "float8_e5m2": "u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64", "UntypedStorage": "uint8",
    "ComplexDoubleStorage": "complex128", "Float8_e4m3fnStorage": "float8_e4m3fn", "Float8_e5m2Storage": "float8_e5m2",
}  # fmt: skip
_CONTAINERS = {"dict": dict, "list": list, "tuple": tuple, "set": set, "frozenset": frozenset}

# The standard library's names that honest checkpoints carry; they become leftovers, any other of its names is refused.
_HARMLESS = {
    "argparse.Namespace", "types.SimpleNamespace", "functools.partial", "copyreg._reconstructor", "_codecs.encode",
    "uuid.UUID", "decimal.Decimal", "fractions.Fraction", "random.Random", "re._compile", "collections.defaultdict",
    "collections.Counter", "collections.deque", "collections.ChainMap", "collections.UserDict", "enum.Enum",
    *(f"builtins.{name}" for name in (
        "object", "type", "int", "float", "str", "bool", "bytes", "complex", "range", "slice", "bytearray", "getattr",
        "NoneType", "Ellipsis")),
}  # fmt: skip
_HARMLESS_ROOMS = ("pathlib", "datetime", "typing", "zoneinfo")
# Functions of other packages that honest checkpoints call: they rebuild values, and here do nothing.
_HARMLESS_CALLS = (
    "torch._utils.", "torch._tensor.", "torch.Size", "torch.device", "torch.serialization._get_layout",
    "torch.storage.", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.", "numpy._core.multiarray.",
    "numpy.random._pickle.", "omegaconf.",
)  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Storage(NamedTuple):
    """A run of `size` numbers of one dtype in a file, starting at byte `locate()`."""

    path: Path
    dtype: str
    size: int
    locate: Callable[[], int]


class StoredTensor(NamedTuple):
    """A tensor that is still in its file: a view of a storage; offset and strides count numbers, as torch's do."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The numbers, and nothing else of the file: floats as float32 (bfloat16 exactly), integers as they are.

        Raises
        ------
        InputError
            If the file ends before the tensor does, or its dtype is one that NumPy cannot hold.
        """
        if self.storage.dtype not in DTYPES or self.storage.dtype.startswith("float8"):
            raise InputError(f"{self.storage.path} stores a tensor as {self.storage.dtype}, which cannot be read here")
        values = self.bits()
        if self.storage.dtype == "bfloat16":
            return (values.astype("<u4") << 16).view("<f4")
        return values.astype(np.float32 if values.dtype.kind == "f" else values.dtype)

    def bits(self) -> np.ndarray:
        """The numbers as the file holds them: those of dtypes that NumPy lacks as integers of the same width.

        Raises
        ------
        InputError
            If the file ends before the tensor does, or the dtype is unknown.
        """
        if self.storage.dtype not in DTYPES:
            raise InputError(f"{self.storage.path} stores a tensor as {self.storage.dtype}, which cannot be read here")
        kind = np.dtype(DTYPES[self.storage.dtype])
        if 0 in self.shape:
            return np.zeros(self.shape, kind)
        extent = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        start = self.storage.locate() + self.offset * kind.itemsize
        if start + extent * kind.itemsize > self.storage.path.stat().st_size:
            raise InputError(f"{self.storage.path} is cut off: it ends inside a tensor; download it again")
        require_memory(3 * extent * kind.itemsize, f"a tensor of {self.storage.path}")
        flat = np.fromfile(self.storage.path, kind, extent, offset=start)
        strides = tuple(step * kind.itemsize for step in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides)


class _Named(type):
    """Class of the leftovers' classes: calling one is what a pickle's REDUCE does, and only here could code run."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        name = cls.__qualname__
        if not name.rpartition(".")[2].lstrip("_")[:1].isupper() and not _may_call(name):
            raise _CallError(printable(name))
        return Leftover.__new__(cls, *arguments, **options)  # type: ignore[arg-type]


class Leftover(metaclass=_Named):
    """An object of a class that is not read: the name of its class in the type's `__qualname__`, its state as data."""

    state: Any

    def __new__(cls, *arguments: Any, **options: Any) -> Leftover:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(self.state, dict):
            self.state[key] = value

    def __call__(self, *arguments: Any, **options: Any) -> Leftover:
        return Leftover.__new__(Leftover)

    def append(self, item: Any) -> None:
        """Forget the item."""

    add = extend = append


def printable(name: str) -> str:
    """A name out of somebody's file, fit for a message: line ends and control codes of terminals escaped."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


class _CallError(InputError):
    """The name of what a pickle wants to call."""


def _may_call(name: str) -> bool:
    return name in _HARMLESS or name.startswith(_HARMLESS_CALLS) or name.partition(".")[0] in _HARMLESS_ROOMS


class _Builder:
    """A function of ours that a pickle may call, and do nothing else with (a state set on it is ignored)."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild_tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2: check that the view lies inside its storage."""
    shape, strides = tuple(shape), tuple(strides)
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise InputError("a tensor is described by something else than sizes")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise InputError("a tensor reaches past the end of its storage")
    return StoredTensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(storage: Storage, offset: int, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    """The same over an untyped storage, counted in bytes; the dtype comes last."""
    dtype = getattr(rest[-1], "__qualname__", "").rpartition(".")[2]
    size = storage.size // np.dtype(DTYPES.get(dtype, "u1")).itemsize
    return _rebuild_tensor(storage._replace(dtype=dtype, size=size), offset, shape, strides)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": lambda function, _type, arguments, _state: function(*arguments),
}


class _Reader(pickle.Unpickler):
    """An unpickler whose every name comes from the lists above."""

    def __init__(self, file: Any, find_storage: Callable[[str, str, int], Storage]) -> None:
        super().__init__(file, encoding="latin1")  # as torch.load reads what Python 2 wrote
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        module, name = _as_named_today(module, name)
        full = f"{module}.{name}"
        if full in _BUILDERS:
            return _Builder(_BUILDERS[full])
        if full == "collections.OrderedDict":
            return OrderedDict
        if module == "builtins" and name in _CONTAINERS:
            return _CONTAINERS[name]
        room = module.partition(".")[0]
        if room in sys.stdlib_module_names and full not in _HARMLESS and room not in _HARMLESS_ROOMS:
            raise _CallError(printable(full))
        return _Named(name, (Leftover,), {"__qualname__": full})

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]  # a class, with its source behind it
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            return Leftover.__new__(Leftover)
        dtype = _STORAGES.get(getattr(pid[1], "__qualname__", "").rpartition(".")[2])
        if dtype is None or (len(pid) > 5 and pid[5] is not None):
            raise InputError("one of its storages is of an unknown kind")
        return self._find_storage(dtype, str(pid[2]), int(pid[4]))


def _as_named_today(module: str, name: str) -> tuple[str, str]:
    """Names of the standard library as torch's protocol writes them, for Python 2: `commands` is `subprocess`."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[module, name]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


def read_pickled(path: Path) -> Any:
    """Read the tree that `torch.save` wrote: dicts, lists and numbers, with tensors still in the file.

    Returns
    -------
    tree : object
        What was saved; tensors are `StoredTensor`, objects of classes that are not read are `Leftover`.

    Raises
    ------
    InputError
        If the file is not torch's, is cut off, or wants to call something; nothing of it is ever run.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_zip(path)
            file.seek(0)
            if file.read(2) == b"PK":
                raise InputError(f"{path} is cut off: its end is missing; download it again")
            file.seek(0)
            return _read_stream(path, file)
    except _CallError as refused:
        raise InputError(
            f"{path} is a pickle that calls {refused} when it is loaded; nothing was run. "
            "Do not trust it; ask its author for a .safetensors file"
        ) from None
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path} is damaged: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} is not a checkpoint that torch wrote, or is cut off ({printable(what)})") from None


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = [name for name in names if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise InputError(f"{path} is a zip archive without torch's data.pkl")
        root = pickled[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise InputError(f"{path} is a TorchScript program; save its state_dict and give that")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise InputError(f"{path} was written on a big-endian machine; save it again on a common one")
        if archive.getinfo(pickled[0]).compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{path} was compressed after torch wrote it; save it again with torch")

        def find_storage(dtype: str, key: str, size: int) -> Storage:
            entry = archive.getinfo(f"{root}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < size * np.dtype(DTYPES[dtype]).itemsize:
                raise InputError(f"its part {entry.filename} is shorter than what it should hold")
            return Storage(path, dtype, size, partial(_data_start, path, entry.header_offset))

        return _Reader(io.BytesIO(archive.read(pickled[0])), find_storage).load()


def _data_start(path: Path, header_offset: int) -> int:
    """Where an entry's bytes begin: past its local header, whose name and extra fields have lengths of their own."""
    with open(path, "rb") as file:
        file.seek(header_offset)
        header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise InputError(f"{path} is damaged: an entry is not where its table of contents says")
    return header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _read_stream(path: Path, file: BinaryIO) -> Any:
    """Torch's format before 1.6: magic, version, machine, the tree, the storages' keys, then each storage."""
    dtypes: dict[str, str] = {}
    starts: dict[str, int] = {}

    def find_storage(dtype: str, key: str, size: int) -> Storage:
        dtypes[key] = dtype
        return Storage(path, dtype, size, partial(starts.__getitem__, key))

    def load() -> Any:
        return _Reader(file, find_storage).load()

    if load() != _LEGACY_MAGIC:
        raise InputError(f"{path} is a pickle, but not one of torch.save; save it as .safetensors")
    load(), load()
    tree = load()
    keys = load()
    size_of_file = os.fstat(file.fileno()).st_size
    for key in keys:
        size = int.from_bytes(file.read(8), "little")
        starts[str(key)] = file.tell()
        if file.seek(size * np.dtype(DTYPES[dtypes[str(key)]]).itemsize, os.SEEK_CUR) > size_of_file:
            raise InputError(f"{path} is cut off: it ends inside a tensor; download it again")
    if missing := set(dtypes) - set(starts):
        raise InputError(f"its list of storages lacks {printable(min(missing))}")
    return tree
