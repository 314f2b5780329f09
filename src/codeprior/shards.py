"""Shares of work for processes that do not talk to each other: which of them this is, which items are its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from codeprior.errors import InputError

_alone = ContextVar("alone", default=False)


@dataclass(frozen=True)
class Shard:
    """This process among those that share a piece of work; alone unless said otherwise."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise InputError(f"RANK must be between 0 and WORLD_SIZE - 1, got rank {self.rank} of {self.size}")

    @classmethod
    def from_environment(cls) -> Shard:
        """Read RANK and WORLD_SIZE, which `torchrun` and most cluster launchers set; alone where they are not.

        Raises
        ------
        InputError
            If only one of them is set, or they are not numbers that fit together.
        """
        values = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if _alone.get() or values == (None, None):
            return cls()
        try:
            rank, size = (int(value) for value in values)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise InputError(f"RANK and WORLD_SIZE must both be numbers, got {values[0]} and {values[1]}") from None
        return cls(rank, size)

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    def of(self, n_items: int) -> range:
        """This process's run of `range(n_items)`.

        The runs of all ranks, one after the other, are the whole; their lengths differ by one at most.
        """
        return range(n_items * self.rank // self.size, n_items * (self.rank + 1) // self.size)


@contextlib.contextmanager
def working_alone() -> Iterator[None]:
    """Let what is called share its work with nobody: for work that is shared out in larger pieces."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)
