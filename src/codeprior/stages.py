"""Calls of verbs that need each other's results, worked off side by side in processes of one thread each.

Every call leaves a checked artifact, so a second run redoes only what is missing or whose settings or inputs changed,
and a killed one continues.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from threading import Thread
from typing import Any

from codeprior.config import VerbConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.machine import available_threads
from codeprior.progress import announce


@dataclass(frozen=True)
class Stage:
    """One call of a verb; `seconds` is what it takes on one CPU core, for the estimate of what remains."""

    name: str
    verb: Callable[[Any], dict[str, Any]]
    config: VerbConfig
    seconds: float


Chain = list[Stage]
"""Stages of which each needs the one before."""
Phase = list[Chain]
"""Chains that do not need each other, worked off side by side; each phase needs the one before."""


def run(phases: list[Phase], device: str, what: str) -> dict[str, dict[str, Any]]:
    """Work the phases off: results of all stages by their names; `what` is what a person calls this run.

    Small models gain nothing from a second thread, so each of up to four processes has one; a GPU serves one process at
    a time.

    Raises
    ------
    InputError
        If a stage does, or a process was killed.
    """
    n_workers = 1 if resolve_device(device).type != "cpu" else min(available_threads(), 4)
    began = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    with _workers(n_workers) as pool:
        for number, phase in enumerate(phases):
            names = "; ".join(stage.name for chain in phase for stage in chain)
            remaining = _remaining(phases, number, n_workers, time.monotonic() - began)
            announce(f"[{number + 1}/{len(phases)}] {names}{remaining}")
            try:
                for done in pool.map(_run_chain, phase):
                    results |= done
            except BrokenProcessPool:
                message = f"a process of the {what} was killed, perhaps for want of memory; run it again to continue"
                raise InputError(message) from None
    return results


def _run_chain(chain: Chain) -> dict[str, dict[str, Any]]:
    """Results of a chain's stages by their names."""
    return {stage.name: stage.verb(stage.config) for stage in chain}


def _workers(n_workers: int) -> ProcessPoolExecutor:
    """Processes of one thread each, which end with this one."""
    return ProcessPoolExecutor(n_workers, get_context("spawn"), _begin_worker, (os.getpid(),))


def _begin_worker(parent: int) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once: the first process says what there is to say
    os.environ["CODEPRIOR_PROGRESS"] = "lines"  # bars of several processes would overwrite each other

    def end_with_parent() -> None:  # so that nobody works on in a folder whose run was killed
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


def _remaining(phases: list[Phase], number: int, n_workers: int, elapsed_s: float) -> str:
    """How long the rest takes at the pace so far; nothing is said before there is a pace."""

    def expected_s(phase: Phase) -> float:
        chains = [sum(stage.seconds for stage in chain) for chain in phase]
        return max(max(chains), sum(chains) / n_workers)

    past_s = sum(map(expected_s, phases[:number]))
    left_s = sum(map(expected_s, phases[number:]))
    return f" (about {left_s * elapsed_s / past_s:.0f} s left)" if past_s else ""
