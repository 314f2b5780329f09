"""The states of a run on its way: what a killed run continues from.

A state is a folder `state-00000100`: the tensors that a step changes, as safetensors, and a record of JSON values. It
is written under another name, synced and renamed, so a kill at any moment leaves the states that were whole before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codeprior.artifact import read_json
from codeprior.errors import InputError
from codeprior.tensors import read_tensors, require_fitting, write_tensors

TENSORS = "state.safetensors"
RECORD = "record.json"


def state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> dict[str, Tensor]:
    """The tensors that a step changes, by name, not copies: weights, their average if there is one, AdamW's moments.

    An optimizer that has not stepped yet gets the moments that it would begin with.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device if fused else "cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in state.items()}
    return tensors


def write_whole(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one file of a state."""
    write_tensors(folder / TENSORS, tensors)


def read_whole(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors with those of the same names from the one file of a state.

    Raises
    ------
    InputError
        If the file is damaged, or holds other names or shapes.
    """
    read, _ = read_tensors(folder / TENSORS)
    require_fitting(tensors, read, str(folder))
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(read[name])


class States:
    """The states in a run's folder, of which the newest `keep` are kept: with two, a damaged one leaves another."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep

    @property
    def whole(self) -> list[Path]:
        """The states that were finished, oldest first."""
        return sorted(self.folder.glob("state-*"))

    def load(
        self, tensors: Mapping[str, Tensor], read: Callable[[Path, Mapping[str, Tensor]], None] = read_whole
    ) -> dict[str, Any] | None:
        """Fill tensors from the newest state and give its record; None if there is no state yet.

        Raises
        ------
        InputError
            If it is damaged, with what to do about it.
        """
        if not self.whole:
            return None
        *older, newest = self.whole
        try:
            record = read_json(newest / RECORD)
            _check_sizes(newest, record["bytes"])
            read(newest, tensors)
        except InputError as error:
            then = f"continue from step {step_of(older[-1])}" if older else "begin again"
            raise InputError(f"the state {newest} cannot be used: {error}; remove it to {then}") from error
        values: dict[str, Any] = record["record"]
        return values

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write a state from this process alone; if it cannot be written, nothing of it stays."""
        try:
            write_whole(self.begin(step), tensors)
            self.commit(step, record)
        except BaseException:
            self.drop(step)
            raise

    def begin(self, step: int) -> Path:
        """Make the folder that a state is written into, by one process or several, until `commit` or `drop`."""
        self.drop(step)
        self.begun(step).mkdir()
        return self.begun(step)

    def begun(self, step: int) -> Path:
        """The folder that `begin` makes."""
        return self.folder / f".{_named(step)}.partial"

    def commit(self, step: int, record: Mapping[str, Any]) -> None:
        """Add the record, give the state its name, let older ones go."""
        begun, final = self.begun(step), self.folder / _named(step)
        sizes = {path.name: path.stat().st_size for path in begun.iterdir()}
        (begun / RECORD).write_text(json.dumps({"record": dict(record), "bytes": sizes}))
        for path in [*begun.iterdir(), begun]:
            _sync(path)
        begun.rename(final)
        _sync(self.folder)
        for older in self.whole[: -self.keep]:
            _remove(older)

    def drop(self, step: int) -> None:
        """Remove what was begun."""
        shutil.rmtree(self.begun(step), ignore_errors=True)

    def clear(self) -> None:
        """Let all go."""
        for path in self.whole:
            _remove(path)


def _check_sizes(state: Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        path = state / name
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise InputError(f"{name} has {found} bytes, {size} were written")


def step_of(state: Path) -> int:
    """The number of steps taken before a state, from its name."""
    return int(state.name.removeprefix("state-"))


def _named(step: int) -> str:
    return f"state-{step:08d}"


def _remove(state: Path) -> None:
    """Rename, then remove: what a kill leaves half removed does not look whole."""
    going = state.with_name(f".{state.name}.partial")
    shutil.rmtree(going, ignore_errors=True)
    state.rename(going)
    shutil.rmtree(going)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
