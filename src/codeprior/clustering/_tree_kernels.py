# mypy: disallow-untyped-defs=False
"""Compiled loops of the nearest-cluster search: a tree of boxes over cluster means, and lists of near clusters.

A leaf holds WIDTH means, an inner node WIDTH boxes, both with the WIDTH values of one dimension side by side, so that
one vector instruction treats a whole node. The means and boxes are float32 and only decide what is looked at; whatever
decides an order is a float64 sum over instances in one fixed order.
"""

from __future__ import annotations

import numpy as np

from ._kernels import LANES, block_sqdist, kernel, tie_rounded

WIDTH = 16
GROUP = 32  # queries that read a leaf together where all leaves are read
FAR = np.float32(1e18)  # where there is no mean: its square is still finite
SLACK = 1.0 - 1e-12  # bounds are compared after giving way by more than the 41 bits of a distance round off


@kernel
def select(keys, items, start, stop, middle):
    """Reorder ``keys[start:stop]`` and `items` alike so that no key before `middle` exceeds one from there on."""
    low = start
    high = stop - 1
    while high > low:
        a = keys[low]
        b = keys[(low + high) >> 1]
        c = keys[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i = low
        j = high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                items[i], items[j] = items[j], items[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            return


@kernel
def split_range(coordinates, order, keys, start, stop):
    """Split ``order[start:stop]`` along its widest dimension; return where: a power of two of leaves from `start`."""
    dim = coordinates.shape[1]
    widest = np.float32(-1.0)
    axis = 0
    for p in range(dim):
        low = coordinates[order[start], p]
        high = low
        for i in range(start, stop):
            v = coordinates[order[i], p]
            low = min(low, v)
            high = max(high, v)
        if high - low > widest:
            widest = high - low
            axis = p
    half = WIDTH
    while 2 * half < stop - start:
        half *= 2
    for i in range(start, stop):
        keys[i] = coordinates[order[i], axis]
    select(keys, order, start, stop, start + half)
    return start + half


@kernel
def order_ranges(first, last, coordinates, order, keys, bounds):
    """Order each range ``bounds[i]:bounds[i + 1]``, first <= i < last, so that aligned groups of leaves are boxes."""
    stack = np.empty((64, 2), dtype=np.int64)
    for r in range(first, last):
        stack[0, 0] = bounds[r]
        stack[0, 1] = bounds[r + 1]
        depth = 1
        while depth:
            depth -= 1
            start = stack[depth, 0]
            stop = stack[depth, 1]
            if stop - start <= WIDTH:
                continue
            middle = split_range(coordinates, order, keys, start, stop)
            stack[depth, 0] = start
            stack[depth, 1] = middle
            stack[depth + 1, 0] = middle
            stack[depth + 1, 1] = stop
            depth += 2


@kernel
def fill_leaves(start, stop, coordinates, alive, leaves):
    """Lay out the coordinates of slots for the leaves of the range; slots that are not alive are FAR."""
    n, dim = coordinates.shape
    for leaf in range(start, stop):
        for lane in range(WIDTH):
            slot = leaf * WIDTH + lane
            here = slot < n and alive[slot]
            for p in range(dim):
                leaves[leaf, p, lane] = coordinates[slot, p] if here else FAR


@kernel
def fit_leaf_boxes(start, stop, leaves, low, high):
    """Fill the nodes of the range with the boxes of their leaves; an empty leaf has its box FAR away."""
    dim = leaves.shape[1]
    for node in range(start, stop):
        for lane in range(WIDTH):
            leaf = node * WIDTH + lane
            for p in range(dim):
                a = FAR
                b = -FAR
                if leaf < leaves.shape[0]:
                    for i in range(WIDTH):
                        v = leaves[leaf, p, i]
                        a = min(a, v)
                        b = max(b, v if v < FAR else -FAR)
                low[node, p, lane] = a
                high[node, p, lane] = b if a < FAR else FAR


@kernel
def fit_node_boxes(start, stop, child_start, child_stop, offset, low, high):
    """Fill nodes ``offset + start .. offset + stop`` with the boxes of the nodes of the level below."""
    dim = low.shape[1]
    for i in range(start, stop):
        for lane in range(WIDTH):
            child = child_start + i * WIDTH + lane
            for p in range(dim):
                a = FAR
                b = -FAR
                if child < child_stop:
                    for k in range(WIDTH):
                        if low[child, p, k] < FAR:
                            a = min(a, low[child, p, k])
                            b = max(b, high[child, p, k])
                low[offset + i, p, lane] = a
                high[offset + i, p, lane] = b if a < FAR else FAR


@kernel
def _leaf_sqdist(leaves, leaf, query, out):
    """Fill `out` with the squared distances of the WIDTH means of a leaf to `query`, in float32.

    Written out for the eight and four dimensions that one pass over `out` adds; the tree has a multiple of four.
    """
    dim = leaves.shape[1]
    for i in range(WIDTH):
        out[i] = np.float32(0.0)
    p = 0
    while p + 8 <= dim:
        q0, q1, q2, q3 = query[p], query[p + 1], query[p + 2], query[p + 3]
        q4, q5, q6, q7 = query[p + 4], query[p + 5], query[p + 6], query[p + 7]
        for i in range(WIDTH):
            d0 = leaves[leaf, p, i] - q0
            d1 = leaves[leaf, p + 1, i] - q1
            d2 = leaves[leaf, p + 2, i] - q2
            d3 = leaves[leaf, p + 3, i] - q3
            d4 = leaves[leaf, p + 4, i] - q4
            d5 = leaves[leaf, p + 5, i] - q5
            d6 = leaves[leaf, p + 6, i] - q6
            d7 = leaves[leaf, p + 7, i] - q7
            out[i] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7))
        p += 8
    if p < dim:
        q0, q1, q2, q3 = query[p], query[p + 1], query[p + 2], query[p + 3]
        for i in range(WIDTH):
            d0 = leaves[leaf, p, i] - q0
            d1 = leaves[leaf, p + 1, i] - q1
            d2 = leaves[leaf, p + 2, i] - q2
            d3 = leaves[leaf, p + 3, i] - q3
            out[i] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@kernel
