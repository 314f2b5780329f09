# mypy: disallow-untyped-defs=False
"""Compiled loops of the k-means family: distances to centres, to members, and the filling of clusters of equal size.

As in `_kernels`, every sum has one order, so that the answer does not depend on the thread that computes it.
"""

from __future__ import annotations

import numpy as np

from codeprior.clustering._kernels import kernel


@kernel
def nearest_centres(start, stop, vectors, columns, nearest, sqdist):
    """Fill in the nearest centre of rows `start` to `stop`; `columns` holds the centres as (E, G)."""
    width, n_centres = columns.shape
    to_centre = np.empty(n_centres)
    for row in range(start, stop):
        to_centre[:] = 0.0
        # Centres in the inner loop: each sum keeps its order, and the loop still becomes SIMD code.
        for axis in range(width):
            value = vectors[row, axis]
            for centre in range(n_centres):
                gap = value - columns[axis, centre]
                to_centre[centre] += gap * gap
        best = 0
        for centre in range(1, n_centres):
            if to_centre[centre] < to_centre[best]:
                best = centre
        nearest[row] = best
        sqdist[row] = to_centre[best]


@kernel
def shortened(start, stop, rows, columns, weights, drawn, closest, shorter, errors):
    """Fill ``shorter[t]`` with the squared distances to the nearest of the seeds and the point ``drawn[t]``.

    `closest` are those to the seeds, `columns` the points as (E, V). All for the points of the range, one of those of
    `rows` each, whose weighted sum goes to the range's column of `errors`.
    """
    for t in range(len(drawn)):
        row = shorter[t]
        row[start:stop] = 0.0
        for axis in range(len(columns)):
            value = columns[axis, drawn[t]]
            for i in range(start, stop):
                gap = columns[axis, i] - value
                row[i] += gap * gap
        total = 0.0
        for i in range(start, stop):
            row[i] = min(row[i], closest[i])
            total += row[i] * weights[i]
        errors[t, start // rows] = total


@kernel
def two_nearest(products, half_norms, nearest, gap):
    """Find each row's smallest ``half_norm - product``, which is the nearest centre, and the step to the next one."""
    for row in range(len(products)):
        best, second, found = np.inf, np.inf, 0
        for centre in range(len(half_norms)):
            half = half_norms[centre] - products[row, centre]
            if half < second:
                if half < best:
                    second, best, found = best, half, centre
                else:
                    second = half
        nearest[row] = found
        gap[row] = second - best


@kernel
def fill_in_order(codes, vectors, nearest, room, left, place, open_ids, open_columns, labels):
    """Put `codes`, one after the other, into the nearest cluster that has room.

    The clusters with room are packed: ``open_ids[i]`` has the centre ``open_columns[:, i]`` for i < left[0], and
    `place` finds i, or has -1. `room` counts the codes that a cluster may still take; left[1] of the clusters may
    take one more than that.
    """
    to_centre = np.empty(len(place))
    for code in codes:
        chosen = nearest[code]
        if place[chosen] < 0:
            n_open = left[0]
            to_centre[:n_open] = 0.0
            for axis in range(len(open_columns)):
                value = vectors[code, axis]
                for i in range(n_open):
                    gap = value - open_columns[axis, i]
                    to_centre[i] += gap * gap
            best = 0
            for i in range(1, n_open):
                if to_centre[i] < to_centre[best] or (to_centre[i] == to_centre[best] and open_ids[i] < open_ids[best]):
                    best = i
            chosen = open_ids[best]
        labels[code] = chosen
        takes_extra = room[chosen] == 0
        if takes_extra:
            left[1] -= 1
        else:
            room[chosen] -= 1
        if takes_extra or (room[chosen] == 0 and left[1] == 0):
            _close(chosen, left, place, open_ids, open_columns)
        if takes_extra and left[1] == 0:
            # With the last extra place gone, the clusters that were waiting for one are full too.
            i = 0
            while i < left[0]:
                if room[open_ids[i]] == 0:
                    _close(open_ids[i], left, place, open_ids, open_columns)
                else:
                    i += 1


@kernel
def _close(cluster, left, place, open_ids, open_columns):
    """Take a cluster out of the open ones, the last of which fills the hole."""
    left[0] -= 1
    hole, last = place[cluster], left[0]
    open_ids[hole] = open_ids[last]
    open_columns[:, hole] = open_columns[:, last]
    place[open_ids[hole]] = hole
    place[cluster] = -1


@kernel
def nearest_by_members(
    start, stop, vectors, columns, rows, row_weights, starts, masses, first, slack, nearest, distance
):
    """Fill in the cluster of smallest (weighted) mean distance to its members, for rows `start` to `stop`.

    `columns` holds the clusters' means as (E, G), `rows` the members cluster by cluster, `first` a cluster to begin
    with. A cluster is skipped when its mean is too far for it to win.
    """
    width, n_clusters = columns.shape
    to_mean = np.empty(n_clusters)
    for row in range(start, stop):
        to_mean[:] = 0.0
        for axis in range(width):
            value = vectors[row, axis]
            for cluster in range(n_clusters):
                gap = value - columns[axis, cluster]
                to_mean[cluster] += gap * gap
        best = first[row]
        best_distance = _mean_distance(vectors[row], rows, row_weights, starts[best], starts[best + 1], masses[best])
        for cluster in range(n_clusters):
            if cluster == first[row] or to_mean[cluster] > (best_distance + slack) ** 2:
                continue
            candidate = _mean_distance(
                vectors[row], rows, row_weights, starts[cluster], starts[cluster + 1], masses[cluster]
            )
            if candidate < best_distance or (candidate == best_distance and cluster < best):
                best, best_distance = cluster, candidate
        nearest[row] = best
        distance[row] = best_distance


@kernel
def _mean_distance(vector, rows, row_weights, start, stop, mass):
    total = 0.0
    for member in range(start, stop):
        sqdist = 0.0
        for axis in range(len(vector)):
            gap = vector[axis] - rows[member, axis]
            sqdist += gap * gap
        total += row_weights[member] * np.sqrt(sqdist)
    return total / mass
