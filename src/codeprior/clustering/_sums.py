"""The matrix of distance sums between clusters, which the rounds on a matrix begin with."""

from __future__ import annotations

from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from . import _sum_kernels
from ._cluster_kernels import lay_out
from ._members import Members
from ._merges import MergeLog
from ._parallel import RowPool
from ._vectors import LANES

# Distances that one call of a kernel may sum, a fraction of a second: Ctrl-C waits for calls to end.
DISTANCES_PER_CALL = 100_000_000
ENTRIES_IN_CACHE = 1 << 19
ROWS, COLUMNS = 512, 256  # of the products made at a time


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
    """Fill `sums` with distances from matrix products: |x|^2 + |y|^2 - 2 x y, and from differences where that cancels.

    Coordinates are taken about a point of the data: products of rounded ones stay exact, and ties stay ties.
    """
    weights, bounds = members.weights, members.bounds
    points = padded(members.points - members.points[0].astype(np.float64))
    squares = np.pad(np.einsum("ij,ij->i", points, points), (0, LANES))
    data = (points, squares, weights, bounds)
    groups = _consecutive(bounds, ROWS)
    with threadpool_limits(limits=1, user_api="blas"):  # the pool has the threads
        pool.run(_sum_groups, len(groups), 1, groups, *data, sums, tell=partial(log.tell, "distances"))


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
    start: int,
    stop: int,
    groups: list[tuple[int, int]],
    points: np.ndarray,
    squares: np.ndarray,
    weights: np.ndarray,
    bounds: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Fill rows and columns of `sums` for some groups of consecutive clusters."""
    memory = np.empty(ROWS * COLUMNS + LANES)
    for group in groups[start:stop]:
        first, last = int(bounds[group[0]]), int(bounds[group[1]])
        clusters = np.repeat(np.arange(group[1] - group[0]), np.diff(bounds[group[0] : group[1] + 1]))
        rows_of = [(row, min(row + ROWS, last)) for row in range(first, last, ROWS)]
        turned = [np.ascontiguousarray(points[slice(*rows)].T) for rows in rows_of]
        for begin, end in _consecutive(bounds[group[0] :], COLUMNS):
            columns = (group[0] + begin, group[0] + end)
            out = np.zeros((end - begin, group[1] - group[0]))
            others = points[bounds[columns[0]] : bounds[columns[1]]]
            for rows, points_of_rows in zip(rows_of, turned, strict=True):
                n_products = len(others) * points_of_rows.shape[1]
                if n_products + LANES > len(memory):  # for a cluster of many points
                    memory = np.empty(n_products + LANES)
                np.matmul(others, points_of_rows, out=memory[:n_products].reshape(len(others), -1))
                places = clusters[rows[0] - first :]
                _sum_kernels.add_products(memory, rows, places, columns, points, squares, weights, bounds, out)
            _sum_kernels.put_sums(out, group, columns, sums)
