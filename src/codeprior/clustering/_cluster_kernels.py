# mypy: disallow-untyped-defs=False
"""Compiled loops over clusters and their members: mean distances, bounds of them, merging."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._kernels import lean_kernel, part, tie_rounded
from ._vectors import LANES, scratch, sum_distances

MOST_DIMENSIONS = 128  # in which a tree is of use, and more


class Slots(NamedTuple):
    """The clusters, one a slot, in the order of the tree over their means; all arrays have a row for each slot."""

    representative: np.ndarray  # int64: lowest code
    codes: np.ndarray  # int64: number of codes
    weight: np.ndarray  # float64: sum of instance weights
    begin: np.ndarray  # int64: of the members, in `Points`
    size: np.ndarray  # int64: number of members; equal codes are one
    mean: np.ndarray  # float64 (slots, E), about the origin
    coordinates: np.ndarray  # float32 (slots, E): the mean in the tree
    moments: np.ndarray  # float64, see `cluster_moments`; no rows where they are not used
    alive: np.ndarray  # bool: whether the cluster may still merge
    owner: np.ndarray  # int64: the slot whose cluster holds what was in this one
    version: np.ndarray  # int32: number of merges


class Points(NamedTuple):
    """The members of the clusters, dimension p of member j at ``begin * E + p * size + j``: vectors for one load."""

    values: np.ndarray  # float32 or float64, flat, and LANES more than the members need
    weights: np.ndarray  # float64, one a member
    rows: np.ndarray  # int64, one a member: where it comes from


@lean_kernel
def lay_out(start, stop, points, rows, begin, size, values):
    """Write the members of the clusters of the range, given by their rows in `points`, as `Points` has them."""
    dim = points.shape[1]
    for c in range(start, stop):
        for j in range(size[c]):
            for p in range(dim):
                values[begin[c] * dim + p * size[c] + j] = points[rows[begin[c] + j], p]


@part
def point_distance(values, a, b, dim):
    """Return the distance of two points whose coordinates begin at `a` and `b`, rounded for ties."""
    sqdist = 0.0
    for p in range(dim):
        diff = np.float64(values[a + p]) - np.float64(values[b + p])
        sqdist += diff * diff
    return tie_rounded(np.sqrt(sqdist))


@part
def cluster_distance(s, t, slots, points):
    """Return the mean distance of the clusters in slots s and t, rounded for ties; the same for (t, s)."""
    dim = slots.mean.shape[1]
    size = slots.size
    if size[s] == 1 and size[t] == 1:
        return point_distance(points.values, slots.begin[s] * dim, slots.begin[t] * dim, dim)
    # The members of one cluster lie side by side, those of the other are taken one by one: the fewest steps.
    steps, otherwise = -(-size[s] // LANES) * size[t], -(-size[t] // LANES) * size[s]
    if otherwise < steps or (otherwise == steps and slots.representative[t] < slots.representative[s]):
        s, t = t, s
    a, b = slots.begin[s], slots.begin[t]
    row = scratch(LANES, np.float64)
    total = 0.0
    for k in range(0, size[s], LANES):
        place = a * dim + k
        sum_distances(points.values, place, size[s], 1, points.values, b * dim, size[t], points.weights, b, dim, row)
        for lane in range(min(LANES, size[s] - k)):
            total += points.weights[a + k + lane] * row[lane]
    return tie_rounded(total / (slots.weight[s] * slots.weight[t]))


@part
def moment_bound(s, t, mean, moments):
    """Return a lower bound of the mean distance of two clusters from their moments.

    With d the distance of two random members, E[d] >= E[d²]^(3/2) / E[d⁴]^(1/2) by Hölder's inequality, and both
    moments of d² follow from those of the clusters about their means: with delta the difference of the means,
    E[d²] = |delta|² + tr A + tr B and
    Var[d²] = Var(|a|² + 2 delta·a) + Var(|b|² - 2 delta·b) + 4 tr(A B), A and B the two covariances.
    """
    dim = mean.shape[1]
    sq = 0.0
    cross = 0.0
    quadratic = 0.0
    linear = 0.0
    for p in range(dim):
        dp = mean[s, p] - mean[t, p]
        sq += dp * dp
        linear += dp * (moments[s, 2 + p] - moments[t, 2 + p])
    k = 2 + dim
    for p in range(dim):
        dp = mean[s, p] - mean[t, p]
        a = moments[s, k]
        b = moments[t, k]
        cross += a * b
        quadratic += dp * dp * (a + b)
        k += 1
        for r in range(p + 1, dim):
            a = moments[s, k]
            b = moments[t, k]
            cross += 2.0 * a * b
            quadratic += 2.0 * dp * (mean[s, r] - mean[t, r]) * (a + b)
            k += 1
    second = sq + moments[s, 0] + moments[t, 0]
    variance = moments[s, 1] + moments[t, 1] + 4.0 * (quadratic + linear + cross)
    if second <= 0.0:
        return 0.0
    variance = max(variance, 0.0) + 1e-12 * second * second
    return np.sqrt(second) / np.sqrt(1.0 + variance / (second * second))


@lean_kernel
def cluster_moments(start, stop, which, slots, points, origin):
    """Fill the moments of some slots: tr A, Var |a|², E[a |a|²], and the upper triangle of A.

    Here a is a random member less the mean of its cluster, and A their covariance.
    """
    dim = slots.mean.shape[1]
    a = scratch(MOST_DIMENSIONS, np.float64)
    for r in range(start, stop):
        s = which[r]
        out = slots.moments[s]
        out[:] = 0.0
        fourth = 0.0
        begin, size = slots.begin[s], slots.size[s]
        for j in range(size):
            w = points.weights[begin + j] / slots.weight[s]
            sq = 0.0
            for p in range(dim):
                a[p] = (np.float64(points.values[begin * dim + p * size + j]) - origin[p]) - slots.mean[s, p]
                sq += a[p] * a[p]
            out[0] += w * sq
            fourth += w * sq * sq
            k = 2 + dim
            for p in range(dim):
                out[2 + p] += w * sq * a[p]
                for q in range(p, dim):
                    out[k] += w * a[p] * a[q]
                    k += 1
        out[1] = fourth - out[0] * out[0]


@lean_kernel
def merge_slots(kept, gone, slots, scale, parts):
    """Merge the clusters in slots `gone` into those in slots `kept`, all but their members and moments.

    ``parts[s]`` becomes the slots whose members are now those of slot s, that of the lower representative first: the
    order of members is the order of sums.
    """
    dim = slots.mean.shape[1]
    for i in range(len(kept)):
        s, t = kept[i], gone[i]
        w, v = slots.weight[s], slots.weight[t]
        for p in range(dim):
            mean = (slots.mean[s, p] * w + slots.mean[t, p] * v) / (w + v)
            slots.mean[s, p] = mean
            slots.coordinates[s, p] = np.float32(min(max(mean * scale, -4.0), 4.0))
        slots.weight[s] = w + v
        slots.codes[s] += slots.codes[t]
        slots.version[s] += 1
        slots.alive[t] = False
        slots.owner[t] = s
        parts[s, 0], parts[s, 1] = s, t
        if slots.representative[t] < slots.representative[s]:
            slots.representative[s] = slots.representative[t]
            parts[s, 0], parts[s, 1] = t, s
    for s in range(len(slots.owner)):
        slots.owner[s] = slots.owner[slots.owner[s]]


@lean_kernel
def move_members(start, stop, which, parts, begin, size, slots, points, moved):
    """Write the members of some slots, those of `parts` side by side, to their new places in `moved`.

    `begin` and `size` say where the parts are in `points`. Both may be the same arrays: old and new places differ.
    """
    dim = slots.mean.shape[1]
    for r in range(start, stop):
        s = which[r]
        first, n = slots.begin[s], slots.size[s]
        place = 0
        for source in parts[s]:
            if source < 0:
                continue
            old, n_old = begin[source], size[source]
            for j in range(n_old):
                moved.weights[first + place + j] = points.weights[old + j]
                moved.rows[first + place + j] = points.rows[old + j]
            for p in range(dim):
                for j in range(n_old):
                    moved.values[first * dim + p * n + place + j] = points.values[old * dim + p * n_old + j]
            place += n_old
