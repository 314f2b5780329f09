# mypy: disallow-untyped-defs=False
"""Compiled loops of the search for nearest clusters: down the tree, or from lists of near clusters.

What is looked at is decided by float32 bounds; whatever decides an order is a float64 sum over instances in one fixed
order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._cluster_kernels import cluster_distance, moment_bound
from ._kernels import lean_kernel, part
from ._vectors import WIDTH, lowest_bit, near_boxes, near_means, scratch

LIST_LENGTH = 3
LEVELS = 9  # of the tree, at most: room for 16^9 codes
LEVELS_WIDTH = LEVELS * WIDTH
LIST_TWICE, LIST_FOUR_TIMES = 2 * LIST_LENGTH, 4 * LIST_LENGTH
GROUP = 32  # queries that read a leaf together where all leaves are read
SLACK = 1.0 - 1e-12  # bounds are compared after giving way by more than the 41 bits of a distance round off
MOMENTS_FROM = 16  # members of both clusters: with fewer, a distance costs less than its bound


class Near(NamedTuple):
    """What was found for the cluster in each slot."""

    nearest: np.ndarray  # int64: slot, -1 if none is within the bound
    distance: np.ndarray  # float64
    slot: np.ndarray  # int32 (slots, length): a list of near clusters, ...
    value: np.ndarray  # float64: ... ascending, their distances or lower bounds of them, ...
    version: np.ndarray  # int32: ... and for which version of them; -1 marks a bound
    radius: np.ndarray  # float64: all that are not in the list are at least so far away


@part
def _threshold(distance, tree):
    """Return the float32 squared tree distance beyond which a mean is certainly farther than `distance`."""
    if not distance < 1e17:
        return np.float32(1e35)
    reach = (distance * tree.scale + tree.margin) * tree.relative
    return np.float32(min(reach * reach * (1.0 + 1e-6) + 1e-30, 1e35))


@part
def _precedes(value, s, t, best_value, best, representative):
    """Return whether the pair (s, t) at `value` comes before the pair (s, best): the rule for ties."""
    if value != best_value or best < 0:
        return value < best_value
    low = min(representative[s], representative[t])
    best_low = min(representative[s], representative[best])
    if low != best_low:
        return low < best_low
    return max(representative[s], representative[t]) < max(representative[s], representative[best])


@part
def _clear(s, near, bound):
    """Forget what was found for slot s, before a search within `bound`."""
    near.nearest[s] = -1
    near.distance[s] = np.inf
    near.radius[s] = bound
    for k in range(near.slot.shape[1]):
        near.slot[s, k] = -1
        near.value[s, k] = np.inf


@part
def _take(s, t, value, slots, near):
    """Note that the cluster in slot t is at distance `value` from that in slot s."""
    if _precedes(value, s, t, near.distance[s], near.nearest[s], slots.representative):
        near.nearest[s] = t
        near.distance[s] = value
    k = near.slot.shape[1] - 1
    if value >= near.value[s, k]:
        return
    while k > 0 and near.value[s, k - 1] > value:
        near.value[s, k] = near.value[s, k - 1]
        near.slot[s, k] = near.slot[s, k - 1]
        near.version[s, k] = near.version[s, k - 1]
        k -= 1
    near.value[s, k] = value
    near.slot[s, k] = t
    near.version[s, k] = slots.version[t]
    near.radius[s] = min(near.radius[s], near.value[s, near.slot.shape[1] - 1])


@part
def _look_at_leaf(s, leaf, query, threshold, size_limit, tree, slots, points, near, sqdist):
    """Note what is near enough in a leaf; return the new threshold."""
    hits = near_means(tree.leaves, leaf, query, threshold, sqdist)
    while hits:
        i = lowest_bit(hits)
        hits &= hits - np.uint64(1)
        t = leaf * WIDTH + i
        if t == s or sqdist[i] > threshold or (size_limit > 0 and slots.codes[s] + slots.codes[t] > size_limit):
            continue
        large = min(slots.size[s], slots.size[t]) >= MOMENTS_FROM and slots.moments.shape[0] > 0
        if large and moment_bound(s, t, slots.mean, slots.moments) * SLACK > near.radius[s]:
            continue
        value = cluster_distance(s, t, slots, points)
        if value <= near.radius[s]:
            _take(s, t, value, slots, near)
            threshold = _threshold(near.radius[s], tree)
    return threshold


@lean_kernel
def search(start, stop, queries, bound, size_limit, tree, slots, points, near):
    """Find for each query the nearest cluster no farther than `bound`, and its list of near clusters."""
    n_levels = len(tree.level_start) - 1
    sqdist = scratch(LEVELS_WIDTH, np.float32).reshape(-1, WIDTH)  # of a node's children, for each level
    waiting = scratch(LEVELS, np.uint64)  # bits of the near ones among them not yet looked at
    node = scratch(LEVELS, np.int64)
    for q in range(start, stop):
        s = queries[q]
        query = slots.coordinates[s]
        _clear(s, near, bound)
        threshold = _threshold(bound, tree)
        # From the own leaf upwards: what is below the next ancestor, without the child that we come from. The first
        # steps make the reach short before there is much to look at.
        ancestor = s // WIDTH
        seen = np.uint64(0)
        for top in range(n_levels + 1):
            level, here = top, ancestor
            while True:
                if level == 0:
                    threshold = _look_at_leaf(
                        s, here, query, threshold, size_limit, tree, slots, points, near, sqdist[0]
                    )
                    level = 1
                else:
                    node[level] = here
                    place = tree.level_start[level - 1] + here
                    waiting[level] = near_boxes(tree.low, tree.high, place, query, threshold, sqdist[level])
                    if level == top:
                        waiting[level] &= ~seen
                found = False
                while level <= top and not found:
                    if waiting[level] == 0:
                        level += 1
                        continue
                    i = lowest_bit(waiting[level])
                    waiting[level] &= waiting[level] - np.uint64(1)
                    found = sqdist[level, i] <= threshold
                if not found:
                    break
                here = node[level] * WIDTH + i
                level -= 1
            seen = np.uint64(1) << np.uint64(ancestor % WIDTH)
            ancestor //= WIDTH


@lean_kernel
def scan(start, stop, queries, bound, size_limit, tree, slots, points, near):
    """Do what `search` does where boxes do not prune: look at all leaves, for GROUP queries at a time.

    A group reads each leaf once, which in many dimensions is most of the cost.
    """
    sqdist = scratch(WIDTH, np.float32)
    threshold = scratch(GROUP, np.float32)
    for g in range(start, stop):
        group = queries[g * GROUP : (g + 1) * GROUP]
        for s in group:
            _clear(s, near, bound)
        threshold[:] = _threshold(bound, tree)
        for step in range(len(tree.leaves)):
            leaf = (group[0] // WIDTH + step) % len(tree.leaves)  # near ones first: they soon give a short reach
            for q in range(len(group)):
                s = group[q]
                query = slots.coordinates[s]
                threshold[q] = _look_at_leaf(
                    s, leaf, query, threshold[q], size_limit, tree, slots, points, near, sqdist
                )


@lean_kernel
def refresh(start, stop, queries, bound, size_limit, slots, points, near, failed):
    """Find the nearest cluster of each query from its list; mark it `failed` where the list cannot prove it.

    Values of listed clusters that have merged since are lower bounds of their present distances, for a merged cluster
    is never nearer than the nearer of its parts; only those that might be the nearest are computed anew.
    """
    length = near.slot.shape[1]
    for q in range(start, stop):
        s = queries[q]
        listed, values, versions = near.slot[s], near.value[s], near.version[s]
        for k in range(length):
            if listed[k] >= 0:
                t = slots.owner[listed[k]]
                if t != listed[k] or versions[k] != slots.version[t]:
                    versions[k] = -1
                listed[k] = t
                if t == s or not slots.alive[t] or (size_limit > 0 and slots.codes[s] + slots.codes[t] > size_limit):
                    listed[k] = -1
                    values[k] = np.inf
        while True:
            best = -1
            best_value = np.inf
            stale = -1
            stale_value = np.inf
            for k in range(length):
                if listed[k] < 0:
                    continue
                if versions[k] < 0:
                    if values[k] < stale_value:
                        stale = k
                        stale_value = values[k]
                elif _precedes(values[k], s, listed[k], best_value, best, slots.representative):
                    best = listed[k]
                    best_value = values[k]
            if stale < 0 or stale_value * SLACK > min(best_value, bound) or stale_value * SLACK >= near.radius[s]:
                break
            t = listed[stale]
            value = cluster_distance(s, t, slots, points)
            for k in range(length):
                if listed[k] == t:
                    listed[k] = -1
                    values[k] = np.inf
            listed[stale] = t
            values[stale] = value
            versions[stale] = slots.version[t]
        failed[s] = False
        if best >= 0 and best_value < near.radius[s] * SLACK:
            near.nearest[s] = best
            near.distance[s] = best_value
        elif near.radius[s] * SLACK > bound:
            near.nearest[s] = -1  # all that is near enough is in the list, and it holds nothing near enough
            near.distance[s] = np.inf
        else:
            failed[s] = True


@lean_kernel
def merge_lists(start, stop, kept, gone, slots, near, merged):
    """Write the list of each merged cluster to `merged`: the union of both lists, with lower bounds for values.

    A cluster in one list only is at least the other's radius away from that part; distances of a merged cluster are
    the weighted means of those of its parts. To be called before the clusters are merged.
    """
    length = near.slot.shape[1]
    listed = scratch(LIST_TWICE, np.int32)
    values = scratch(LIST_FOUR_TIMES, np.float64).reshape(-1, 2)
    for i in range(start, stop):
        filled = 0
        for side in range(2):
            s = kept[i] if side == 0 else gone[i]
            other = gone[i] if side == 0 else kept[i]
            for k in range(length):
                t = near.slot[s, k]
                if t < 0:
                    continue
                t = slots.owner[t]
                if t == kept[i] or t == gone[i]:
                    continue
                place = 0
                while place < filled and listed[place] != t:
                    place += 1
                if place == filled:
                    listed[place] = t
                    values[place, side] = min(near.value[s, k], near.radius[s])
                    values[place, 1 - side] = near.radius[other]
                    filled += 1
                else:
                    values[place, side] = min(values[place, side], near.value[s, k])
        share = slots.weight[kept[i]] / (slots.weight[kept[i]] + slots.weight[gone[i]])
        reach = (share * near.radius[kept[i]] + (1.0 - share) * near.radius[gone[i]]) * (1.0 - 1e-15)
        out_slot = merged.slot[i]
        out_value = merged.value[i]
        out_slot[:] = -1
        out_value[:] = np.inf
        written = 0
        for place in range(filled):
            value = (share * values[place, 0] + (1.0 - share) * values[place, 1]) * (1.0 - 1e-15)
            if value >= reach:
                continue
            if written < length:
                k = written
                written += 1
            elif value < out_value[length - 1]:
                k = length - 1
                reach = min(reach, out_value[length - 1])
            else:
                reach = min(reach, value)
                continue
            while k > 0 and out_value[k - 1] > value:
                out_value[k] = out_value[k - 1]
                out_slot[k] = out_slot[k - 1]
                k -= 1
            out_value[k] = value
            out_slot[k] = listed[place]
        merged.version[i, :] = -1
        merged.radius[i] = reach
