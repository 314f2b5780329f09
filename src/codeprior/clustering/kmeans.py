"""The k-means family that the papers compare average linkage with: plain, balanced (IAR), and without centroids.

Every function returns labels numbered by first appearance, of exactly `n_clusters` non-empty clusters, and gives the
same labels for the same seed. Distances are Euclidean: normalise the rows first where the tokenizer does.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits

from codeprior.clustering import _kmeans_kernels
from codeprior.clustering._parallel import RowPool
from codeprior.clustering.distance import check_vectors, check_weights, duplicate_groups
from codeprior.errors import InputError

INITIALISATIONS = ("random", "k-means++")

# How far, as a part of the longest vector, a bound may be off by rounding; looking further never changes the answer.
_BOUND_SLACK = 1e-9

# Up to so many centres all are tried for each code; up to so many dimensions a k-d tree beats matrix products.
_FEW_CENTRES = 256
_NARROW = 16

# Coordinates compared between two looks at the keyboard: a fraction of a second on one core, so Ctrl-C is answered.
_STEPS_PER_BLOCK = 1 << 26


def kmeans(
    vectors: np.ndarray,
    n_clusters: int,
    *,
    seed: int,
    init: str = "random",
    weights: np.ndarray | None = None,
    max_iterations: int = 300,
    n_threads: int | None = None,
) -> np.ndarray:
    """Cluster code vectors by Lloyd's k-means, from one initialisation.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32 or float64
        One row a code. Not modified.
    n_clusters : int
        Number of clusters, 1..V.
    seed : int
        Seed of the initialisation; nothing else is random.
    init : {"random", "k-means++"}
        "random" starts from `n_clusters` codes drawn at random, all with different vectors, as [1]_ describes (III-A);
        "k-means++" draws each next code with a probability proportional to its squared distance [2]_.
    weights : ndarray of shape (V,), optional
        Positive weight of each code, say how often it is used; 1 by default.
    max_iterations : int
        Lloyd iterations at most; it nearly always stops earlier, when no code changes its cluster.
    n_threads : int, optional
        Threads for the distances; all cores by default. The labels do not depend on it.

    Returns
    -------
    labels : ndarray of shape (V,), int64
        Cluster of each code, numbered by first appearance.

    Raises
    ------
    InputError
        If `vectors` is not two-dimensional and finite, `n_clusters` is not in 1..V, a weight is not positive and
        finite, or `init` is unknown.

    Notes
    -----
    Ties: the lower centre. A cluster left empty takes the code farthest from its centre. Codes with equal vectors
    enter as one point of their joint weight and stay together, unless fewer than `n_clusters` vectors differ.
    scikit-learn's `KMeans` from the same centres ends with the same clusters; its sums depend on the number of
    threads, and with many clusters it compares each code with every centre.

    References
    ----------
    .. [1] DCPE (Tang et al., 2025), III-A.  .. [2] Arthur and Vassilvitskii, 2007 (scikit-learn's greedy form).
    """
    vectors = _double(vectors)
    n_codes = len(vectors)
    _check_counts(n_clusters, n_codes, max_iterations)
    if init not in INITIALISATIONS:
        raise InputError(f"init must be one of {', '.join(INITIALISATIONS)}, got {init!r}")
    weights = _positive_weights(weights, n_codes)
    if n_clusters == n_codes:
        return np.arange(n_codes)

    distinct, code_to_point = np.unique(duplicate_groups(vectors), return_inverse=True)
    points = vectors[distinct]
    if len(points) <= n_clusters:  # every distinct vector is a cluster; equal ones are split until there are enough
        return by_first_appearance(fill_empty_clusters(vectors, code_to_point, n_clusters))

    point_weights = np.bincount(code_to_point, weights)
    if init == "random":
        centres = vectors[_draw_distinct(vectors, n_clusters, seed)]
    else:
        with threadpool_limits(limits=1):  # sums whose last digit does not depend on the cores
            centres, _ = kmeans_plusplus(points, n_clusters, sample_weight=point_weights, random_state=seed)
    labels = np.full(len(points), -1, dtype=np.int64)
    with RowPool(n_threads) as pool:
        for _ in range(max_iterations):
            nearest, sqdist = _nearest_of(points, centres, pool)
            nearest = fill_empty_clusters(points, nearest, n_clusters, sqdist)
            if np.array_equal(nearest, labels):
                break
            labels = nearest
            centres = cluster_means(points, labels, n_clusters, point_weights)
    return by_first_appearance(labels[code_to_point])


def balanced_kmeans(
    vectors: np.ndarray,
    n_clusters: int,
    *,
    seed: int = 0,
    max_iterations: int = 100,
    init: np.ndarray | None = None,
    n_threads: int | None = None,
) -> np.ndarray:
    """Cluster code vectors into clusters of equal size, as IAR does before it reorders a codebook.

    Each iteration takes the codes in the order of their distance to the nearest centre, nearest first, and puts each
    into the nearest cluster that is not full yet; then centres become means.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32 or float64
        One row a code. Not modified.
    n_clusters : int
        Number of clusters G, 1..V. Where G does not divide V, sizes differ by at most one: the first V mod G clusters
        to ask for one more code than V // G get it.
    seed : int
        Seed of the random permutation whose first `n_clusters` codes are the first centres.
    max_iterations : int
        Iterations at most. The assignment is greedy, hence the error may rise and the clusters may never settle.
    init : ndarray of shape (n_clusters,), int, optional
        Codes to start from, in place of a random permutation.
    n_threads : int, optional
        Threads for the distances; all cores by default. The labels do not depend on it.

    Returns
    -------
    labels : ndarray of shape (V,), int64
        Cluster of each code, numbered by first appearance.

    Raises
    ------
    InputError
        If `vectors` is not two-dimensional and finite, or `n_clusters` is not in 1..V.

    Notes
    -----
    Differs from IAR's script: the iteration with the smallest squared error is returned, not the last one; a
    repeated assignment ends the search (all that follows would repeat too); the sums are float64.
    Ties: the lower code first, the lower centre first. An iteration takes G * V * E steps at most.

    References
    ----------
    .. [1] IAR (Hu et al., 2025), codebook rearrangement.
    """
    vectors = _double(vectors)
    n_codes = len(vectors)
    _check_counts(n_clusters, n_codes, max_iterations)
    if init is None:
        init = np.random.default_rng(seed).permutation(n_codes)[:n_clusters]
    elif len(init) != n_clusters:
        raise InputError(f"init must hold one code for each of the {n_clusters} clusters, got {len(init)}")
    centres = vectors[init]

    best_error = np.inf
    best = np.empty(0, dtype=np.int64)
    seen: set[bytes] = set()
    with RowPool(n_threads) as pool:
        for _ in range(max_iterations):
            nearest, sqdist = _nearest_of(vectors, centres, pool)
            labels = _nearest_with_room(vectors, centres, nearest, np.argsort(sqdist, kind="stable"))
            centres = cluster_means(vectors, labels, n_clusters)
            error = float(np.square(vectors - centres[labels]).sum())
            if error < best_error:
                best_error, best = error, labels
            digest = _digest(labels)
            if digest in seen:
                break
            seen.add(digest)
    return by_first_appearance(best)


def balanced_order(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Order codes cluster by cluster, neighbours beside each other inside each cluster, as IAR reorders a codebook.

    Inside a cluster of m codes, the code nearest the cluster's mean takes the place (m - 1) // 2 and its nearest
    neighbour the next; then the sequence is extended at its left and its right end in turn, each time by the
    remaining code nearest to that end.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32 or float64
        One row a code. Not modified.
    labels : ndarray of shape (V,), int64
        Cluster of each code, numbered 0..G-1. Clusters need not be of equal size.

    Returns
    -------
    mapping : ndarray of shape (V,), int64
        New id of each old id, a permutation: ``new_codes = mapping[old_codes]``, ``new_vectors[mapping] = vectors``.
        IAR's mapping file holds the same.

    Raises
    ------
    InputError
        If `vectors` is not two-dimensional and finite, or `labels` is not one label for each code.

    Notes
    -----
    Ties go to the lower old id. A cluster of m codes costs m^2 distances in time and memory.
    Differs from IAR's script: derived from the permutation itself rather than by matching equal rows, so duplicate
    rows do no harm; and clusters of odd size are filled to the last place.
    """
    vectors = _double(vectors)
    labels = np.asarray(labels)
    if labels.shape != (len(vectors),):
        raise InputError(f"labels must be one for each of the {len(vectors)} codes, got shape {labels.shape}")
    members = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[members])) + 1
    order = np.concatenate([cluster[_two_sided_walk(vectors[cluster])] for cluster in np.split(members, ends)])
    mapping = np.empty(len(vectors), dtype=np.int64)
    mapping[order] = np.arange(len(vectors))
    return mapping


