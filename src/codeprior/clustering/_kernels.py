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

LANES = 128  # points in a block, side by side for vector instructions
TERMS = 8  # dimensions summed in one go; points and blocks are padded with zeros to a multiple of it

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
def block_sqdist(block, points, i, j, out_i, out_j):
    """Fill `out_i` and `out_j` with the squared distances of points i and j to the LANES points of a block, in float64.

    ``block[p]`` holds dimension p of all its points. Two points share what is read of the block, and eight dimensions
    one pass over the outputs: each sum has the one order written here, whichever points come together.
    """
    dim = points.shape[1]
    for k in range(LANES):
        out_i[k] = 0.0
        out_j[k] = 0.0
    p = 0
    while p + 8 <= dim:
        x0 = np.float64(points[i, p + 0])
        x1 = np.float64(points[i, p + 1])
        x2 = np.float64(points[i, p + 2])
        x3 = np.float64(points[i, p + 3])
        x4 = np.float64(points[i, p + 4])
        x5 = np.float64(points[i, p + 5])
        x6 = np.float64(points[i, p + 6])
        x7 = np.float64(points[i, p + 7])
        y0 = np.float64(points[j, p + 0])
        y1 = np.float64(points[j, p + 1])
        y2 = np.float64(points[j, p + 2])
        y3 = np.float64(points[j, p + 3])
        y4 = np.float64(points[j, p + 4])
        y5 = np.float64(points[j, p + 5])
        y6 = np.float64(points[j, p + 6])
        y7 = np.float64(points[j, p + 7])
        for k in range(LANES):
            b0 = block[p + 0, k]
            b1 = block[p + 1, k]
            b2 = block[p + 2, k]
            b3 = block[p + 3, k]
            b4 = block[p + 4, k]
            b5 = block[p + 5, k]
            b6 = block[p + 6, k]
            b7 = block[p + 7, k]
            d0, e0 = b0 - x0, b0 - y0
            d1, e1 = b1 - x1, b1 - y1
            d2, e2 = b2 - x2, b2 - y2
            d3, e3 = b3 - x3, b3 - y3
            d4, e4 = b4 - x4, b4 - y4
            d5, e5 = b5 - x5, b5 - y5
            d6, e6 = b6 - x6, b6 - y6
            d7, e7 = b7 - x7, b7 - y7
            out_i[k] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7))
            out_j[k] += ((e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3)) + ((e4 * e4 + e5 * e5) + (e6 * e6 + e7 * e7))
        p += 8
    while p < dim:
        x0 = np.float64(points[i, p])
        y0 = np.float64(points[j, p])
        for k in range(LANES):
            d0, e0 = block[p, k] - x0, block[p, k] - y0
            out_i[k] += d0 * d0
            out_j[k] += e0 * e0
        p += 1


@kernel
def instance_matrix(start, stop, points, blocks, weights, sums):
    """Fill ``sums[i, j] = w_i w_j |x_i - x_j|`` for i in the range and j from the block of `start` on, and mirrors.

    `blocks` holds the same points for `block_sqdist`. The range lies within one block.
    """
    n = len(points)
    # Rows a little longer than needed: columns are read too, and a power of two between rows would share cache lines.
    # One row more than points, for the partner of an odd last one.
    tile = np.empty((stop - start + 1, LANES + 8))
    for b in range(start // LANES, len(blocks)):
        j0 = b * LANES
        m = min(LANES, n - j0)
        for i in range(start, stop, 2):
            j = min(i + 1, stop - 1)
            r = i - start
            block_sqdist(blocks[b], points, i, j, tile[r, :LANES], tile[r + 1, :LANES])
        for i in range(start, stop):
            row = tile[i - start, :LANES]
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
def cluster_totals(start, stop, a, points, blocks, weights, bounds, total):
    """Fill ``total[b]``, b from `start` to `stop`, with the weighted sums of distances of cluster a to those points."""
    dim = points.shape[1]
    last = dim - TERMS
    sqdist = np.zeros((2, LANES))
    for b in range(start, stop):
        block = blocks[b]
        row = total[b]
        row[:] = 0.0
        for i in range(bounds[a], bounds[a + 1], 2):
            j = min(i + 1, bounds[a + 1] - 1)
            if last > 0:
                block_sqdist(block[:last], points[:, :last], i, j, sqdist[0], sqdist[1])
            # The last dimensions, the root and the sum in one loop: nothing but `row` goes through memory.
            wi, wj = weights[i], weights[j] if j > i else 0.0
            x0, x1, x2, x3 = points[i, last], points[i, last + 1], points[i, last + 2], points[i, last + 3]
            x4, x5, x6, x7 = points[i, last + 4], points[i, last + 5], points[i, last + 6], points[i, last + 7]
            y0, y1, y2, y3 = points[j, last], points[j, last + 1], points[j, last + 2], points[j, last + 3]
            y4, y5, y6, y7 = points[j, last + 4], points[j, last + 5], points[j, last + 6], points[j, last + 7]
            for k in range(LANES):
                b0, b1, b2, b3 = block[last, k], block[last + 1, k], block[last + 2, k], block[last + 3, k]
                b4, b5, b6, b7 = block[last + 4, k], block[last + 5, k], block[last + 6, k], block[last + 7, k]
                d0, d1, d2, d3, d4, d5, d6, d7 = b0 - x0, b1 - x1, b2 - x2, b3 - x3, b4 - x4, b5 - x5, b6 - x6, b7 - x7
                e0, e1, e2, e3, e4, e5, e6, e7 = b0 - y0, b1 - y1, b2 - y2, b3 - y3, b4 - y4, b5 - y5, b6 - y6, b7 - y7
                d = ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7))
                e = ((e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3)) + ((e4 * e4 + e5 * e5) + (e6 * e6 + e7 * e7))
                row[k] = (row[k] + wi * np.sqrt(sqdist[0, k] + d)) + wj * np.sqrt(sqdist[1, k] + e)


