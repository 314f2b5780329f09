"""Average linkage on the graph of near clusters: the low part of the tree, in dimensions too many for a search tree.

The mean distance of two clusters is at least that of their nearest codes. So all that merges up to some height, the
reach, is found among the pairs of codes that are no farther apart: in many dimensions one pair in a hundred for the
lower half of the tree. One pass of float32 products over all pairs finds them; all that follows is float64 and touches
nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from . import _kernels
from . import _near_kernels as kernels
from ._matrix import LARGEST_MATRIX, Clusters, SizeRule
from ._members import Members
from ._merges import MergeLog
from ._parallel import RowPool
from ._sums import padded
from ._vectors import WIDTH

NEIGHBOURS = 96  # near codes of a code, on average; the reach follows from it
SAMPLE = 512  # points whose distances to as many others the reach is estimated from
ROWS, COLUMNS = 512, 512  # of the products made at a time: what the cache holds
TERMS_PER_CALL = 1 << 32  # of products, a fraction of a second: Ctrl-C waits for calls to end
ROWS_PER_CALL = 256
# Merging begins with the nearest: what is known beyond the present limit spares distances that do not matter yet.
STAGES = (1 / 16, 1 / 4, 1 / 2)  # of the pairs, by distance
ROUNDS = 64  # several times what it takes; beyond, one cluster is nearest to all others, and a matrix serves better
SLACK = 1e-9  # relative; rounding of a mean distance is far below


def merge_near(
    members: Members,
    clusters: Clusters,
    log: MergeLog,
    rule: SizeRule,
    pool: RowPool,
) -> tuple[Members, Clusters] | None:
    """Merge single points up to the reach and return what is left; None if nothing wanted is left to do."""
    points, instance_weights = padded(members.points), members.weights
    pairs = _near_pairs(points, pool, log)
    if pairs is None:
        return members, clusters
    graph, used = _Graph.of_pairs(pairs, instance_weights), None
    order, bounds = np.arange(len(points)), members.bounds
    stages = np.quantile(pairs.at_least[:: 1 + len(pairs.at_least) // SAMPLE**2], STAGES).tolist()
    if log.wanted < log.n_codes - 1:  # a cut may lie within reach; what is left of a complete tree is for the matrix
        stages.append(pairs.reach)
    n_rounds = 0
    while stages and (n_rounds < ROUNDS or len(clusters) > LARGEST_MATRIX):
        n_rounds += 1
        reach = min(pairs.reach, log.bound() * (1 + SLACK))
        limit = min(stages[0], reach)
        grouped = (points, instance_weights, order, bounds)
        nearest, heights = graph.nearest(grouped, limit, clusters, rule, pool)
        partner = np.empty(len(clusters), dtype=np.int64)
        if not _kernels.mutual_pairs(nearest, partner):
            stages = stages[1:] if limit < reach else []
            continue
        low = np.flatnonzero(partner > np.arange(len(clusters)))
        high = partner[low]
        log.add(clusters.representatives[low], clusters.representatives[high], heights[low])
        merged = clusters.merged(low, high)
        keep = rule.may_merge(merged.sizes)
        keep[high] = False
        first = np.flatnonzero(keep)
        second = np.where(partner[first] > first, partner[first], -1)
        place = np.full(len(clusters), -1)
        place[first] = np.arange(len(first))
        place[second[second >= 0]] = np.flatnonzero(second >= 0)
        merged = merged.only(first)
        made = graph.merged(first, second, place, clusters.weights, merged.weights, reach * (1 + SLACK), pool, used)
        graph, used = made, graph  # a graph never has more entries than the one before
        clusters = merged
        group = place[np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))]
        stays = np.argsort(group, kind="stable")[np.count_nonzero(group < 0) :]
        order = order[stays]
        bounds = np.searchsorted(group[stays], np.arange(len(first) + 1))
    if log.bound() <= pairs.reach:
        return None
    return Members(members.points[order], instance_weights[order], bounds), clusters


@dataclass
class _Pairs:
    """Pairs of points, among them all that are no farther apart than the reach."""

    reach: float
    low: np.ndarray  # int64, below `high`
    high: np.ndarray
    at_least: np.ndarray  # float64, positive: lower bounds of their distances


@dataclass
class _Graph:
    """The near clusters of each cluster a: entries ``begin[a]`` to ``begin[a] + length[a]`` of the last two arrays."""

    begin: np.ndarray  # int64
    length: np.ndarray  # int64
    neighbour: np.ndarray  # int32
    total: np.ndarray  # float64: sum over pairs of codes of distance times both weights; minus a lower bound of it

    @classmethod
    def with_room(cls, room: np.ndarray, used: _Graph | None = None) -> _Graph:
        """Return a graph without entries, with room for so many of each cluster, in the memory of a used one."""
        if used is None:
            used = cls(room, room, np.empty(room.sum(), dtype=np.int32), np.empty(room.sum()))
        return cls(np.cumsum(room) - room, np.zeros_like(room), used.neighbour, used.total)

    @classmethod
    def of_pairs(cls, pairs: _Pairs, weights: np.ndarray) -> _Graph:
        """Return the graph of points."""
        n = len(weights)
        graph = cls.with_room(np.bincount(pairs.low, minlength=n) + np.bincount(pairs.high, minlength=n))
        kernels.link(pairs.low, pairs.high, pairs.at_least, weights, *graph.arrays)
        return graph

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The arrays, as kernels take them."""
        return self.begin, self.length, self.neighbour, self.total

    def nearest(
        self, grouped: tuple[np.ndarray, ...], limit: float, clusters: Clusters, rule: SizeRule, pool: RowPool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest cluster of each within the limit, or -1, and its distance."""
        n = len(clusters)
        nearest, distance = np.empty(n, dtype=np.int64), np.empty(n)
        found = (clusters.weights, clusters.sizes, rule.at_most, nearest, distance)
        pool.run(kernels.nearest_in_rows, n, 4 * ROWS_PER_CALL, self.arrays, grouped, limit, *found)
        return nearest, distance

    def merged(
        self,
        first: np.ndarray,
        second: np.ndarray,
        place: np.ndarray,
        old_weights: np.ndarray,
        weights: np.ndarray,
        reach: float,
        pool: RowPool,
        used: _Graph | None,
    ) -> _Graph:
        """Return the graph of new clusters, made of one or two of these, without what is farther than the reach."""
        new = _Graph.with_room(self.length[first] + np.where(second >= 0, self.length[second], 0), used)
        made = (place, old_weights, weights, first, second, reach)
        pool.run(kernels.merge_near_rows, len(first), ROWS_PER_CALL, self.arrays, new.arrays, *made)
        return new


def _near_pairs(points: np.ndarray, pool: RowPool, log: MergeLog) -> _Pairs | None:
    """Return the pairs within a reach that leaves some NEIGHBOURS to each point; None if no reach does."""
    n, dim = points.shape
    unit, squares, scale = _within_one(points)
    with threadpool_limits(limits=1, user_api="blas"):  # the pool has the threads
        reach = _reach(unit, squares, NEIGHBOURS / n)
        if reach is None:
            return None
        # Coordinates are off by 2^-24 of them, products and the sums below by at most (dim + 8) 2^-24.
        error = (dim + 8) * 2.0**-22
        limit = (reach + 2.0**-22) ** 2 + error
        halves = np.pad((squares / 2 - limit / 4).astype(np.float32), (0, WIDTH), constant_values=np.inf)
        found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        rows = max(1, min(ROWS, TERMS_PER_CALL // unit.size))
        pool.run(_pairs_of_rows, n, rows, unit, halves, found, tell=partial(log.tell, "near pairs"))
    low, high, excess = (np.concatenate([found[start][i] for start in sorted(found)]) for i in range(3))
    sqdist = limit - 2 * excess.astype(np.float64) - 2 * error
    at_least = (np.sqrt(np.maximum(sqdist, 0)) - 2.0**-22) * scale
    return _Pairs(reach * scale, low, high, np.maximum(at_least, np.finfo(np.float64).tiny))


def _within_one(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the points about their mean, of lengths up to one in float32; the squares of these; and the scale."""
    centre = points.mean(axis=0, dtype=np.float64)
    blocks = [slice(start, start + ROWS) for start in range(0, len(points), ROWS)]
    scale = float(np.sqrt(max(np.square(points[block] - centre).sum(axis=1).max() for block in blocks))) or 1.0
    unit, squares = np.empty(points.shape, dtype=np.float32), np.empty(len(points))
    for block in blocks:
        unit[block] = (points[block] - centre) / scale
        squares[block] = np.einsum("ij,ij->i", unit[block], unit[block], dtype=np.float64)
    return unit, squares, scale


def _reach(unit: np.ndarray, squares: np.ndarray, share: float) -> float | None:
    """Return a distance that about `share` of all pairs do not exceed; None if so many are equal that none is."""
    draw = np.random.default_rng(0)
    some, others = (draw.choice(len(unit), min(SAMPLE, len(unit)), replace=False) for _ in range(2))
    sqdist = squares[some, None] + squares[others] - 2 * (unit[some] @ unit[others].T)
    sqdist = sqdist[some[:, None] != others]
    position = min(int(share * len(sqdist)), len(sqdist) - 1)
    reach = float(np.sqrt(max(0.0, np.partition(sqdist, position)[position])))
    too_many = np.count_nonzero(sqdist <= (reach + 1e-4) ** 2) > 2 * position + 64
    return None if too_many else reach


def _pairs_of_rows(
    start: int,
    stop: int,
    unit: np.ndarray,
    halves: np.ndarray,
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> None:
    """Put the near pairs of a range of rows with later ones, and by how much they are, into ``found[start]``."""
    room = 2 * NEIGHBOURS * (stop - start)
    low, high = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int64)
    excess = np.empty(room, dtype=np.float32)
    memory = np.zeros((stop - start) * COLUMNS + WIDTH, dtype=np.float32)
    n_found = 0
    for column in range(start, len(unit), COLUMNS):
        others = unit[column : column + COLUMNS]
        products = memory[: (stop - start) * len(others)].reshape(stop - start, len(others))
        np.matmul(unit[start:stop], others.T, out=products)
        places = (memory, start, stop - start, column, len(others), halves)
        n_now = kernels.near_in_products(*places, low, high, excess, n_found)
        if n_now > room:
            room = 2 * n_now
            low, high, excess = (np.resize(array, room) for array in (low, high, excess))
            n_now = kernels.near_in_products(*places, low, high, excess, n_found)
        n_found = n_now
    found[start] = (low[:n_found].copy(), high[:n_found].copy(), excess[:n_found].copy())
