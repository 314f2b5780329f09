"""Processes that are killed in the middle of encoding: SIGKILL, which nothing can catch."""

from __future__ import annotations

import multiprocessing
import os
import signal
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
    from codeprior import parts
    from codeprior.codes import encode
    from codeprior.tokenizers.vqgan import VQGAN

    os.environ.update(environment, CODEPRIOR_PROGRESS="0")
    parts.SECONDS_BETWEEN_RECORDS = 0
    forward, calls = VQGAN.encode, []

    def counted(model: VQGAN, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) > n_forward_passes:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(model, images)

    VQGAN.encode = counted
    encode(config)
