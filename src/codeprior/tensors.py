"""Tensors on disk: safetensors written whole, read strictly; and the state of a training run as one such file.

A state is weights, optimizer and a record of JSON values in the file's metadata. It is replaced by one rename, so a
kill at any moment leaves the last state or the one before.
"""

from __future__ import annotations

import contextlib
import json
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

STATE = "state.safetensors"


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    record: Mapping[str, Any],
    average: nn.Module | None = None,
) -> None:
    """Write the state of a training run, as one file by one rename: weights, optimizer, a record of JSON values.

    `average` is a model of the same weights, averaged over the steps, where there is one.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = tensor
    save_tensors(path, tensors, metadata={"record": json.dumps(dict(record))})


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> dict[str, Any]:
    """Continue from a state that `save_state` wrote: fills model, optimizer and average, gives the record.

    Raises
    ------
    InputError
        If the file is damaged, or of another model.
    """
    tensors, metadata = read_tensors(path)
    load_strictly(model, _below(tensors, "model."), str(path))
    if average is not None:
        load_strictly(average, _below(tensors, "average."), str(path))
    flat = _below(tensors, "optimizer.")
    index_of = {id(parameter): index for index, parameter in enumerate(_parameters(optimizer))}
    state = {index_of[id(parameter)]: _below(flat, f"{name}.") for name, parameter in model.named_parameters()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads(metadata["record"])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically."""
    with write_atomically(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        if metadata:
            sort_metadata(temporary)


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
    problems = {
        "missing": expected.keys() - tensors.keys(),
        "unexpected": tensors.keys() - expected.keys(),
        "of another shape": {n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape},
    }
    if any(problems.values()):
        details = "; ".join(f"{problem}: {_list(names)}" for problem, names in problems.items() if names)
        raise InputError(f"{what} does not fit its model ({details})")
    if assign:
        tensors = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=assign)


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


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
