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

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(function: Kernel) -> Kernel:
    """Compile `function` without the interpreter lock, and keep the machine code on disk where there is a place."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        compiled = numba.njit(**options)(function)
    return compiled  # type: ignore[no-any-return]


@kernel
def tie_rounded(distance):
    """Round to 41 significant bits (Veltkamp's splitting), so that distances equal but for rounding are equal."""
    t = distance * 4097.0
    return t - (t - distance)


@kernel
def instance_matrix(start, stop, rows, columns, weights, sums):
    """Fill ``sums[i, j] = w_i w_j |x_i - x_j|`` for rows i of the range and j >= i, and their mirror images.

    `columns` is `rows` transposed. Squares of differences are added in the order of the dimensions.
    """
    n, dim = rows.shape
    width = 256
    tile = np.empty((stop - start, width))
    for j0 in range(start, n, width):
        j1 = min(j0 + width, n)
        m = j1 - j0
        for i in range(start, stop):
            acc = tile[i - start]
            for j in range(m):
                acc[j] = 0.0
            p = 0
            while p + 4 <= dim:
                x0 = np.float64(rows[i, p])
                x1 = np.float64(rows[i, p + 1])
                x2 = np.float64(rows[i, p + 2])
                x3 = np.float64(rows[i, p + 3])
                for j in range(m):
                    d0 = x0 - columns[p, j0 + j]
                    d1 = x1 - columns[p + 1, j0 + j]
                    d2 = x2 - columns[p + 2, j0 + j]
                    d3 = x3 - columns[p + 3, j0 + j]
                    acc[j] = (((acc[j] + d0 * d0) + d1 * d1) + d2 * d2) + d3 * d3
                p += 4
            while p < dim:
                x0 = np.float64(rows[i, p])
                for j in range(m):
                    d0 = x0 - columns[p, j0 + j]
                    acc[j] = acc[j] + d0 * d0
                p += 1
            wi = weights[i]
            for j in range(m):
                acc[j] = np.sqrt(acc[j]) * (wi * weights[j0 + j])
                sums[i, j0 + j] = acc[j]
        for j in range(m):
            for i in range(start, stop):
                sums[j0 + j, i] = tile[i - start, j]


@kernel
def _row_minimum(values, n):
    """Return the smallest of ``values[:n]`` and its first position; (inf, -1) if nothing is finite."""
    lanes = np.empty(64)
    best = np.inf
    best_block = -1
    whole = n - n % 1024
    for b in range(0, whole, 1024):
        for lane in range(64):
            lanes[lane] = values[b + lane]
        for j in range(b + 64, b + 1024, 64):
            for lane in range(64):
                v = values[j + lane]
                lanes[lane] = v if v < lanes[lane] else lanes[lane]
        smallest = lanes[0]
        for lane in range(1, 64):
            smallest = min(smallest, lanes[lane])
        if smallest < best:
            best = smallest
            best_block = b
    for j in range(whole, n):
        if values[j] < best:
            best = values[j]
            best_block = j
    if best_block < 0:
        return np.inf, -1
    j = best_block
    while values[j] != best:
        j += 1
    return best, j


@kernel
def _nearest_in_row(i, row, n, weights, sizes, size_limit, values):
    """Return the distance and the position of the cluster nearest to cluster i, whose distance sums are `row`."""
    wi = weights[i]
    for j in range(n):
        t = row[j] / (wi * weights[j])
        t2 = t * 4097.0
        values[j] = t2 - (t2 - t)
    values[i] = np.inf
    if size_limit > 0:
        room = size_limit - sizes[i]
        for j in range(n):
            if sizes[j] > room:
                values[j] = np.inf
    return _row_minimum(values, n)


@kernel
def nearest_in_matrix(start, stop, sums, weights, sizes, size_limit, stale, nearest, nearest_distance):
    """For the rows of the range marked `stale`: find the nearest cluster; of several the first, which is the rule."""
    n = len(weights)
    values = np.empty(n)
    for i in range(start, stop):
        if stale[i]:
            nearest_distance[i], nearest[i] = _nearest_in_row(i, sums[i], n, weights, sizes, size_limit, values)


@kernel
def merge_rows(
    start,
    stop,
    offset,
    sums,
    first,
    second,
    single,
    paired,
    block,
    weights,
    sizes,
    size_limit,
    stale,
    nearest,
    nearest_distance,
):
    """Make rows ``offset + start .. offset + stop`` of the next matrix, and search those marked `stale`.

    New cluster a holds the old clusters ``first[a]`` and, unless it is -1, ``second[a]``; `single` and `paired` list
    the new clusters without and with a second. Sums of two pairs are added crosswise, so that the next matrix is symmetric
    to the last bit.
    """
    n = len(first)
    values = np.empty(n)
    for r in range(start, stop):
        a = offset + r
        out = block[r]
        row = sums[first[a]]
        if second[a] < 0:
            for t in range(len(single)):
                b = single[t]
                out[b] = row[first[b]]
            for t in range(len(paired)):
                b = paired[t]
                out[b] = row[first[b]] + row[second[b]]
        else:
            other = sums[second[a]]
            for t in range(len(single)):
                b = single[t]
                out[b] = row[first[b]] + other[first[b]]
            for t in range(len(paired)):
                b = paired[t]
                out[b] = (row[first[b]] + other[second[b]]) + (row[second[b]] + other[first[b]])
        if stale[a]:
            nearest_distance[a], nearest[a] = _nearest_in_row(a, out, n, weights, sizes, size_limit, values)


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