def _box_sqdist(low, high, node, query, out):
    """Fill `out` with the squared distances of the WIDTH boxes of a node to `query`, in float32."""
    zero = np.float32(0.0)
    for i in range(WIDTH):
        out[i] = zero
    for p in range(0, low.shape[1], 4):
        q0, q1, q2, q3 = query[p], query[p + 1], query[p + 2], query[p + 3]
        for i in range(WIDTH):
            a0, b0 = low[node, p, i] - q0, q0 - high[node, p, i]
            a1, b1 = low[node, p + 1, i] - q1, q1 - high[node, p + 1, i]
            a2, b2 = low[node, p + 2, i] - q2, q2 - high[node, p + 2, i]
            a3, b3 = low[node, p + 3, i] - q3, q3 - high[node, p + 3, i]
            t0 = a0 if a0 > b0 else b0
            t1 = a1 if a1 > b1 else b1
            t2 = a2 if a2 > b2 else b2
            t3 = a3 if a3 > b3 else b3
            t0 = t0 if t0 > zero else zero
            t1 = t1 if t1 > zero else zero
            t2 = t2 if t2 > zero else zero
            t3 = t3 if t3 > zero else zero
            out[i] += (t0 * t0 + t1 * t1) + (t2 * t2 + t3 * t3)


@kernel
def _hits(sqdist, threshold, out):
    """List the lanes whose value is at most `threshold`, without a branch; return how many."""
    n = 0
    for i in range(WIDTH):
        out[n] = i
        n += 1 if sqdist[i] <= threshold else 0
    return n


@kernel
def small_pair_sum(points, weights, following, a, n_a, b, n_b):
    """Return what `pair_sum` does, for clusters so small that laying them out does not pay."""
    total = 0.0
    i = a
    for _ in range(n_a):
        j = b
        for _ in range(n_b):
            sqdist = 0.0
            for p in range(points.shape[1]):
                diff = np.float64(points[i, p]) - np.float64(points[j, p])
                sqdist += diff * diff
            total += (weights[i] * weights[j]) * np.sqrt(sqdist)
            j = following[j]
        i = following[i]
    return total


