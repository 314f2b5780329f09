"""The definitions, as slow and as plain as they are written in the papers: the twins of the fast code."""

from __future__ import annotations

import numpy as np


def instance_distances(vectors):
    """|v_i - v_j| for all pairs, float64."""
    x = np.asarray(vectors, dtype=np.float64)
    return np.sqrt(((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=-1))


def tie_rounded(distance):
    """Round to 41 significant bits: the precision at which average_linkage calls two distances equal."""
    t = distance * 4097.0
    return t - (t - distance)


def cluster_distance(distances, weights, a, b):
    """D(A, B): the weighted mean over all cross pairs (DCPE, Eq. 2)."""
    pair_weights = np.outer(weights[a], weights[b])
    return float((distances[np.ix_(a, b)] * pair_weights).sum() / pair_weights.sum())


def may_merge(size_a, size_b, max_cluster_size, strict):
    if max_cluster_size is None:
        return True
    if strict:
        return size_a + size_b <= max_cluster_size
    return size_a <= max_cluster_size and size_b <= max_cluster_size


def greedy_average_linkage(distances, n_clusters=1, weights=None, max_cluster_size=None, strict=False):
    """Merge the nearest allowed pair, again and again (DCPE, Eq. 1); return SciPy's Z.

    Every distance is the mean over all pairs, never an update of an older one. Ties: the lowest representative, then
    the lowest other representative.
    """
    n = len(distances)
    weights = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    clusters = [(i, [i]) for i in range(n)]  # (id, members ascending), by ascending lowest member
    known = {}
    Z = []
    while len(clusters) > n_clusters:
        best = None
        for p, (id_a, a) in enumerate(clusters):
            for id_b, b in clusters[p + 1 :]:
                if not may_merge(len(a), len(b), max_cluster_size, strict):
                    continue
                if (id_a, id_b) not in known:
                    known[id_a, id_b] = tie_rounded(cluster_distance(distances, weights, a, b))
                key = (known[id_a, id_b], a[0], b[0])
                if best is None or key < best[0]:
                    best = (key, (id_a, a), (id_b, b))
        if best is None:
            break
        (height, _, _), (id_a, a), (id_b, b) = best
        Z.append([min(id_a, id_b), max(id_a, id_b), height, len(a) + len(b)])
        clusters = [c for c in clusters if c[0] not in (id_a, id_b)]
        clusters.append((n + len(Z) - 1, sorted(a + b)))
        clusters.sort(key=lambda c: c[1][0])
    return np.array(Z, dtype=np.float64).reshape(-1, 4)


def replay(Z, distances, n_clusters=1, weights=None, max_cluster_size=None, strict=False, tolerance=1e-9):
    """Check each merge of Z against the definition: allowed, at its height, and a minimum up to `tolerance`.

    Returns None if Z is a greedy tree that ends at `n_clusters`, or where no pair may merge; else a sentence about what
    is wrong first.
    """
    n = len(distances)
    weights = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    sums = distances * np.outer(weights, weights)  # of any two clusters: the sum over their pairs, never divided
    np.fill_diagonal(sums, np.inf)
    mass = weights.copy()
    size = np.ones(n, dtype=int)
    row_of = {i: i for i in range(n)}
    alive = np.ones(n, dtype=bool)
    scale = float(distances.max(initial=0.0)) or 1.0

    def allowed_means():
        rows = np.flatnonzero(alive)
        means = sums[np.ix_(rows, rows)] / np.outer(mass[rows], mass[rows])
        if max_cluster_size is not None:
            total = size[rows][:, None] + size[rows][None, :]
            large = np.maximum(size[rows][:, None], size[rows][None, :])
            means[(total if strict else large) > max_cluster_size] = np.inf
        return means

    for t, (left, right, height, count) in enumerate(Z):
        i, j = row_of.pop(int(left)), row_of.pop(int(right))
        if not may_merge(size[i], size[j], max_cluster_size, strict):
            return f"merge {t} is not allowed: sizes {size[i]} and {size[j]}"
        mean = sums[i, j] / (mass[i] * mass[j])
        if abs(mean - height) > tolerance * scale:
            return f"merge {t} has height {height}, the mean distance is {mean}"
        smallest = allowed_means().min()
        if mean > smallest + tolerance * scale:
            return f"merge {t} at {mean} was not a minimum: {smallest}"
        if not left < right or count != size[i] + size[j]:
            return f"merge {t} is not written as SciPy writes it"
        sums[i] += sums[j]
        sums[:, i] += sums[:, j]
        sums[i, i] = np.inf
        mass[i] += mass[j]
        size[i] += size[j]
        alive[j] = False
        row_of[n + t] = i
    left_over = n - len(Z)
    if left_over < n_clusters or (left_over > n_clusters and np.isfinite(allowed_means()).any()):
        return f"the tree ends at {left_over} clusters, {n_clusters} were asked for"
    return None


def labels_of(Z, n_codes, n_clusters):
    """Labels after the first n_codes - n_clusters merges, numbered by first appearance."""
    label = {i: [i] for i in range(n_codes)}
    for t, (left, right, _, _) in enumerate(Z[: n_codes - n_clusters]):
        label[n_codes + t] = label.pop(int(left)) + label.pop(int(right))
    labels = np.empty(n_codes, dtype=np.int64)
    for number, members in enumerate(sorted(label.values(), key=min)):
        labels[members] = number
    return labels


def cluster_logits(logits, token_to_cluster, form):
    """Each cluster's logit from the logits (..., V) of its tokens: IAR's mean, or log of the sum or mean of exp."""
    columns = []
    for cluster in range(token_to_cluster.max() + 1):
        members = logits[..., token_to_cluster == cluster]
        if form == "mean":
            columns.append(members.mean(axis=-1))
        else:
            largest = members.max(axis=-1, keepdims=True)
            exponentials = np.exp(members - largest)
            reduced = exponentials.sum(axis=-1) if form == "logsumexp" else exponentials.mean(axis=-1)
            columns.append(np.log(reduced) + largest[..., 0])
    return np.stack(columns, axis=-1)