def centroid_free_kmeans(
    vectors: np.ndarray,
    n_clusters: int,
    *,
    seed: int = 0,
    weights: np.ndarray | None = None,
    max_iterations: int = 100,
    n_threads: int | None = None,
) -> np.ndarray:
    """Cluster code vectors by k-means with the mean distance to a cluster's members in place of its centroid.

    The paper's ablation "k-means w/o centroid" [1]_ (Table V): after a first assignment to the nearest of
    `n_clusters` random codes, each code goes to the cluster with the smallest mean distance to its members, all codes
    at once, until none moves.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32 or float64
        One row a code. Not modified.
    n_clusters : int
        Number of clusters, 1..V.
    seed : int
        Seed of the codes to start from.
    weights : ndarray of shape (V,), optional
        Positive weight of each code in the means; 1 by default.
    max_iterations : int
        Iterations at most. Nothing guarantees that all codes settle; a repeated assignment ends the search too.
    n_threads : int, optional
        Threads for the distances; all cores by default. The labels do not depend on it.

    Returns
    -------
    labels : ndarray of shape (V,), int64
        Cluster of each code, numbered by first appearance.

    Raises
    ------
    InputError
        If `vectors` is not two-dimensional and finite, `n_clusters` is not in 1..V, or a weight is not positive and
        finite.

    Notes
    -----
    A code's distance to itself, zero, counts in the mean over its own cluster: a code in a small cluster is reluctant
    to leave it, and one alone never does. The paper does not say whether it counts.
    The mean distance to the members is at least the distance to their mean (Jensen's inequality), so only clusters
    whose mean is nearer than the best mean distance so far are looked into: the same labels, a fraction of the work.
    Ties: the lower cluster. A cluster left empty takes the code farthest from its own cluster's members.

    References
    ----------
    .. [1] DCPE (Tang et al., 2025), IV-C.
    """
    vectors = _double(vectors)
    n_codes = len(vectors)
    _check_counts(n_clusters, n_codes, max_iterations)
    weights = _positive_weights(weights, n_codes)
    block = _rows_a_block(vectors)  # where clusters overlap, a code looks at nearly all others
    slack = _slack(vectors)
    with RowPool(n_threads) as pool:
        labels, sqdist = _nearest_of(vectors, vectors[_draw_distinct(vectors, n_clusters, seed)], pool)
        labels = fill_empty_clusters(vectors, labels, n_clusters, sqdist)
        distance = np.empty(n_codes)
        seen = {_digest(labels)}
        for _ in range(max_iterations):
            moved = np.empty(n_codes, dtype=np.int64)
            clusters = _summarise(vectors, labels, weights, n_clusters)
            pool.run(
                _kmeans_kernels.nearest_by_members, n_codes, block, vectors, *clusters, labels, slack, moved, distance
            )
            labels = fill_empty_clusters(vectors, moved, n_clusters, distance)
            digest = _digest(labels)
            if digest in seen:
                break
            seen.add(digest)
    return by_first_appearance(labels)


