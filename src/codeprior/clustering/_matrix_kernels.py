# mypy: disallow-untyped-defs=False
"""Compiled loops over the matrix of distance sums between clusters."""

from __future__ import annotations

import numpy as np

from ._kernels import kernel, tie_rounded


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
def merge_pairs(sums, weights, sizes, formed, frozen_above, size_limit, bound, state, low, high, heights):
    """Merge the nearest pair, again and again, while it is within `bound`; write the merges and return their number.

    At most as many as there is room for; all but the bounds changes, and the next call goes on with it. `formed` is the
    height at which each cluster was made, and `state` (alive, stale, nearest, distance, beyond): whether it is left,
    whether its nearest must be searched for, that nearest one and its distance, and what no other is nearer than. A
    merged cluster nearer than that is the nearest, without a search. Clusters are in the order of representatives.
    """
    alive, stale, nearest, distance, beyond = state
    n = len(weights)
    made = 0
    while made < len(low):
        best = -1
        for i in range(n):
            if not alive[i]:
                continue
            if stale[i]:
                distance[i], nearest[i], beyond[i] = _nearest_alive(i, sums[i], alive, weights, sizes, size_limit)
                stale[i] = False
            if nearest[i] >= 0 and (best < 0 or distance[i] < distance[best]):
                best = i
        if best < 0 or distance[best] > bound:
            return made
        i, j = best, nearest[best]
        formed[i] = max(distance[i], max(formed[i], formed[j]))  # which rounding apart is the first
        low[made], high[made], heights[made] = i, j, formed[i]
        made += 1
        weights[i] += weights[j]
        sizes[i] += sizes[j]
        alive[j] = False
        alive[i] = frozen_above == 0 or sizes[i] <= frozen_above
        for k in range(n):
            sums[i, k] += sums[j, k]
            sums[k, i] = sums[i, k]
            if nearest[k] == i or nearest[k] == j:
                now = tie_rounded(sums[i, k] / (weights[i] * weights[k]))
                may = alive[i] and (size_limit == 0 or sizes[i] + sizes[k] <= size_limit)
                # Rounding may have left another a little nearer than `beyond` says.
                stale[k] = not (may and now < beyond[k] * (1.0 - 1e-9))
                nearest[k], distance[k] = i, now
        stale[i] = True
    return made


@kernel
def _nearest_alive(i, row, alive, weights, sizes, size_limit):
    """Return distance and position of the cluster nearest to cluster i, of several the first, and the next's distance.

    If there is none they are infinite, -1 and infinite.
    """
    best, nearest, following = np.inf, -1, np.inf
    for j in range(len(row)):
        if alive[j] and j != i and (size_limit == 0 or sizes[i] + sizes[j] <= size_limit):
            value = tie_rounded(row[j] / (weights[i] * weights[j]))
            if value < best:
                best, nearest, following = value, j, best
            elif value < following:
                following = value
    return best, nearest, following
