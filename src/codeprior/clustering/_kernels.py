# mypy: disallow-untyped-defs=False
"""Compiled loops over rows, given arrays that they fill. No allocation policy, no checks: the drivers see to those.

Every sum has one order, written here and independent of the thread that runs it: no ``fastmath``, which would let the
compiler reassociate sums and thereby change which pair merges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

LANES = 256  # points in a block, side by side for vector instructions

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(function: Kernel) -> Any:
    """Compile `function` without the interpreter lock, and keep the machine code on disk where there is a place."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


@kernel
def tie_rounded(distance):
    """Round to 41 significant bits (Veltkamp's splitting), so that distances equal but for rounding are equal."""
    t = distance * 4097.0
    return t - (t - distance)


@kernel
def block_sqdist(block, points, i, out):
    """Fill `out` with the squared distances of point i to the LANES points of a block, in float64.

    ``block[p]`` holds dimension p of all its points. Eight dimensions are added in one pass over `out`: each sum has
    the one order written here.
    """
    dim = points.shape[1]
    p = dim % 4
    for k in range(LANES):
        out[k] = 0.0
    for r in range(p):
        x0 = np.float64(points[i, r])
        for k in range(LANES):
            d0 = block[r, k] - x0
            out[k] += d0 * d0
    while p + 8 <= dim:
        x0 = np.float64(points[i, p])
        x1 = np.float64(points[i, p + 1])
        x2 = np.float64(points[i, p + 2])
        x3 = np.float64(points[i, p + 3])
        x4 = np.float64(points[i, p + 4])
        x5 = np.float64(points[i, p + 5])
        x6 = np.float64(points[i, p + 6])
        x7 = np.float64(points[i, p + 7])
        for k in range(LANES):
            d0 = block[p, k] - x0
            d1 = block[p + 1, k] - x1
            d2 = block[p + 2, k] - x2
            d3 = block[p + 3, k] - x3
            d4 = block[p + 4, k] - x4
            d5 = block[p + 5, k] - x5
            d6 = block[p + 6, k] - x6
            d7 = block[p + 7, k] - x7
            out[k] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7))
        p += 8
    if p < dim:
        x0 = np.float64(points[i, p])
        x1 = np.float64(points[i, p + 1])
        x2 = np.float64(points[i, p + 2])
        x3 = np.float64(points[i, p + 3])
        for k in range(LANES):
            d0 = block[p, k] - x0
            d1 = block[p + 1, k] - x1
            d2 = block[p + 2, k] - x2
            d3 = block[p + 3, k] - x3
            out[k] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@kernel