def nearest_clusters(
    vectors: np.ndarray,
    members: np.ndarray,
    labels: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    n_threads: int | None = None,
) -> np.ndarray:
    """Give the cluster with the smallest mean instance distance (Eq. 2 for a single code) to each row of `vectors`.

    Parameters
    ----------
    vectors : ndarray of shape (M, E)
        The rows to place.
    members : ndarray of shape (V, E)
        The vectors that are clustered already.
    labels : ndarray of shape (V,), int64
        Their clusters, numbered 0..G-1, each with at least one member.
    weights : ndarray of shape (V,), optional
        Positive weights of the members in the means; 1 by default.
    n_threads : int, optional
        Threads; all cores by default. The answer does not depend on it.

    Returns
    -------
    nearest : ndarray of shape (M,), int64
        The lower cluster where two are equally near.
    """
    vectors, members = _double(vectors), _double(members)
    n_clusters = int(labels.max()) + 1
    clusters = _summarise(members, labels, _positive_weights(weights, len(members)), n_clusters)
    first, sqdist = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors))
    nearest, distance = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors))
    block = _rows_a_block(members)
    with RowPool(n_threads) as pool:
        # The cluster with the nearest mean is the first guess: a good bound leaves few others to look into.
        pool.run(_kmeans_kernels.nearest_centres, len(vectors), block, vectors, clusters[0], first, sqdist)
        slack = max(_slack(members), _slack(vectors))
        pool.run(
            _kmeans_kernels.nearest_by_members, len(vectors), block, vectors, *clusters, first, slack, nearest, distance
        )
    return nearest


