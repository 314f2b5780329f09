"""Tensors on disk: safetensors written whole, read strictly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codeprior.artifact import digest_bytes, digest_json, sort_metadata, write_atomically
from codeprior.errors import InputError
from codeprior.pickles import StoredTensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically."""
    with write_atomically(path) as temporary:
        write_tensors(temporary, tensors, metadata)
        if metadata:
            sort_metadata(temporary)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors.

    Raises
    ------
    OSError
        If the disk is full, or the file cannot be written for another reason.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; is the file complete?") from error


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Digest of tensors of any dtype, by their names."""
    return digest_json({name: _digest(tensor) for name, tensor in tensors.items()})


def _digest(tensor: Tensor) -> str:
    bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return digest_bytes(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), bits.tobytes())


def read_stored(stored: StoredTensor) -> Tensor:
    """A tensor of anybody's file, in the dtype that it has there, bit for bit.

    Raises
    ------
    InputError
        If the file ends before the tensor does, or torch has no such dtype.
    """
    dtype = getattr(torch, stored.storage.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"{stored.storage.path} stores a tensor as {stored.storage.dtype}, which torch does not know")
    return torch.from_numpy(np.ascontiguousarray(stored.bits())).view(dtype)


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], what: str, *, assign: bool = False) -> None:
    """Fill a model's weights; every name and shape must fit.

    With `assign` the tensors become the model's, in its dtypes; it may have been made `on_meta`.

    Raises
    ------
    InputError
        Naming what is missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    require_fitting(expected, tensors, what)
    if assign:
        tensors = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=assign)


def require_fitting(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that have not the expected names and shapes.

    Raises
    ------
    InputError
        Naming what is missing, unexpected or of another shape.
    """
    problems = {
        "missing": expected.keys() - tensors.keys(),
        "unexpected": tensors.keys() - expected.keys(),
        "of another shape": {n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape},
    }
    if any(problems.values()):
        details = "; ".join(f"{problem}: {_list(names)}" for problem, names in problems.items() if names)
        raise InputError(f"{what} does not fit its model ({details})")


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Make models of names and shapes alone, which `load_strictly(..., assign=True)` gives their numbers."""
    with torch.device("meta"), _WithoutNumbers():
        yield


class _WithoutNumbers(TorchFunctionMode):
    """Leaves out first numbers: on the meta device, making none of them imports torch's compiler, 1 to 3 s."""

    _FILLS = ("normal_", "trunc_normal_", "uniform_", "normalize")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