@kernel
def pair_sum(points, weights, following, a, n_a, b, n_b, buffer, buffer_weights, distances):
    """Return the sum of w_i w_j |x_i - x_j| over i in the chain from point a and j in the chain from point b.

    The order of summation is fixed by the two chains; callers pass the cluster of the lower representative first.
    """
    dim = points.shape[1]
    total = 0.0
    j = b
    left = n_b
    while left > 0:
        m = min(left, LANES)
        for k in range(m):
            for p in range(dim):
                buffer[p, k] = points[j, p]
            buffer_weights[k] = weights[j]
            j = following[j]
        left -= m
        i = a
        for done in range(0, n_a, 2):
            i_next = following[i] if done + 1 < n_a else i
            block_sqdist(buffer, points, i, i_next, distances[0], distances[1])
            for t in range(min(2, n_a - done)):
                near = distances[t]
                for k in range(m):
                    near[k] = np.sqrt(near[k]) * buffer_weights[k]
                row = 0.0
                for k in range(m):
                    row += near[k]
                total += weights[i if t == 0 else i_next] * row
            i = following[i_next]
    return total


@kernel
def point_distance(points, i, j):
    """Return the distance of two points, rounded for ties."""
    sqdist = 0.0
    for p in range(points.shape[1]):
        diff = np.float64(points[i, p]) - np.float64(points[j, p])
        sqdist += diff * diff
    return tie_rounded(np.sqrt(sqdist))


@kernel
def cluster_distance(s, t, points, instance_weights, following, head, size, weight, representative, scratch):
    """Return the mean distance of the clusters in slots s and t, rounded for ties; the same for (t, s)."""
    if representative[t] < representative[s]:
        s, t = t, s
    if size[t] < 8:
        total = small_pair_sum(points, instance_weights, following, head[s], size[s], head[t], size[t])
    else:
        dim = points.shape[1]
        total = pair_sum(
            points,
            instance_weights,
            following,
            head[s],
            size[s],
            head[t],
            size[t],
            scratch[:dim],
            scratch[dim],
            scratch[dim + 1 :],
        )
    return tie_rounded(total / (weight[s] * weight[t]))


@kernel
def _moment_bound(s, t, mean, moments, dim):
    """Return a lower bound of the mean distance of two clusters from their moments.

    With d the distance of two random members, E[d] >= E[d²]^(3/2) / E[d⁴]^(1/2) by Hölder's inequality, and both
    moments of d² follow from those of the clusters about their means: with delta the difference of the means,
    E[d²] = |delta|² + tr A + tr B and
    Var[d²] = Var(|a|² + 2 delta·a) + Var(|b|² - 2 delta·b) + 4 tr(A B), A and B the two covariances.
    """
    sq = 0.0
    cross = 0.0
    quadratic = 0.0
    linear = 0.0
    k = 0
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


@kernel
def cluster_moments(start, stop, slots, points, instance_weights, following, origin, head, size, weight, mean, moments):
    """Fill ``moments[s]`` for slots of the range: tr A, Var |a|², E[a |a|²], and the upper triangle of A.

    Here a is a random member less the mean of its cluster, and A their covariance.
    """
    dim = points.shape[1]
    a = np.empty(dim)
    for r in range(start, stop):
        slot = slots[r]
        out = moments[slot]
        out[:] = 0.0
        fourth = 0.0
        i = head[slot]
        for _ in range(size[slot]):
            w = instance_weights[i] / weight[slot]
            sq = 0.0
            for p in range(dim):
                a[p] = (np.float64(points[i, p]) - origin[p]) - mean[slot, p]
                sq += a[p] * a[p]
            out[0] += w * sq
            fourth += w * sq * sq
            k = 2 + dim
            for p in range(dim):
                out[2 + p] += w * sq * a[p]
                for q in range(p, dim):
                    out[k] += w * a[p] * a[q]
                    k += 1
            i = following[i]
        out[1] = fourth - out[0] * out[0]


@kernel
def _threshold(bound, scale, margin, relative):
    """Return the float32 squared tree distance beyond which a mean is certainly farther than `bound`."""
    if not bound < 1e17:
        return np.float32(1e35)
    reach = (bound * scale + margin) * relative
    return np.float32(min(reach * reach * (1.0 + 1e-6) + 1e-30, 1e35))


@kernel
def _precedes(value, s, t, best_value, best, representative):
    """Return whether the pair (s, t) at `value` comes before the pair (s, best): the rule for ties."""
    if value != best_value or best < 0:
        return value < best_value
    low = min(representative[s], representative[t])
    best_low = min(representative[s], representative[best])
    if low != best_low:
        return low < best_low
    return max(representative[s], representative[t]) < max(representative[s], representative[best])


