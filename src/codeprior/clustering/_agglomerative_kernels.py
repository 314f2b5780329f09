# mypy: disallow-untyped-defs=False
"""Compiled loops of the linkages that are defined by an update of distances (Lance and Williams, 1967)."""

from __future__ import annotations

import numpy as np

from ._kernels import kernel

COMPLETE, WARD, CENTROID = range(3)


@kernel
def _row(i, n):
    """Return where the distances of i to i + 1, i + 2, ... begin, less i + 1: that to j is at ``_row(i, n) + j``."""
    return i * (2 * n - i - 1) // 2 - i - 1


@kernel
def condense(start, stop, vectors, squared, distances):
    """Fill in the distances of rows of the range to all later ones, or their squares."""
    n, width = vectors.shape
    for i in range(start, stop):
        for j in range(i + 1, n):
            total = 0.0
            for axis in range(width):
                gap = vectors[i, axis] - vectors[j, axis]
                total += gap * gap
            distances[_row(i, n) + j] = total if squared else np.sqrt(total)


@kernel
def _search(i, n, alive, distances, nearest, bound):
    """Find the nearest living cluster behind i, of several the first."""
    bound[i] = np.inf
    nearest[i] = -1
    row = _row(i, n)
    for j in range(i + 1, n):
        if alive[j] and distances[row + j] < bound[i]:
            bound[i] = distances[row + j]
            nearest[i] = j


@kernel
def begin(start, stop, n, alive, distances, nearest, bound):
    """Find the nearest cluster behind each of the range."""
    for i in range(start, stop):
        _search(i, n, alive, distances, nearest, bound)


@kernel
def merge(first, last, update, distances, alive, size, cluster, nearest, bound, Z):
    """Make the merges `first` to `last` of the tree; the arrays keep what the next call needs.

    ``bound[i]`` is at most the distance from i to any later cluster, and is that of ``nearest[i]`` where that lives and
    is no nearer than it says (Müllner, arXiv:1109.2378, figure 3: "generic linkage").
    """
    n = len(alive)
    for step in range(first, last):
        while True:
            i = -1
            for k in range(n):
                if alive[k] and nearest[k] >= 0 and (i < 0 or bound[k] < bound[i]):
                    i = k
            j = nearest[i]
            if alive[j] and distances[_row(i, n) + j] == bound[i]:
                break
            _search(i, n, alive, distances, nearest, bound)
        Z[step, 0], Z[step, 1] = min(cluster[i], cluster[j]), max(cluster[i], cluster[j])
        Z[step, 2], Z[step, 3] = bound[i], size[i] + size[j]
        alive[j] = False
        for k in range(n):
            if not alive[k] or k == i:
                continue
            to_i = _row(k, n) + i if k < i else _row(i, n) + k
            to_j = _row(k, n) + j if k < j else _row(j, n) + k
            value = _updated(update, distances[to_i], distances[to_j], bound[i], size[i], size[j], size[k])
            distances[to_i] = value
            if k < i:
                if nearest[k] == j:
                    nearest[k] = i
                if value < bound[k]:  # where the new centroid is nearer than both old ones were
                    nearest[k], bound[k] = i, value
        size[i] += size[j]
        cluster[i] = n + step
        _search(i, n, alive, distances, nearest, bound)


@kernel
def _updated(update, to_a, to_b, between, a, b, c):
    """Return the distance of a third cluster to the union of two, from its distances to these and their sizes."""
    if update == COMPLETE:
        return max(to_a, to_b)
    if update == WARD:
        return ((a + c) * to_a + (b + c) * to_b - c * between) / (a + b + c)
    return (a * to_a + b * to_b - a * b * between / (a + b)) / (a + b)
