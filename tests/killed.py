"""Processes that are killed in the middle of encoding: SIGKILL, which nothing can catch.

Also a program, for torchrun: `killed.py RANK N_PASSES VERB FLAGS` runs a verb, of which that rank dies.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from typing import Any

# A server imports torch once; its children are forked from it, free of this process's threads.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["codeprior.codes"])


def encode_and_die(config: Any, n_forward_passes: int, environment: dict[str, str]) -> int:
    """Encode in a process that kills itself after so many forward passes; returns how it ended."""
    process = _CONTEXT.Process(target=_work, args=(config, n_forward_passes, environment))
    process.start()
    process.join()
    return process.exitcode or 0


def _work(config: Any, n_forward_passes: int, environment: dict[str, str]) -> None:
    from codeprior.codes import encode

    os.environ.update(environment, CODEPRIOR_PROGRESS="0")
    _die_after(n_forward_passes)
    encode(config)


def _die_after(n_forward_passes: int) -> None:
    from codeprior import parts
    from codeprior.tokenizers.vqgan import VQGAN

    parts.SECONDS_BETWEEN_RECORDS = 0
    forward, calls = VQGAN.encode, []

    def counted(model: VQGAN, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) > n_forward_passes:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(model, images)

    VQGAN.encode = counted


if __name__ == "__main__":
    from codeprior.cli import main

    rank, n_passes, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        _die_after(int(n_passes))
    main(arguments)