@kernel
def _enlist(s, t, value, filled, list_slot, list_value):
    """Put cluster t into the ascending list of slot s if it has a place there; return how many are in the list."""
    n_list = list_slot.shape[1]
    if filled < n_list:
        k = filled
        filled += 1
    elif value < list_value[s, n_list - 1]:
        k = n_list - 1
    else:
        return filled
    while k > 0 and list_value[s, k - 1] > value:
        list_value[s, k] = list_value[s, k - 1]
        list_slot[s, k] = list_slot[s, k - 1]
        k -= 1
    list_value[s, k] = value
    list_slot[s, k] = t
    return filled


@kernel
def _close_list(s, filled, version, list_slot, list_value, list_version):
    """Mark what is in the list of slot s as up to date, and empty the rest of it."""
    for k in range(filled):
        list_version[s, k] = version[list_slot[s, k]]
    for k in range(filled, list_slot.shape[1]):
        list_slot[s, k] = -1
        list_value[s, k] = np.inf


@kernel
def search(
    start,
    stop,
    queries,
    bound,
    size_limit,
    leaves,
    low,
    high,
    level_start,
    scale,
    margin,
    relative,
    coordinates,
    codes,
    points,
    instance_weights,
    following,
    head,
    size,
    weight,
    representative,
    mean,
    moments,
    version,
    nearest,
    nearest_distance,
    list_slot,
    list_value,
    list_version,
    radius,
    work,
):
    """Find for each query the nearest cluster no farther than `bound`, and its list of near clusters.

    All clusters that are not in the list of slot s are at least ``radius[s]`` away.
    """
    n_list = list_slot.shape[1]
    dim = points.shape[1]
    n_levels = len(level_start) - 1
    scratch = np.zeros((dim + 3, LANES))
    sqdist = np.empty(WIDTH, dtype=np.float32)
    query = np.zeros(leaves.shape[1], dtype=np.float32)
    hits = np.empty(WIDTH + 1, dtype=np.int64)
    stack_node = np.empty(WIDTH * (n_levels + 1) + 1, dtype=np.int64)
    stack_level = np.empty(WIDTH * (n_levels + 1) + 1, dtype=np.int64)
    stack_sqdist = np.empty(WIDTH * (n_levels + 1) + 1, dtype=np.float32)
    with_moments = moments.shape[0] > 0
    for qi in range(start, stop):
        s = queries[qi]
        for p in range(coordinates.shape[1]):
            query[p] = coordinates[s, p]
        filled = 0
        evaluated = 0
        best = -1
        best_value = np.inf
        reach = bound
        threshold = _threshold(reach, scale, margin, relative)
        # Two entries: the root below, and on top of it the query's own leaf, which soon gives a short reach.
        own_leaf = s // WIDTH
        own_leaf_done = False
        stack_node[0] = 0
        stack_level[0] = n_levels
        stack_sqdist[0] = 0.0
        stack_node[1] = own_leaf
        stack_level[1] = 0
        stack_sqdist[1] = 0.0
        depth = 2
        while depth:
            depth -= 1
            if stack_sqdist[depth] > threshold:
                continue
            node = stack_node[depth]
            level = stack_level[depth]
            if level > 0:
                place = level_start[level - 1] + node
                _box_sqdist(low, high, place, query, sqdist)
                n_hits = _hits(sqdist, threshold, hits)
                bottom = depth
                for h in range(n_hits):
                    i = hits[h]
                    k = depth
                    while k > bottom and stack_sqdist[k - 1] < sqdist[i]:
                        stack_sqdist[k] = stack_sqdist[k - 1]
                        stack_node[k] = stack_node[k - 1]
                        stack_level[k] = stack_level[k - 1]
                        k -= 1
                    stack_sqdist[k] = sqdist[i]
                    stack_node[k] = node * WIDTH + i
                    stack_level[k] = level - 1
                    depth += 1
                continue
            if node == own_leaf:
                if own_leaf_done:
                    continue
                own_leaf_done = True
            _leaf_sqdist(leaves, node, query, sqdist)
            n_hits = _hits(sqdist, threshold, hits)
            for h in range(n_hits):
                t = node * WIDTH + hits[h]
                if t == s or sqdist[hits[h]] > threshold or (size_limit > 0 and codes[s] + codes[t] > size_limit):
                    continue
                far = with_moments and size[s] * size[t] > 64
                if far and _moment_bound(s, t, mean, moments, dim) * SLACK > reach:
                    continue
                evaluated += size[s] * size[t]
                if size[s] == 1 and size[t] == 1:
                    value = point_distance(points, head[s], head[t])
                else:
                    value = cluster_distance(
                        s, t, points, instance_weights, following, head, size, weight, representative, scratch
                    )
                if value > reach:
                    continue
                if _precedes(value, s, t, best_value, best, representative):
                    best = t
                    best_value = value
                filled = _enlist(s, t, value, filled, list_slot, list_value)
                if filled == n_list:
                    reach = min(reach, list_value[s, n_list - 1])
                    threshold = _threshold(reach, scale, margin, relative)
        _close_list(s, filled, version, list_slot, list_value, list_version)
        radius[s] = reach
        nearest[s] = best
        nearest_distance[s] = best_value
        work[qi] = evaluated


