# mypy: disallow-untyped-defs=False
"""Compiled loops over the graph of near clusters; see `_near`."""

from __future__ import annotations

import numpy as np

from ._kernels import kernel, lean_kernel, tie_rounded
from ._sum_kernels import point_distance
from ._vectors import WIDTH, large_products, lowest_bit


@lean_kernel
def near_in_products(products, first_row, n_rows, first_column, n_columns, halves, low, high, excess, found):
    """Append the pairs i < j whose product exceeds ``halves[i] + halves[j]``, and by how much; return their number.

    `products` begins with those of row ``first_row`` and the columns from ``first_column`` on; there and in `halves`
    are WIDTH more than needed. Nothing is written past the end of `low`, `high` and `excess`: the number returned tells
    what room there must be.
    """
    for r in range(n_rows):
        i = first_row + r
        for k in range(max(0, i + 1 - first_column) // WIDTH * WIDTH, n_columns, WIDTH):
            bits = large_products(products, r * n_columns + k, halves, first_column + k, halves[i])
            while bits:
                lane = lowest_bit(bits)
                bits &= bits - np.uint64(1)
                column = k + lane
                j = first_column + column
                if column < n_columns and j > i:
                    if found < len(low):
                        low[found] = i
                        high[found] = j
                        excess[found] = (products[r * n_columns + column] - halves[j]) - halves[i]
                    found += 1
    return found


@kernel
def link(low, high, at_least, weights, begin, length, neighbour, total):
    """Make the graph's rows from its pairs, whose distances are `at_least` so much; `length` starts at zero."""
    for t in range(len(low)):
        i, j = low[t], high[t]
        value = -at_least[t] * (weights[i] * weights[j])
        e = begin[i] + length[i]
        neighbour[e] = j
        total[e] = value
        length[i] += 1
        e = begin[j] + length[j]
        neighbour[e] = i
        total[e] = value
        length[j] += 1


@kernel
def member_sum(grouped, a, b):
    """Return the sum of w_i w_j |x_i - x_j| over the members of two clusters, the lower one's outermost.

    `grouped` is (points, weights, order, bounds): the members of cluster a are ``order[bounds[a]:bounds[a + 1]]``.
    """
    points, weights, order, bounds = grouped
    if a > b:
        a, b = b, a
    total = 0.0
    for s in range(bounds[a], bounds[a + 1]):
        i = order[s]
        row = 0.0
        for t in range(bounds[b], bounds[b + 1]):
            j = order[t]
            row += weights[j] * point_distance(points, i, j)
        total += weights[i] * row
    return total


@kernel
def nearest_in_rows(start, stop, graph, grouped, limit, weights, sizes, size_limit, nearest, distance):
    """For the rows of the range: find the nearest cluster within `limit`; of several the first, which is the rule.

    A total that is only known from below is made exact where it could be the smallest.
    """
    begin, length, neighbour, total = graph
    for a in range(start, stop):
        best, best_at = np.inf, -1
        for known in (True, False):
            for e in range(begin[a], begin[a] + length[a]):
                c = neighbour[e]
                if (total[e] >= 0.0) != known or (size_limit > 0 and sizes[a] + sizes[c] > size_limit):
                    continue
                if not known:
                    if -total[e] > min(best, limit) * (weights[a] * weights[c]):
                        continue
                    total[e] = member_sum(grouped, a, c)
                mean = tie_rounded(total[e] / (weights[a] * weights[c]))
                if mean < best or (mean == best and c < best_at):
                    best, best_at = mean, c
        nearest[a] = best_at if best <= limit else -1
        distance[a] = best


@kernel
def merge_near_rows(start, stop, old, new, place, old_weights, weights, first, second, reach):
    """Make the rows of new clusters from those of the old clusters that they hold, without what is beyond `reach`.

    `old` and `new` are graphs. New cluster a holds the old clusters ``first[a]`` and, unless it is -1, ``second[a]``;
    ``place[c]`` is the new cluster of an old one, -1 if it merges no more. Parts that were not near are farther than
    `reach`: with them a total is known from below. Sums of two pairs are added crosswise, so that both of their rows
    hold the same to the last bit.
    """
    old_begin, old_length, old_neighbour, old_total = old
    begin, length, neighbour, total = new
    slot = np.full(len(first), -1, dtype=np.int32)  # of a new cluster: its place among those met in this row
    met = np.empty(len(first), dtype=np.int32)
    parts = np.empty((len(first), 4))
    pair = np.empty(2, dtype=np.int64)
    for a in range(start, stop):
        pair[0], pair[1] = first[a], second[a]
        n_met = 0
        e_new = begin[a]
        for p in range(2):
            if pair[p] < 0:
                continue
            for e in range(old_begin[pair[p]], old_begin[pair[p]] + old_length[pair[p]]):
                c = place[old_neighbour[e]]
                if c < 0 or c == a:
                    continue
                if second[a] < 0 and second[c] < 0:  # neither has merged
                    if abs(old_total[e]) <= reach * (weights[a] * weights[c]):
                        neighbour[e_new] = c
                        total[e_new] = old_total[e]
                        e_new += 1
                    continue
                if slot[c] < 0:
                    slot[c] = n_met
                    met[n_met] = c
                    parts[n_met, :] = np.inf
                    n_met += 1
                parts[slot[c], 2 * p + (first[c] != old_neighbour[e])] = old_total[e]
        for t in range(n_met):
            c = met[t]
            slot[c] = -1
            exact = True
            for p in range(2):
                for q in range(2):
                    other = first[c] if q == 0 else second[c]
                    if pair[p] < 0 or other < 0:
                        parts[t, 2 * p + q] = 0.0
                    elif parts[t, 2 * p + q] == np.inf:
                        parts[t, 2 * p + q] = reach * (old_weights[pair[p]] * old_weights[other])
                        exact = False
                    elif parts[t, 2 * p + q] < 0.0:
                        parts[t, 2 * p + q] = -parts[t, 2 * p + q]
                        exact = False
            value = (parts[t, 0] + parts[t, 3]) + (parts[t, 1] + parts[t, 2])
            if value <= reach * (weights[a] * weights[c]):
                neighbour[e_new] = c
                total[e_new] = value if exact else -value
                e_new += 1
        length[a] = e_new - begin[a]
