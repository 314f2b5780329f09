"""Processes that are killed in the middle of encoding, sampling or judging: SIGKILL, which nothing can catch.

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
_CONTEXT.set_forkserver_preload(["codeprior.encoding", "codeprior.sweep.sweep"])


def encode_and_die(config: Any, n_forward_passes: int, environment: dict[str, str]) -> int:
    """Encode in a process that kills itself after so many forward passes; returns how it ended."""
    return run_and_die("encode", config, n_forward_passes, environment)


def run_and_die(verb: str, config: Any, n_forward_passes: int, environment: dict[str, str]) -> int:
    """Run a verb in a process that kills itself after so many forward passes; returns how it ended."""
    process = _CONTEXT.Process(target=_work, args=(verb, config, n_forward_passes, environment))
    process.start()
    process.join()
    return process.exitcode or 0


def _work(verb: str, config: Any, n_forward_passes: int, environment: dict[str, str]) -> None:
    from codeprior.cli import run

    os.environ.update(environment, CODEPRIOR_PROGRESS="0")
    _die_after(n_forward_passes)
    run(verb, config)


def _die_after(n_forward_passes: int) -> None:
    import torch

    from codeprior import parts
    from codeprior.evaluation.small_cnn import ClassifierFeatures
    from codeprior.model import KVCache, Transformer
    from codeprior.tokenizers.vqgan import VQGAN

    torch.set_num_threads(1)  # so that passes come one after the other
    parts.SECONDS_BETWEEN_RECORDS = 0
    calls = []

    def counted(forward: Any) -> Any:
        def call(model: Any, *arguments: Any) -> Any:
            if any(isinstance(argument, KVCache) for argument in arguments):  # one token of many
                return forward(model, *arguments)
            calls.append(model)
            if len(calls) > n_forward_passes:
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(model, *arguments)

        return call

    VQGAN.encode = counted(VQGAN.encode)
    VQGAN.decode = counted(VQGAN.decode)
    ClassifierFeatures.features = counted(ClassifierFeatures.features)
    Transformer.states = counted(Transformer.states)


if __name__ == "__main__":
    from codeprior.cli import main

    rank, n_passes, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        _die_after(int(n_passes))
    main(arguments)
