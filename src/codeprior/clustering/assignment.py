"""Assigning codes to clusters: the nearest centre, the nearest members, and what the k-means family shares.

Distances are float64 and Euclidean; ties go to the lower cluster.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from codeprior.clustering import _kmeans_kernels
from codeprior.clustering._parallel import RowPool
from codeprior.clustering.distance import check_vectors, check_weights, is_whole
from codeprior.errors import InputError

# How far, as a part of the longest vector, a bound may be off by rounding; looking further never changes the answer.
_BOUND_SLACK = 1e-9

# Up to so many centres all are tried for each code; up to so many dimensions a k-d tree beats matrix products.
_FEW_CENTRES = 256
_NARROW = 16

# Coordinates compared between two looks at the keyboard: a fraction of a second on one core, so Ctrl-C is answered.
_STEPS_PER_BLOCK = 1 << 26


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
    vectors, members = checked_double(vectors), checked_double(members)
    n_clusters = int(labels.max()) + 1
    clusters = member_layout(members, labels, positive_weights(weights, len(members)), n_clusters)
    first, sqdist = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors))
    nearest, distance = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors))
    block = rows_a_block(members)
    with RowPool(n_threads) as pool:
        # The cluster with the nearest mean is the first guess: a good bound leaves few others to look into.
        pool.run(_kmeans_kernels.nearest_centres, len(vectors), block, vectors, clusters[0], first, sqdist)
        slack = max(slack_of(members), slack_of(vectors))
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


def nearest_centres(vectors: np.ndarray, centres: np.ndarray, pool: RowPool) -> tuple[np.ndarray, np.ndarray]:
    """Give the nearest centre of each row, and its squared distance: the lower centre where two are equally near.

    With few centres all are tried. Otherwise a k-d tree (narrow vectors) or a matrix product (wide ones) names the
    nearest, and rows for which rounding leaves a doubt try all of them too.
    """
    n_rows, n_centres = len(vectors), len(centres)
    nearest = np.empty(n_rows, dtype=np.int64)
    columns = np.ascontiguousarray(centres.T)
    every = rows_a_block(centres)
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


def member_layout(
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


def rows_a_block(points: np.ndarray) -> int:
    """How many rows to compare with all of `points` in one call."""
    return max(1, min(_STEPS_PER_BLOCK // points.size, 4096))


def slack_of(vectors: np.ndarray) -> float:
    return _BOUND_SLACK * float(np.sqrt(np.square(vectors).sum(axis=1).max()))


def digest_labels(labels: np.ndarray) -> bytes:
    return hashlib.sha256(labels.tobytes()).digest()


def checked_double(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(check_vectors(vectors), dtype=np.float64)


def check_counts(n_clusters: int, n_codes: int, max_iterations: int) -> None:
    if not is_whole(max_iterations, 1):
        raise InputError(f"max_iterations must be a whole number of at least 1, got {max_iterations!r}")
    if not is_whole(n_clusters, 1, n_codes):
        raise InputError(f"n_clusters must be between 1 and {n_codes} (the codebook size), got {n_clusters!r}")


def positive_weights(weights: np.ndarray | None, n_codes: int) -> np.ndarray:
    checked = check_weights(weights, n_codes)
    return np.ones(n_codes) if checked is None else checked