def by_first_appearance(labels: np.ndarray) -> np.ndarray:
    """Renumber clusters 0, 1, ... in the order in which their first codes come."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def cluster_means(
    vectors: np.ndarray, labels: np.ndarray, n_clusters: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean vector of each cluster, (G, E) float64; added up in the order of the codes, whatever the threads."""
    weights = np.ones(len(vectors)) if weights is None else weights
    masses = np.bincount(labels, weights, minlength=n_clusters)
    sums = [np.bincount(labels, weights * column, minlength=n_clusters) for column in vectors.T]
    return np.stack(sums, axis=1) / masses[:, None]


def fill_empty_clusters(
    vectors: np.ndarray, labels: np.ndarray, n_clusters: int, distance: np.ndarray | None = None
) -> np.ndarray:
    """Give each empty cluster the code farthest from its own cluster, by `distance` or else from the cluster's mean.

    A code that is its cluster's last stays. Ties go to the lower code. `labels` is returned as it is when nothing is
    empty, and never modified.
    """
    sizes = np.bincount(labels, minlength=n_clusters)
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return labels
    labels = labels.copy()
    if distance is None:
        present = np.maximum(sizes, 1)  # means of empty clusters are never looked at
        means = np.stack([np.bincount(labels, column, minlength=n_clusters) / present for column in vectors.T], axis=1)
        distance = np.square(vectors - means[labels]).sum(axis=1)
    farthest_first = iter(np.argsort(-distance, kind="stable"))
    for cluster in empty:
        code = next(code for code in farthest_first if sizes[labels[code]] > 1)
        sizes[labels[code]] -= 1
        labels[code] = cluster
        sizes[cluster] = 1
    return labels


