"""Threads for kernels: compiled code that releases the interpreter, called on short ranges of rows.

Threads of our own instead of those of numba: its default layer must not be entered from two threads at once, and its
OpenMP layer not after a fork. A short range is also what lets Ctrl-C in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from codeprior.errors import InputError
from codeprior.machine import available_threads

from .distance import is_whole

Tell = Callable[[int, int], None]


class RowPool:
    """Run ``kernel(start, stop, *args)`` over consecutive ranges of rows; no two ranges share one.

    The ranges depend on nothing but the arguments, so results are the same for any number of threads as long as a
    kernel writes only what belongs to its rows.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        if not (n_threads is None or is_whole(n_threads, 1)):
            raise InputError(f"n_threads must be a whole number of at least 1, got {n_threads!r}")
        self.n_threads = n_threads or available_threads()
        self._pool = ThreadPoolExecutor(self.n_threads - 1) if self.n_threads > 1 else None

    def __enter__(self) -> RowPool:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self,
        kernel: Callable[..., Any],
        n_rows: int,
        chunk: int,
        *args: Any,
        tell: Tell | None = None,
    ) -> None:
        """Call `kernel` on ranges of at most `chunk` rows and return when all of them are done.

        `tell` is called with (rows done or under way, rows) now and then and at the end, by this thread.
        """
        starts = deque(range(0, n_rows, max(1, chunk)))

        def work(tell: Tell | None = None) -> None:
            while True:
                try:
                    start = starts.popleft()
                except IndexError:
                    return
                kernel(start, min(start + chunk, n_rows), *args)
                if tell is not None:
                    tell(min(start + chunk, n_rows), n_rows)

        helpers = [self._pool.submit(work) for _ in range(min(self.n_threads, len(starts)) - 1)] if self._pool else []
        try:
            work(tell)
        finally:
            starts.clear()  # where a call failed or was interrupted, the others stop at their next one
            for helper in helpers:
                helper.result()
        if tell is not None:
            tell(n_rows, n_rows)