@kernel
def scan(
    start,
    stop,
    queries,
    bound,
    size_limit,
    leaves,
    scale,
    margin,
    relative,
    coordinates,
    codes,
    points,
    instance_weights,
    following,
    head,
    size,
    weight,
    representative,
    version,
    nearest,
    nearest_distance,
    list_slot,
    list_value,
    list_version,
    radius,
    work,
):
    """Do what `search` does where boxes do not prune: look at all leaves, for GROUP queries at a time.

    A group reads each leaf once, which in many dimensions is most of the cost.
    """
    n_list = list_slot.shape[1]
    dim = points.shape[1]
    scratch = np.zeros((dim + 3, LANES))
    sqdist = np.empty(WIDTH, dtype=np.float32)
    hits = np.empty(WIDTH + 1, dtype=np.int64)
    query = np.zeros((GROUP, leaves.shape[1]), dtype=np.float32)
    threshold = np.empty(GROUP, dtype=np.float32)
    reach = np.empty(GROUP)
    best = np.empty(GROUP, dtype=np.int64)
    best_value = np.empty(GROUP)
    filled = np.empty(GROUP, dtype=np.int64)
    for g in range(start, stop):
        group = queries[g * GROUP : (g + 1) * GROUP]
        for q in range(len(group)):
            for p in range(coordinates.shape[1]):
                query[q, p] = coordinates[group[q], p]
            reach[q] = bound
            threshold[q] = _threshold(bound, scale, margin, relative)
            best[q] = -1
            best_value[q] = np.inf
            filled[q] = 0
            work[g * GROUP + q] = 0
        own_leaf = group[0] // WIDTH
        for step in range(len(leaves)):
            leaf = (own_leaf + step) % len(leaves)  # near ones first: they soon give a short reach
            for q in range(len(group)):
                _leaf_sqdist(leaves, leaf, query[q], sqdist)
                n_hits = _hits(sqdist, threshold[q], hits)
                s = group[q]
                for h in range(n_hits):
                    t = leaf * WIDTH + hits[h]
                    if t == s or sqdist[hits[h]] > threshold[q]:
                        continue
                    if size_limit > 0 and codes[s] + codes[t] > size_limit:
                        continue
                    work[g * GROUP + q] += size[s] * size[t]
                    value = cluster_distance(
                        s, t, points, instance_weights, following, head, size, weight, representative, scratch
                    )
                    if value > reach[q]:
                        continue
                    if _precedes(value, s, t, best_value[q], best[q], representative):
                        best[q] = t
                        best_value[q] = value
                    filled[q] = _enlist(s, t, value, filled[q], list_slot, list_value)
                    if filled[q] == n_list:
                        reach[q] = min(reach[q], list_value[s, n_list - 1])
                        threshold[q] = _threshold(reach[q], scale, margin, relative)
        for q in range(len(group)):
            s = group[q]
            _close_list(s, filled[q], version, list_slot, list_value, list_version)
            radius[s] = reach[q]
            nearest[s] = best[q]
            nearest_distance[s] = best_value[q]


