"""Progress of long work, on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

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
    if _is_silent():
        yield from items
    elif _has_terminal():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total, initial=start, dynamic_ncols=True, leave=False)
    else:
        yield from _plain_lines(items, label, total, start)


class Meter:
    """Shows the progress of work that tells itself how far it is: called with (label, units done, units in all).

    The label may change on the way; nothing is shown of what takes a second only.
    """

    def __init__(self) -> None:
        self._label = ""
        self._began = self._said = 0.0
        self._bar: Any = None

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show where the work is."""
        if _is_silent():
            return
        now = time.monotonic()
        if label != self._label:
            self.close()
            self._label, self._began, self._said = label, now, now
        if _has_terminal():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(desc=label, total=total, dynamic_ncols=True, leave=False, delay=1.0)
            self._bar.update(done - self._bar.n)
        elif now - self._said >= _SECONDS_BETWEEN_LINES and 0 < done < total:
            _say(label, done, total, (now - self._began) / done)
            self._said = now

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def announce(text: str) -> None:
    """Say what begins."""
    if not _is_silent():
        print(text, file=sys.stderr, flush=True)


def _plain_lines(items: Iterable[Item], label: str, total: int, start: int) -> Iterator[Item]:
    began = said = time.monotonic()
    for done, item in enumerate(items, start):
        yield item
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES and done + 1 < total:
            _say(label, done + 1, total, (now - began) / (done + 1 - start))
            said = now


def _say(label: str, done: int, total: int, seconds_a_unit: float) -> None:
    remaining_s = seconds_a_unit * (total - done)
    print(f"{label}: {done}/{total}, about {remaining_s:.0f} s left", file=sys.stderr, flush=True)


def _is_silent() -> bool:
    return os.environ.get("RANK", "0") != "0" or os.environ.get("CODEPRIOR_PROGRESS") == "0"


def _has_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("CODEPRIOR_PROGRESS") != "lines"
