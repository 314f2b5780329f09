"""The merges made so far: which clusters, at which height, in which order they become a linkage matrix."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from . import _kernels

Progress = Callable[[str, int, int], None]


class MergeLog:
    """Merges in the order in which they were found; a cluster is named by its lowest code, its representative.

    Rounds find merges out of order. Sorted by height, then by the two representatives, they are what the greedy
    algorithm does, one merge after the other.
    """

    def __init__(self, n_codes: int, n_clusters: int, progress: Progress | None = None) -> None:
        self.n_codes = n_codes
        self._progress = progress
        self.wanted = n_codes - n_clusters
        self.made = 0
        self._low = np.empty(n_codes - 1, dtype=np.int64)
        self._high = np.empty(n_codes - 1, dtype=np.int64)
        self._heights = np.empty(n_codes - 1)
        self._height_of = np.zeros(n_codes)  # by representative: the height at which its cluster was made

    def add(self, low: np.ndarray, high: np.ndarray, heights: np.ndarray) -> None:
        """Record a round of merges: of the cluster of ``low[i]`` with that of ``high[i]``, at ``heights[i]``.

        A cluster may occur in several, one after the other, if none is lower than the one before.
        """
        # By the law of average linkage a cluster is never lower than its parts; rounding could break it.
        heights = np.maximum(heights, np.maximum(self._height_of[low], self._height_of[high]))
        stop = self.made + len(low)
        self._low[self.made : stop] = low
        self._high[self.made : stop] = high
        self._heights[self.made : stop] = heights
        self._height_of[low] = heights
        self.made = stop
        self.tell("merges", min(self.made, self.wanted), self.wanted)

    def tell(self, work: str, done: int, total: int) -> None:
        """Say how far it is to whoever wants to know."""
        if self._progress is not None:
            self._progress(work, done, total)

    def heights_of(self, representatives: np.ndarray) -> np.ndarray:
        """Return a new array of the heights at which clusters were made; zero for single codes."""
        return self._height_of[representatives]

    def bound(self) -> float:
        """Return the height above which no merge can be among those wanted; infinite until enough are known."""
        if self.made < self.wanted or self.wanted == 0:
            return np.inf if self.wanted else -np.inf
        if self.made == self.n_codes - 1:
            return np.inf
        return float(np.partition(self._heights[: self.made], self.wanted - 1)[self.wanted - 1])

    def linkage(self) -> np.ndarray:
        """Return the merges wanted, or all there are if they are fewer, as SciPy's linkage matrix."""
        low, high, heights = self._low[: self.made], self._high[: self.made], self._heights[: self.made]
        Z = np.empty((min(self.made, self.wanted), 4))
        order = np.argsort(heights)
        if (np.diff(heights[order]) == 0).any():
            order = np.lexsort((high, low, heights))
        if not _kernels.assemble(low, high, heights, self.n_codes, order, Z):
            # Equal heights of which rounding made a parent's pair come first: merge in order, children before parents.
            order = self._children_first(low, high, heights)
            _kernels.assemble(low, high, heights, self.n_codes, order, Z)
        return Z

    @staticmethod
    def _children_first(low: np.ndarray, high: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Return the order by height and representatives in which each merge waits for those that made its parts."""
        parents: list[list[int]] = [[] for _ in low]
        waiting = np.zeros(len(low), dtype=np.int64)
        last: dict[int, int] = {}
        for t, (i, j) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            for child in {last.get(i), last.get(j)} - {None}:
                parents[child].append(t)  # type: ignore[index]
                waiting[t] += 1
            last[i] = t
        keys = list(zip(heights.tolist(), low.tolist(), high.tolist(), range(len(low)), strict=True))
        ready = [keys[t] for t in np.flatnonzero(waiting == 0)]
        heapq.heapify(ready)
        order = []
        while ready:
            t = heapq.heappop(ready)[3]
            order.append(t)
            for parent in parents[t]:
                waiting[parent] -= 1
                if waiting[parent] == 0:
                    heapq.heappush(ready, keys[parent])
        return np.array(order, dtype=np.int64)