def instance_matrix(start, stop, points, blocks, weights, sums):
    """Fill ``sums[i, j] = w_i w_j |x_i - x_j|`` for i in the range and j from the block of `start` on, and mirrors.

    `blocks` holds the same points for `block_sqdist`. The range lies within one block.
    """
    n = len(points)
    tile = np.empty((stop - start, LANES))
    for b in range(start // LANES, len(blocks)):
        j0 = b * LANES
        m = min(LANES, n - j0)
        for i in range(start, stop):
            row = tile[i - start]
            block_sqdist(blocks[b], points, i, row)
            wi = weights[i]
            out = sums[i, j0 : j0 + m]
            w = weights[j0 : j0 + m]
            for k in range(m):
                row[k] = np.sqrt(row[k]) * (wi * w[k])
                out[k] = row[k]
        for k in range(m):
            out = sums[j0 + k, start:stop]
            for r in range(stop - start):
                out[r] = tile[r, k]


@kernel
def cluster_sums(start, stop, points, blocks, weights, bounds, sums):
    """Fill row and column A of `sums`, A in the range, with the sums over pairs of clusters A and B >= A.

    Points are sorted by cluster, those of A being ``bounds[A]:bounds[A + 1]``; `blocks` holds them for `block_sqdist`.
    """
    n_clusters = len(bounds) - 1
    total = np.empty((len(blocks), LANES))
    flat = total.reshape(-1)
    sqdist = np.empty(LANES)
    for a in range(start, stop):
        for b in range(bounds[a] // LANES, len(blocks)):
            block = blocks[b]
            row = total[b]
            row[:] = 0.0
            for i in range(bounds[a], bounds[a + 1]):
                block_sqdist(block, points, i, sqdist)
                w = weights[i]
                for k in range(LANES):
                    row[k] += w * np.sqrt(sqdist[k])
        for b in range(a, n_clusters):
            s = 0.0
            for j in range(bounds[b], bounds[b + 1]):
                s += weights[j] * flat[j]
            sums[a, b] = s
            sums[b, a] = s


@kernel
def _row_minimum(values):
    """Return the smallest of `values`, rows of 64 read one after the other, and its first position; or (inf, -1)."""
    lanes = np.empty(64)
    best = np.inf
    best_start = -1
    n_rows = len(values)
    for start in range(0, n_rows, 16):
        lanes[:] = np.inf
        for r in range(start, min(start + 16, n_rows)):
            row = values[r]
            for lane in range(64):
                lanes[lane] = row[lane] if row[lane] < lanes[lane] else lanes[lane]
        smallest = lanes[0]
        for lane in range(1, 64):
            smallest = min(smallest, lanes[lane])
        if smallest < best:
            best = smallest
            best_start = start
    if best_start < 0:
        return np.inf, -1
    flat = values.reshape(-1)
    j = best_start * 64
    while flat[j] != best:
        j += 1
    return best, j


@kernel
def _nearest_in_row(i, row, n, unit_weights, weights, sizes, size_limit, values):
    """Return the distance and the position of the cluster nearest to cluster i, whose distance sums are `row`.

    `values` is scratch: rows of 64, at least n values, infinite from n on.
    """
    wi = weights[i]
    flat = values.reshape(-1)
    if unit_weights:
        for j in range(n):
            flat[j] = tie_rounded(row[j])
    else:
        for j in range(n):
            flat[j] = tie_rounded(row[j] / (wi * weights[j]))
    flat[i] = np.inf
    if size_limit > 0:
        room = size_limit - sizes[i]
        for j in range(n):
            flat[j] = np.inf if sizes[j] > room else flat[j]
    return _row_minimum(values)


@kernel
def nearest_in_matrix(start, stop, sums, weights, sizes, size_limit, stale, nearest, nearest_distance):
    """For the rows of the range marked `stale`: find the nearest cluster; of several the first, which is the rule."""
    n = len(weights)
    values = np.full(((n + 63) // 64, 64), np.inf)
    unit_weights = True
    for j in range(n):
        unit_weights = unit_weights and weights[j] == 1.0
    for i in range(start, stop):
        if stale[i]:
            nearest_distance[i], nearest[i] = _nearest_in_row(
                i, sums[i], n, unit_weights, weights, sizes, size_limit, values
            )


@kernel
def merge_rows(start, stop, offset, sums, first, second, single, single_old, paired, paired_left, paired_right, block,
               weights, sizes, size_limit, stale, nearest, nearest_distance):
    """Make rows ``offset + start .. offset + stop`` of the next matrix, and search those marked `stale`.

    New cluster a holds the old clusters ``first[a]`` and, unless it is -1, ``second[a]``. New cluster ``single[t]`` is
    the old ``single_old[t]`` alone, ``paired[t]`` is ``paired_left[t]`` and ``paired_right[t]``; these indices are
    unsigned, which spares the test for negative ones. Sums of two pairs are added crosswise, so that the next matrix
    is symmetric to the last bit.
    """
    n = len(first)
    values = np.full(((n + 63) // 64, 64), np.inf)
    for r in range(start, stop):
        a = offset + r
        out = block[r]
        row = sums[first[a]]
        if second[a] < 0:
            for t in range(len(single)):
                out[single[t]] = row[single_old[t]]
            for t in range(len(paired)):
                out[paired[t]] = row[paired_left[t]] + row[paired_right[t]]
        else:
            other = sums[second[a]]
            for t in range(len(single)):
                out[single[t]] = row[single_old[t]] + other[single_old[t]]
            for t in range(len(paired)):
                i = paired_left[t]
                j = paired_right[t]
                out[paired[t]] = (row[i] + other[j]) + (row[j] + other[i])
        if stale[a]:
            nearest_distance[a], nearest[a] = _nearest_in_row(
                a, out, n, False, weights, sizes, size_limit, values
            )


@kernel
def mutual_pairs(nearest, partner):
    """Mark ``partner[i] = j`` for all i, j that are each other's nearest, else -1; return the number of pairs."""
    n_pairs = 0
    for i in range(len(nearest)):
        j = nearest[i]
        if j >= 0 and nearest[j] == i:
            partner[i] = j
            if i < j:
                n_pairs += 1
        else:
            partner[i] = -1
    return n_pairs


@kernel
def assemble(low, high, heights, n_codes, order, Z):
    """Write merges of representatives, taken in `order`, as SciPy's linkage matrix; return False if they cannot be.

    A merge is named by the lowest codes of its two clusters. `order` is invalid where a merge comes before one that
    made its child: then nothing sensible is in `Z`.
    """
    last = np.full(n_codes, -1)  # of each representative: the last merge that it took part in, as first made
    before_low = np.empty(len(low), dtype=np.int64)
    before_high = np.empty(len(low), dtype=np.int64)
    for t in range(len(low)):
        before_low[t] = last[low[t]]
        before_high[t] = last[high[t]]
        last[low[t]] = t
    done = np.zeros(len(low), dtype=np.bool_)
    cluster = np.arange(n_codes)
    size = np.ones(n_codes)
    for step in range(len(Z)):
        t = order[step]
        if (before_low[t] >= 0 and not done[before_low[t]]) or (before_high[t] >= 0 and not done[before_high[t]]):
            return False
        done[t] = True
        i = low[t]
        j = high[t]
        Z[step, 0] = min(cluster[i], cluster[j])
        Z[step, 1] = max(cluster[i], cluster[j])
        Z[step, 2] = heights[t]
        size[i] += size[j]
        Z[step, 3] = size[i]
        cluster[i] = n_codes + step
    return True