@kernel
def point_distance(points, i, j):
    """Return the distance of two points, whose dimension is a multiple of TERMS: eight sums side by side."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for p in range(0, points.shape[1], TERMS):
        d0 = np.float64(points[i, p + 0]) - np.float64(points[j, p + 0])
        d1 = np.float64(points[i, p + 1]) - np.float64(points[j, p + 1])
        d2 = np.float64(points[i, p + 2]) - np.float64(points[j, p + 2])
        d3 = np.float64(points[i, p + 3]) - np.float64(points[j, p + 3])
        d4 = np.float64(points[i, p + 4]) - np.float64(points[j, p + 4])
        d5 = np.float64(points[i, p + 5]) - np.float64(points[j, p + 5])
        d6 = np.float64(points[i, p + 6]) - np.float64(points[j, p + 6])
        d7 = np.float64(points[i, p + 7]) - np.float64(points[j, p + 7])
        s0 += d0 * d0
        s1 += d1 * d1
        s2 += d2 * d2
        s3 += d3 * d3
        s4 += d4 * d4
        s5 += d5 * d5
        s6 += d6 * d6
        s7 += d7 * d7
    return np.sqrt(((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)))


@kernel
def add_products(products, rows, clusters, columns, points, squares, weights, bounds, out):
    """Add to ``out[b, a]`` the weighted distances between the points `rows` and those of each cluster in `columns`.

    `rows` and `columns` are ranges (start, stop), of points and of clusters; ``products[j, i]`` is x_j y_i for the
    points j of those clusters; ``clusters[i]`` says where in a row of `out` the sum for point i goes. `squares` are the
    points' squared lengths. Where |x|^2 + |y|^2 - 2 x y cancels, a sum is taken from differences: what is left has 46
    correct bits.
    """
    n_rows = rows[1] - rows[0]
    lengths = squares[rows[0] : rows[1]]
    total = np.empty(n_rows)
    first = bounds[columns[0]]
    for b in range(columns[0], columns[1]):
        total[:] = 0.0
        for j in range(bounds[b], bounds[b + 1]):
            row = products[j - first]
            length, weight = squares[j], weights[j]
            for i in range(n_rows):
                both = length + lengths[i]
                sqdist = both - 2.0 * row[i]
                total[i] += weight * np.sqrt(sqdist if sqdist >= both * 0.0625 else np.nan)
        sums = out[b - columns[0]]
        for i in range(n_rows):
            if np.isnan(total[i]):
                total[i] = 0.0
                for j in range(bounds[b], bounds[b + 1]):
                    total[i] += weights[j] * point_distance(points, rows[0] + i, j)
            sums[clusters[i]] += weights[rows[0] + i] * total[i]


@kernel
def put_sums(out, group, columns, sums):
    """Copy ``out[b, a]``, counted from the starts of `columns` and `group`, to both places in `sums`; b >= a."""
    for b in range(columns[0], columns[1]):
        for a in range(group[0], min(group[1], b + 1)):
            sums[b, a] = out[b - columns[0], a - group[0]]
    for a in range(group[0], group[1]):
        for b in range(max(columns[0], a), columns[1]):
            sums[a, b] = out[b - columns[0], a - group[0]]


@kernel
def add_up_cluster(a, total, weights, bounds, sums):
    """Fill row and column a of `sums`, from the diagonal on, with sums of `total` over the points of each cluster."""
    for b in range(a, len(bounds) - 1):
        s = 0.0
        for j in range(bounds[b], bounds[b + 1]):
            s += weights[j] * total[j]
        sums[a, b] = s
        sums[b, a] = s


@kernel
def cluster_sums(start, stop, clusters, points, blocks, weights, bounds, sums):
    """Fill row and column A of `sums`, A in a range of `clusters`, with the sums over pairs of clusters A and B >= A.

    Points are sorted by cluster, those of A being ``bounds[A]:bounds[A + 1]``; `blocks` holds them for `block_sqdist`.
    """
    total = np.empty((stop - start, len(blocks), LANES))
    # Blocks outside, clusters inside: a block is read once for all clusters of the range.
    for b in range(bounds[clusters[start]] // LANES, len(blocks)):
        for r in range(start, stop):
            a = clusters[r]
            if b >= bounds[a] // LANES:
                cluster_totals(b, b + 1, a, points, blocks, weights, bounds, total[r - start])
    for r in range(start, stop):
        add_up_cluster(clusters[r], total[r - start].reshape(-1), weights, bounds, sums)


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
def merge_rows(
    start,
    stop,
    offset,
    sums,
    first,
    second,
    single,
    single_old,
    paired,
    paired_left,
    paired_right,
    block,
    weights,
    sizes,
    size_limit,
    stale,
    nearest,
    nearest_distance,
):
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
            nearest_distance[a], nearest[a] = _nearest_in_row(a, out, n, False, weights, sizes, size_limit, values)


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
