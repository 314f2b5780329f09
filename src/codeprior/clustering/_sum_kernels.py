# mypy: disallow-untyped-defs=False
"""Compiled loops that sum distances between instances over pairs of clusters."""

from __future__ import annotations

import numpy as np

from ._kernels import kernel, lean_kernel, part
from ._vectors import OTHERS, PANEL, first_products, last_distances, next_products, sum_distances

BLOCK = 128  # points in a block, side by side for vector instructions
TERMS = 8  # dimensions summed in one go; points are padded with zeros to a multiple of it where that is said


@kernel
def block_sqdist(block, points, i, j, out_i, out_j):
    """Fill `out_i` and `out_j` with the squared distances of points i and j to the BLOCK points of a block, in float64.

    ``block[p]`` holds dimension p of all its points. Two points share what is read of the block, and eight dimensions
    one pass over the outputs: each sum has the one order written here, whichever points come together.
    """
    dim = points.shape[1]
    for k in range(BLOCK):
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
        for k in range(BLOCK):
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
        for k in range(BLOCK):
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
    tile = np.empty((stop - start + 1, BLOCK + 8))
    for b in range(start // BLOCK, len(blocks)):
        j0 = b * BLOCK
        m = min(BLOCK, n - j0)
        for i in range(start, stop, 2):
            j = min(i + 1, stop - 1)
            r = i - start
            block_sqdist(blocks[b], points, i, j, tile[r, :BLOCK], tile[r + 1, :BLOCK])
        for i in range(start, stop):
            row = tile[i - start, :BLOCK]
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


@part
def _block_totals(b, a, blocks, values, weights, bounds, total):
    """Fill `total` with the weighted sums of distances of cluster a to the points of block b."""
    dim = blocks.shape[1]
    first, last = bounds[a], bounds[a + 1]
    sum_distances(
        blocks.reshape(-1), b * dim * BLOCK, BLOCK, BLOCK, values, first * dim, last - first, weights, first, dim, total
    )


@lean_kernel
def cluster_totals(start, stop, first, a, blocks, values, weights, bounds, total):
    """Fill ``total[b]``, b a block of the range counted from `first`, with the sums of distances of cluster a."""
    for b in range(first + start, first + stop):
        _block_totals(b, a, blocks, values, weights, bounds, total[b])


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
def sum_panels(start, stop, panels, first, clusters, columns, points, squares, weights, cluster, bounds, out):
    """Add to ``out[b, a]`` the weighted distances between the points of some panels and those of clusters b.

    ``panels[t, p]`` holds dimension p of PANEL points from ``first + t * PANEL`` on, t in the range; `clusters` and
    `columns` are the ranges (start, stop) of clusters that out's columns and rows count from. Where a product cancels,
    a sum is taken from differences: what is left of the others has 46 correct bits. There are PANEL more points,
    squares, weights and clusters than are meant.
    """
    dim = points.shape[1]
    n_columns = columns[1] - columns[0]
    totals = np.empty((n_columns + OTHERS, PANEL))  # the last step may go beyond the columns
    flat, made = totals.reshape(-1), np.empty(OTHERS * PANEL)
    x, y = panels.reshape(-1), points.reshape(-1)
    begin, end = bounds[columns[0]], bounds[columns[1]]
    for t in range(start, stop):
        totals[:] = 0.0
        at, i0, base = t * dim * PANEL, first + t * PANEL, columns[0]
        first_products(x, at, i0, dim, y, begin, squares, weights, cluster, base, flat, made)
        j = begin + OTHERS
        while j < end:
            next_products(x, at, i0, dim, y, j, squares, weights, cluster, base, flat, made)
            j += OTHERS
        last_distances(x, at, i0, dim, y, j, squares, weights, cluster, base, flat, made)
        for lane in range(min(PANEL, bounds[clusters[1]] - i0)):
            i = i0 + lane
            for b in range(n_columns):  # innermost: sums in order wait for each addition
                total = totals[b, lane]
                if np.isnan(total):
                    total = 0.0
                    for k in range(bounds[base + b], bounds[base + b + 1]):
                        total += weights[k] * point_distance(points, i, k)
                out[b, cluster[i] - clusters[0]] += weights[i] * total


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
def add_up(clusters, totals, weights, bounds, sums):
    """Fill rows and columns A of `sums`, for the `clusters` A and from the diagonal on.

    ``totals[r]`` is about cluster ``clusters[r]``, ascending; it is summed over the points of each cluster, four
    clusters at a time: sums in order wait for each addition.
    """
    for r in range(0, len(clusters), 4):
        last = len(clusters) - 1
        a0, a1, a2, a3 = clusters[r], clusters[min(r + 1, last)], clusters[min(r + 2, last)], clusters[min(r + 3, last)]
        t0, t1, t2, t3 = totals[r], totals[min(r + 1, last)], totals[min(r + 2, last)], totals[min(r + 3, last)]
        for b in range(a0, len(bounds) - 1):
            s0 = s1 = s2 = s3 = 0.0
            for j in range(bounds[b], bounds[b + 1]):
                w = weights[j]
                s0 += w * t0[j]
                s1 += w * t1[j]
                s2 += w * t2[j]
                s3 += w * t3[j]
            for a, s in ((a0, s0), (a1, s1), (a2, s2), (a3, s3)):
                if b >= a:
                    sums[a, b] = s
                    sums[b, a] = s


@kernel
def cluster_sums(start, stop, clusters, blocks, values, weights, bounds, sums):
    """Fill row and column A of `sums`, A in a range of `clusters`, with the sums over pairs of clusters A and B >= A.

    Points are sorted by cluster, those of A being ``bounds[A]:bounds[A + 1]``. Each of the `blocks` has BLOCK of them
    side by side, `values` those of each cluster.
    """
    total = np.empty((stop - start, len(blocks), BLOCK))
    # Blocks outside, clusters inside: a block is read once for all clusters of the range.
    for b in range(bounds[clusters[start]] // BLOCK, len(blocks)):
        for r in range(start, stop):
            a = clusters[r]
            if b >= bounds[a] // BLOCK:
                _block_totals(b, a, blocks, values, weights, bounds, total[r - start, b])
    add_up(clusters[start:stop], total.reshape(stop - start, -1), weights, bounds, sums)
