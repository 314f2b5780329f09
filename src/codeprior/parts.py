"""Parts: rows of one array that several processes make, each its own run of them, any of which may be killed.

A part is two files: raw rows, appended to, and a record of how many of them are safely on disk. A process that starts
looks at what all records cover and makes what is missing of its share, as new parts. So nothing depends on how often,
when, or with how many processes the work was begun before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from codeprior.artifact import Workspace, read_json, write_json
from codeprior.machine import available_threads
from codeprior.progress import track
from codeprior.shards import Shard

SECONDS_BETWEEN_RECORDS = 2.0
_ROWS_COPIED_AT_ONCE = 4096

Read = TypeVar("Read")
Item = TypeVar("Item")
Rows = tuple[np.ndarray, dict[int, str]]
"""Consecutive items: a row of each good one, and why the others have none, by their number."""


class Parts:
    """Rows of `shape` and `dtype`, one for each of `n_items` items unless the item is bad.

    Parameters
    ----------
    folder : path
        Where the parts are kept until they have been joined.
    n_items : int
        Items in all.
    shape : tuple of int
        Shape of a row.
    dtype : dtype
        Of its values.
    """

    def __init__(self, folder: Path, n_items: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.folder = folder
        self.n_items = n_items
        self.shape = shape
        self.dtype = dtype

    def missing(self, share: range) -> list[range]:
        """The runs of a share that no record covers, in order."""
        runs, position = [], share.start
        for record in self._records():
            start, stop = record["start"], record["stop"]
            if start > position:
                runs.append(range(position, min(start, share.stop)))
            position = max(position, stop)
            if position >= share.stop:
                break
        runs.append(range(position, share.stop))
        return [run for run in runs if len(run)]

    def make_share(
        self, workspace: Workspace, group: int, batches: Callable[[range], Iterable[Rows]], label: str
    ) -> None:
        """Make what is missing of this process's share; `batches(run)` yields the rows of `group` items at a time.

        Shares are of whole groups, so that batches are those of one process alone.
        """
        groups = workspace.shard.of(-(-self.n_items // group))
        share = range(groups.start * group, min(groups.stop * group, self.n_items))
        for run in self.missing(share):
            n_groups = -(-len(run) // group)
            done = self.make(run, batches(run), workspace.checkpoint)
            for _ in track(done, label, total=len(groups), start=len(groups) - n_groups):
                pass

    def make(self, run: range, batches: Iterable[Rows], on_record: Callable[[], None]) -> Iterator[int]:
        """Write the rows of a run of items, batch by batch; yields how many items were done after each batch.

        A batch is recorded when it has reached the disk, at most every two seconds; `on_record` is then called.
        """
        self.folder.mkdir(exist_ok=True)
        try:
            yield from self._append(run, batches, on_record)
        finally:
            if not self._record(run.start).exists():  # it ended before anything was recorded: leave nothing
                self._path(run.start).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # there are other parts
                    self.folder.rmdir()

    def _append(self, run: range, batches: Iterable[Rows], on_record: Callable[[], None]) -> Iterator[int]:
        bad: dict[int, str] = {}
        position, recorded = run.start, time.monotonic()
        with open(self._path(run.start), "wb") as file:
            for rows, bad_here in batches:
                file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
                bad |= bad_here
                position += len(rows) + len(bad_here)
                if time.monotonic() - recorded >= SECONDS_BETWEEN_RECORDS or position == run.stop:
                    file.flush()
                    os.fsync(file.fileno())
                    write_json(self._record(run.start), {"start": run.start, "stop": position, "bad": bad})
                    on_record()
                    recorded = time.monotonic()
                yield position - run.start

    def bad(self) -> dict[int, str]:
        """Why items have no row, by their number, ascending."""
        found = {int(item): reason for record in self._records() for item, reason in record["bad"].items()}
        return dict(sorted(found.items()))

    def assemble(self, path: Path) -> np.ndarray:
        """Join the rows of all items in order as one `.npy` file; returns it mapped. Everything must be there."""
        n_rows = self.n_items - len(self.bad())
        joined = np.lib.format.open_memmap(path, mode="w+", dtype=self.dtype, shape=(n_rows, *self.shape))
        item = row = 0
        for record in self._records():
            start, stop = record["start"], record["stop"]
            bad = np.array(sorted(int(number) for number in record["bad"]), dtype=np.int64)
            if stop <= item:  # two processes made the same
                continue
            first, last = (end - start - int((bad < end).sum()) for end in (item, stop))
            if last > first:
                n_here = stop - start - len(bad)
                rows = np.memmap(self._path(start), mode="r", dtype=self.dtype, shape=(n_here, *self.shape))
                for begin in range(first, last, _ROWS_COPIED_AT_ONCE):
                    block = rows[begin : min(begin + _ROWS_COPIED_AT_ONCE, last)]
                    joined[row : row + len(block)] = block
                    row += len(block)
            item = stop
        joined.flush()
        return joined

    def take(self, items: np.ndarray) -> np.ndarray:
        """Rows of these items, in their order. All must be there, and no item bad."""
        rows = np.empty((len(items), *self.shape), dtype=self.dtype)
        for record in self._records():
            start, stop = record["start"], record["stop"]
            inside = (items >= start) & (items < stop)
            if inside.any():
                part = np.memmap(self._path(start), mode="r", dtype=self.dtype, shape=(stop - start, *self.shape))
                rows[inside] = part[items[inside] - start]
        return rows

    def remove(self) -> None:
        """Remove the parts, once they are joined."""
        shutil.rmtree(self.folder)

    def _records(self) -> list[dict[str, Any]]:
        return sorted((read_json(path) for path in self.folder.glob("[0-9]*.json")), key=lambda record: record["start"])

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:010d}.rows"

    def _record(self, start: int) -> Path:
        return self.folder / f"{start:010d}.json"


def waiting(shard: Shard) -> dict[str, Any]:
    """What a verb says in a process that is done before the others are."""
    return {"rank": shard.rank, "state": f"done; the last of {shard.size} processes to finish writes the result"}


def read_ahead(read: Callable[[range], Read], run: range, group: int) -> Iterator[Read]:
    """What `read` gives of groups of a run, in order, by threads that read while those before are worked on."""
    groups = [range(start, min(start + group, run.stop)) for start in range(run.start, run.stop, group)]
    with ThreadPoolExecutor(available_threads()) as pool:
        yield from in_order(pool, read, groups, 2 * available_threads())


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Read], items: Iterable[Item], n_ahead: int
) -> Iterator[Read]:
    """Results in the order of the items, of which threads work on up to `n_ahead` more while one is waited for.

    Whoever stops early, or is stopped, waits only for what threads have begun.
    """
    coming: deque[Future[Read]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(work, item))
            if len(coming) > n_ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()
