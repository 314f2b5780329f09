"""Processes that train, alone or several together, and what can happen to them: SIGKILL, SIGTERM, a full disk."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

# A server imports torch once, and what an optimizer imports when it is made; its children are forked from it, free of
# this process's threads.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *["codeprior.cli", "codeprior.training.loop", "tyro", "torch._dynamo"],
        *["torch.distributed.fsdp", "torch.distributed.checkpoint"],
    ]
)


@dataclass(frozen=True)
class Fate:
    """What happens to the processes; to the main one where only one can be meant."""

    killed_after_s: float | None = None
    """SIGKILL, all of them, so many seconds after the first step."""
    killed_in_write: tuple[int, float] | None = None
    """SIGKILL in the n-th write of a state (from 1), when this share of the file is written."""
    terminated_at_step: int | None = None
    """SIGTERM, as a step is taken."""
    largest_file_bytes: int | None = None
    """No file can grow beyond it."""
    truncates: tuple[int, Path] | None = None
    """A file that is cut short, by somebody else, before a step."""


UNBROKEN = Fate()


def train(arguments: Sequence[str], size: int = 1, fate: Fate = UNBROKEN, said: Path | None = None) -> list[int]:
    """Run `codeprior train` in processes, until the first one fails, as `torchrun` does; how each ended.

    `said` is a file that gets what the processes write to standard error.
    """
    begun = _CONTEXT.Event()
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # held here, as torchrun does
    crew = [
        _CONTEXT.Process(target=_work, args=(list(arguments), rank, size, meeting.port, fate, begun, said))
        for rank in range(size)
    ]
    for process in crew:
        process.start()
    if fate.killed_after_s is not None:
        while not begun.wait(0.005) and all(process.is_alive() for process in crew):
            pass
        time.sleep(fate.killed_after_s)
        _kill(crew)
    while any(process.exitcode is None for process in crew):
        wait([process.sentinel for process in crew if process.exitcode is None])
        if any((process.exitcode or 0) not in (0, 2, 130, 143) for process in crew):  # the others were told of these
            _kill(crew)
    return [process.exitcode or 0 for process in crew]


def _kill(crew: Sequence[Any]) -> None:
    for process in crew:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _work(arguments: list[str], rank: int, size: int, port: int, fate: Fate, begun: Any, said: Path | None) -> None:
    from codeprior.cli import main
    from codeprior.states import States

    os.environ["CODEPRIOR_PROGRESS"] = "0"
    if size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    stream = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    States.clear = lambda states: None  # the last state, with the optimizer's, is compared too
    _meet(fate, rank, begun)
    sys.exit(main(["train", *arguments]))


def _meet(fate: Fate, rank: int, begun: Any) -> None:
    from codeprior import states
    from codeprior.training import optimizer

    write, rate, n_writes = states.write_tensors, optimizer.learning_rate, [0]

    def watched_write(path: Path, tensors: Any) -> None:
        n_writes[0] += 1
        write(path, tensors)
        if fate.killed_in_write is not None and fate.killed_in_write[0] == n_writes[0]:
            os.truncate(path, int(path.stat().st_size * fate.killed_in_write[1]))
            os.kill(os.getpid(), signal.SIGKILL)

    def watched_rate(step: int, config: Any) -> float:
        begun.set()
        if fate.terminated_at_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        if fate.truncates is not None and fate.truncates[0] == step and rank == 0:
            os.truncate(fate.truncates[1], 256)
        return rate(step, config)

    states.write_tensors, optimizer.learning_rate = watched_write, watched_rate
    if fate.largest_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fate.largest_file_bytes, fate.largest_file_bytes))
