"""Progress of long work, on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[Item], label: str, *, total: int | None = None, start: int = 0) -> Iterator[Item]:
    """Yield the items and show how far it is, with an estimate of what remains.

    Parameters
    ----------
    items : iterable
        The work, one item a unit.
    label : str
        What is being done.
    total : int, optional
        Units in all, those done before `start` included; default: `len(items)`.
    start : int
        Units that an earlier run has done.
    """
    if total is None:
        total = start + len(items)  # type: ignore[arg-type]
    if os.environ.get("RANK", "0") != "0" or os.environ.get("CODEPRIOR_PROGRESS") == "0":
        yield from items
    elif sys.stderr.isatty() and os.environ.get("CODEPRIOR_PROGRESS") != "lines":
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total, initial=start, dynamic_ncols=True, leave=False)
    else:
        yield from _plain_lines(items, label, total, start)


def announce(text: str) -> None:
    """Say what begins."""
    if os.environ.get("RANK", "0") == "0" and os.environ.get("CODEPRIOR_PROGRESS") != "0":
        print(text, file=sys.stderr, flush=True)


def _plain_lines(items: Iterable[Item], label: str, total: int, start: int) -> Iterator[Item]:
    began = said = time.monotonic()
    for done, item in enumerate(items, start):
        yield item
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES and done + 1 < total:
            remaining_s = (now - began) / (done + 1 - start) * (total - done - 1)
            print(f"{label}: {done + 1}/{total}, about {remaining_s:.0f} s left", file=sys.stderr, flush=True)
            said = now
