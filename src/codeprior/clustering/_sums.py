"""The matrix of distance sums between clusters, which the rounds on a matrix begin with."""

from __future__ import annotations

from functools import partial

import numpy as np

from . import _sum_kernels
from ._cluster_kernels import lay_out
from ._members import Members
from ._merges import MergeLog
from ._parallel import RowPool
from ._vectors import PANEL

# Distances that one call of a kernel may sum, a fraction of a second: Ctrl-C waits for calls to end.
DISTANCES_PER_CALL = 100_000_000
ENTRIES_IN_CACHE = 1 << 19
PRODUCTS_PER_CALL = 10_000_000
ROWS, COLUMNS = 512, 256  # points whose distances are summed at a time: what the cache holds


def padded(points: np.ndarray) -> np.ndarray:
    """Return the points with zeros up to a dimension that the kernels divide evenly."""
    missing = -points.shape[1] % _sum_kernels.TERMS
    return np.pad(points, ((0, 0), (0, missing))) if missing else points


def _blocks(points: np.ndarray) -> np.ndarray:
    """Return the points side by side, (blocks, E, BLOCK) in float64, the last block padded."""
    lanes = _sum_kernels.BLOCK
    blocks = np.zeros((-(-len(points) // lanes), points.shape[1], lanes))
    for b, block in enumerate(blocks):
        rows = points[b * lanes : (b + 1) * lanes]
        block[:, : len(rows)] = rows.T
    return blocks


def cluster_sums(members: Members, pool: RowPool, log: MergeLog, *, few_dimensions: bool) -> np.ndarray:
    """Return the (n, n) matrix of the sums over all pairs of two clusters of their distances times both weights."""
    n = len(members.bounds) - 1
    sums = np.empty((n, n))
    if n == len(members.points):
        points = members.points
        blocks = _blocks(points)
        data = (points, blocks, members.weights, sums)
        tell = partial(log.tell, "distances")
        pool.run(_sum_kernels.instance_matrix, n, _sum_kernels.BLOCK, *data, tell=tell)
    elif few_dimensions:
        _sum_differences(members, pool, log, sums)
    else:
        _sum_products(members, pool, log, sums)
    return sums


def _sum_differences(members: Members, pool: RowPool, log: MergeLog, sums: np.ndarray) -> None:
    """Fill `sums` with distances from coordinates' differences, block by block of points."""
    points, weights, bounds = members.points.astype(np.float64), members.weights, members.bounds
    blocks = _blocks(points)
    values = np.empty(points.size)
    size = np.diff(bounds)
    pool.run(lay_out, len(size), 1024, points, np.arange(len(points)), bounds, size, values)
    work = size * len(points)
    small, large = np.flatnonzero(work <= DISTANCES_PER_CALL), np.flatnonzero(work > DISTANCES_PER_CALL)
    chunk = max(1, int(DISTANCES_PER_CALL // max(1, work[small].max(initial=0))))
    chunk = min(chunk, max(1, ENTRIES_IN_CACHE // len(points)))
    data = (blocks, values, weights, bounds)

    def tell(done: int, _: int) -> None:
        log.tell("distances", done, len(size))

    pool.run(_sum_kernels.cluster_sums, len(small), chunk, small, *data, sums, tell=tell)
    total = np.empty((len(blocks), _sum_kernels.BLOCK))
    for done, a in enumerate(large.tolist(), len(small) + 1):
        first = int(bounds[a]) // _sum_kernels.BLOCK
        chunk = max(1, DISTANCES_PER_CALL // int(_sum_kernels.BLOCK * size[a]))
        pool.run(_sum_kernels.cluster_totals, len(blocks) - first, chunk, first, a, *data, total)
        _sum_kernels.add_up(np.array([a]), total.reshape(1, -1), weights, bounds, sums)
        tell(done, len(size))


def _sum_products(members: Members, pool: RowPool, log: MergeLog, sums: np.ndarray) -> None:
    """Fill `sums` with distances from products: |x|^2 + |y|^2 - 2 x y, and from differences where that cancels.

    Coordinates are taken about a point of the data: products of rounded ones stay exact, and ties stay ties.
    """
    bounds, beyond = members.bounds, (0, PANEL)  # panels and steps may go beyond the last point
    points = np.pad(padded(members.points - members.points[0].astype(np.float64)), (beyond, (0, 0)))
    weights, squares = np.pad(members.weights, beyond), np.einsum("ij,ij->i", points, points)
    cluster = np.pad(np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)), beyond, mode="edge")
    groups = _consecutive(bounds, ROWS)
    data = (points, squares, weights, cluster, bounds)
    pool.run(_sum_groups, len(groups), 1, groups, data, sums, tell=partial(log.tell, "distances"))


def _consecutive(bounds: np.ndarray, n_points: int) -> list[tuple[int, int]]:
    """Return ranges of clusters that hold at most `n_points` together, or one cluster each."""
    ranges = []
    start, n_clusters = 0, len(bounds) - 1
    while start < n_clusters:
        stop = max(start + 1, int(np.searchsorted(bounds, bounds[start] + n_points, side="right")) - 1)
        ranges.append((start, stop))
        start = stop
    return ranges


def _sum_groups(
    start: int, stop: int, groups: list[tuple[int, int]], data: tuple[np.ndarray, ...], sums: np.ndarray
) -> None:
    """Fill rows and columns of `sums` for some groups of consecutive clusters."""
    points, bounds = data[0], data[-1]
    for group in groups[start:stop]:
        first, last = int(bounds[group[0]]), int(bounds[group[1]])
        n_panels = -(-(last - first) // PANEL)
        panels = points[first : first + n_panels * PANEL].reshape(n_panels, PANEL, -1)
        panels = np.ascontiguousarray(panels.swapaxes(1, 2))
        for begin, end in _consecutive(bounds[group[0] :], COLUMNS):
            columns = (group[0] + begin, group[0] + end)
            out = np.zeros((end - begin, group[1] - group[0]))
            chunk = max(1, PRODUCTS_PER_CALL // int(PANEL * (bounds[columns[1]] - bounds[columns[0]])))
            for panel in range(0, n_panels, chunk):
                some = (panel, min(panel + chunk, n_panels))
                _sum_kernels.sum_panels(*some, panels, first, group, columns, *data, out)
            _sum_kernels.put_sums(out, group, columns, sums)