def _nearest_of(vectors: np.ndarray, centres: np.ndarray, pool: RowPool) -> tuple[np.ndarray, np.ndarray]:
    """Give the nearest centre of each row, and its squared distance: the lower centre where two are equally near.

    With few centres all are tried. Otherwise a k-d tree (narrow vectors) or a matrix product (wide ones) names the
    nearest, and rows for which rounding leaves a doubt try all of them too.
    """
    n_rows, n_centres = len(vectors), len(centres)
    nearest = np.empty(n_rows, dtype=np.int64)
    columns = np.ascontiguousarray(centres.T)
    every = _rows_a_block(centres)
    if n_centres <= _FEW_CENTRES:
        sqdist = np.empty(n_rows)
        pool.run(_kmeans_kernels.nearest_centres, n_rows, every, vectors, columns, nearest, sqdist)
        return nearest, sqdist
    unsure = np.empty(n_rows, dtype=bool)
    if vectors.shape[1] <= _NARROW:
        tree = cKDTree(centres)

        def search(start: int, stop: int) -> None:
            distances, found = tree.query(vectors[start:stop], k=2)
            nearest[start:stop] = found[:, 0]
            unsure[start:stop] = distances[:, 1] <= distances[:, 0] * (1 + _BOUND_SLACK)

        block = every  # in many dimensions a tree is no faster than looking at every centre
    else:
        half_norms = np.square(centres).sum(axis=1) / 2

        def search(start: int, stop: int) -> None:
            rows = vectors[start:stop]
            gap = np.empty(len(rows))  # half the difference of the two smallest squared distances
            _kmeans_kernels.two_nearest(rows @ columns, half_norms, nearest[start:stop], gap)
            unsure[start:stop] = gap <= 1e-12 * (np.square(rows).sum(axis=1) + half_norms.max())

        block = max(256, (1 << 19) // n_centres)  # small for the cache; not smaller, for each product packs all centres
    with threadpool_limits(limits=1, user_api="blas"):  # the pool has the threads
        pool.run(search, n_rows, block)
    again = np.flatnonzero(unsure)
    exact = np.empty(len(again), dtype=np.int64)
    pool.run(_kmeans_kernels.nearest_centres, len(again), every, vectors[again], columns, exact, np.empty(len(again)))
    nearest[again] = exact
    sqdist = np.zeros(n_rows)
    for axis in range(vectors.shape[1]):  # the order of the sum in `_kmeans_kernels.nearest_centres`, to the last digit
        sqdist += (vectors[:, axis] - centres[nearest, axis]) ** 2
    return nearest, sqdist


def _draw_distinct(vectors: np.ndarray, n_codes: int, seed: int) -> np.ndarray:
    """Draw codes at random, no two with equal vectors; fewer than `n_codes` where fewer vectors differ."""
    drawn = np.random.default_rng(seed).permutation(len(vectors))
    return drawn[np.unique(duplicate_groups(vectors[drawn]))[:n_codes]]


def _two_sided_walk(vectors: np.ndarray) -> np.ndarray:
    """Order the rows of one cluster from its middle outwards (see `balanced_order`); gives row numbers."""
    size = len(vectors)
    sqdist = cdist(vectors, vectors, "sqeuclidean")
    order = np.empty(size, dtype=np.int64)
    taken = np.zeros(size)  # infinite where taken, so that a sum hides those rows from argmin
    left = right = (size - 1) // 2
    order[left] = np.argmin(np.square(vectors - vectors.mean(axis=0)).sum(axis=1))
    taken[order[left]] = np.inf
    for step in range(size - 1):
        # right, left, right, ...: the first step fills the place after the middle
        if step % 2 == 0:
            end, right = order[right], right + 1
            place = right
        else:
            end, left = order[left], left - 1
            place = left
        order[place] = np.argmin(sqdist[end] + taken)
        taken[order[place]] = np.inf
    return order


def _nearest_with_room(vectors: np.ndarray, centres: np.ndarray, nearest: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Assign codes in `order`, each to the nearest centre whose cluster is not full; sizes differ by at most one."""
    n_codes, n_centres = len(vectors), len(centres)
    labels = np.empty(n_codes, dtype=np.int64)
    room = np.full(n_centres, n_codes // n_centres)
    left = np.array([n_centres, n_codes % n_centres])
    open_ids, place = np.arange(n_centres), np.arange(n_centres)
    open_columns = np.ascontiguousarray(centres.T)
    block = _rows_a_block(centres)
    for start in range(0, n_codes, block):  # short calls: Ctrl-C comes in between
        _kmeans_kernels.fill_in_order(
            order[start : start + block], vectors, nearest, room, left, place, open_ids, open_columns, labels
        )
    return labels


def _summarise(
    vectors: np.ndarray, labels: np.ndarray, weights: np.ndarray, n_clusters: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lay clusters out for `_kmeans_kernels.nearest_by_members`.

    Gives the means as columns (E, G), the members' vectors cluster by cluster (V, E), their weights (V,), where each
    cluster starts among them (G + 1,), and its summed weight (G,).
    """
    members = np.argsort(labels, kind="stable")
    starts = np.zeros(n_clusters + 1, dtype=np.int64)
    np.cumsum(np.bincount(labels, minlength=n_clusters), out=starts[1:])
    means = np.ascontiguousarray(cluster_means(vectors, labels, n_clusters, weights).T)
    masses = np.bincount(labels, weights, minlength=n_clusters)
    return means, vectors[members], weights[members], starts, masses


def _rows_a_block(points: np.ndarray) -> int:
    """How many rows to compare with all of `points` in one call."""
    return max(1, min(_STEPS_PER_BLOCK // points.size, 4096))


def _slack(vectors: np.ndarray) -> float:
    return _BOUND_SLACK * float(np.sqrt(np.square(vectors).sum(axis=1).max()))


def _digest(labels: np.ndarray) -> bytes:
    return hashlib.sha256(labels.tobytes()).digest()


def _double(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(check_vectors(vectors), dtype=np.float64)


def _check_counts(n_clusters: int, n_codes: int, max_iterations: int) -> None:
    if max_iterations < 1:
        raise InputError(f"max_iterations must be at least 1, got {max_iterations}")
    if not 1 <= n_clusters <= n_codes:
        raise InputError(f"n_clusters must be between 1 and {n_codes} (the codebook size), got {n_clusters}")


def _positive_weights(weights: np.ndarray | None, n_codes: int) -> np.ndarray:
    checked = check_weights(weights, n_codes)
    return np.ones(n_codes) if checked is None else checked