@kernel
def refresh(
    start,
    stop,
    queries,
    bound,
    size_limit,
    owner,
    alive,
    version,
    codes,
    points,
    instance_weights,
    following,
    head,
    size,
    weight,
    representative,
    nearest,
    nearest_distance,
    list_slot,
    list_value,
    list_version,
    radius,
    failed,
):
    """Find the nearest cluster of each query from its list; mark it `failed` where the list cannot prove it.

    Values of listed clusters that have merged since are lower bounds of their present distances, for a merged cluster
    is never nearer than the nearer of its parts; only those that might be the nearest are computed anew.
    """
    n_list = list_slot.shape[1]
    dim = points.shape[1]
    scratch = np.zeros((dim + 3, LANES))
    for qi in range(start, stop):
        s = queries[qi]
        slots = list_slot[s]
        values = list_value[s]
        versions = list_version[s]
        for k in range(n_list):
            if slots[k] >= 0:
                t = owner[slots[k]]
                if t != slots[k]:
                    versions[k] = -1
                    slots[k] = t
                elif versions[k] != version[t]:
                    versions[k] = -1
                if t == s or not alive[t] or (size_limit > 0 and codes[s] + codes[t] > size_limit):
                    slots[k] = -1
                    values[k] = np.inf
        while True:
            best = -1
            best_value = np.inf
            stale = -1
            stale_value = np.inf
            for k in range(n_list):
                if slots[k] < 0:
                    continue
                if versions[k] < 0:
                    if values[k] < stale_value:
                        stale = k
                        stale_value = values[k]
                elif _precedes(values[k], s, slots[k], best_value, best, representative):
                    best = slots[k]
                    best_value = values[k]
            if stale < 0 or stale_value * SLACK > min(best_value, bound):
                break
            t = slots[stale]
            if stale_value * SLACK >= radius[s]:
                break
            value = cluster_distance(
                s, t, points, instance_weights, following, head, size, weight, representative, scratch
            )
            for k in range(n_list):
                if slots[k] == t:
                    slots[k] = -1
                    values[k] = np.inf
            slots[stale] = t
            values[stale] = value
            versions[stale] = version[t]
        if best >= 0 and best_value < radius[s] * SLACK:
            nearest[s] = best
            nearest_distance[s] = best_value
            failed[s] = False
        elif radius[s] * SLACK > bound:
            nearest[s] = -1  # all that is near enough is in the list, and it holds nothing near enough
            nearest_distance[s] = np.inf
            failed[s] = False
        else:
            failed[s] = True


@kernel
def merge_pairs(
    start, stop, kept, gone, owner, weight, list_slot, list_value, radius, merged_slot, merged_value, merged_radius
):
    """Write the list of each merged cluster: the union of both lists, with lower bounds for values.

    A cluster in one list only is at least the other's radius away from that part; distances of a merged cluster are
    the weighted means of those of its parts.
    """
    n_list = list_slot.shape[1]
    slots = np.empty(2 * n_list, dtype=list_slot.dtype)
    values = np.empty((2 * n_list, 2))
    for i in range(start, stop):
        filled = 0
        for part in range(2):
            s = kept[i] if part == 0 else gone[i]
            other = gone[i] if part == 0 else kept[i]
            for k in range(n_list):
                t = list_slot[s, k]
                if t < 0:
                    continue
                t = owner[t]
                if t == kept[i] or t == gone[i]:
                    continue
                place = 0
                while place < filled and slots[place] != t:
                    place += 1
                if place == filled:
                    slots[place] = t
                    values[place, part] = min(list_value[s, k], radius[s])
                    values[place, 1 - part] = radius[other]
                    filled += 1
                else:
                    values[place, part] = min(values[place, part], list_value[s, k])
        share = weight[kept[i]] / (weight[kept[i]] + weight[gone[i]])
        reach = (share * radius[kept[i]] + (1.0 - share) * radius[gone[i]]) * (1.0 - 1e-15)
        out_slot = merged_slot[i]
        out_value = merged_value[i]
        for k in range(n_list):
            out_slot[k] = -1
            out_value[k] = np.inf
        written = 0
        for place in range(filled):
            value = (share * values[place, 0] + (1.0 - share) * values[place, 1]) * (1.0 - 1e-15)
            if value >= reach:
                continue
            if written < n_list:
                k = written
                written += 1
            elif value < out_value[n_list - 1]:
                k = n_list - 1
                reach = min(reach, out_value[n_list - 1])
            else:
                reach = min(reach, value)
                continue
            while k > 0 and out_value[k - 1] > value:
                out_value[k] = out_value[k - 1]
                out_slot[k] = out_slot[k - 1]
                k -= 1
            out_value[k] = value
            out_slot[k] = slots[place]
        merged_radius[i] = reach
