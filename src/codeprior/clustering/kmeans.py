"""K-means as the papers compare average linkage with it: with centroids, and without.

Every function returns labels numbered by first appearance, of exactly `n_clusters` non-empty clusters, and gives the
same labels for the same seed. Distances are Euclidean: normalise the rows first where the tokenizer does.
"""

from __future__ import annotations

import numpy as np

from codeprior.clustering import _kmeans_kernels
from codeprior.clustering._merges import Progress
from codeprior.clustering._parallel import RowPool
from codeprior.clustering.assignment import (
    by_first_appearance,
    check_counts,
    checked_double,
    cluster_means,
    digest_labels,
    fill_empty_clusters,
    member_layout,
    nearest_centres,
    positive_weights,
    rows_a_block,
    slack_of,
)
from codeprior.clustering.distance import duplicate_groups
from codeprior.errors import InputError

INITIALISATIONS = ("random", "k-means++")

_SEED_ROWS = 4096  # whose distances to the points drawn are looked at in one call


def kmeans(
    vectors: np.ndarray,
    n_clusters: int,
    *,
    seed: int,
    init: str = "random",
    weights: np.ndarray | None = None,
    max_iterations: int = 300,
    n_threads: int | None = None,
    progress: Progress | None = None,
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
    progress : callable, optional
        Called with (what is done, how much so far, how much at most) now and then.

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
    vectors = checked_double(vectors)
    n_codes = len(vectors)
    check_counts(n_clusters, n_codes, max_iterations)
    if init not in INITIALISATIONS:
        raise InputError(f"init must be one of {', '.join(INITIALISATIONS)}, got {init!r}")
    weights = positive_weights(weights, n_codes)
    if n_clusters == n_codes:
        return np.arange(n_codes)

    distinct, code_to_point = np.unique(duplicate_groups(vectors), return_inverse=True)
    points = vectors[distinct]
    if len(points) <= n_clusters:  # every distinct vector is a cluster; equal ones are split until there are enough
        return by_first_appearance(fill_empty_clusters(vectors, code_to_point, n_clusters))

    point_weights = np.bincount(code_to_point, weights)
    labels = np.full(len(points), -1, dtype=np.int64)
    with RowPool(n_threads) as pool:
        if init == "random":
            centres = vectors[_draw_distinct(vectors, n_clusters, seed)]
        else:
            centres = points[_plusplus_seeds(points, point_weights, n_clusters, seed, pool, progress)]
        for iteration in range(max_iterations):
            if progress is not None:
                progress("iterations", iteration, max_iterations)
            nearest, sqdist = nearest_centres(points, centres, pool)
            nearest = fill_empty_clusters(points, nearest, n_clusters, sqdist)
            if np.array_equal(nearest, labels):
                break
            labels = nearest
            centres = cluster_means(points, labels, n_clusters, point_weights)
    return by_first_appearance(labels[code_to_point])


def centroid_free_kmeans(
    vectors: np.ndarray,
    n_clusters: int,
    *,
    seed: int = 0,
    weights: np.ndarray | None = None,
    max_iterations: int = 100,
    n_threads: int | None = None,
    progress: Progress | None = None,
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
    progress : callable, optional
        Called with (what is done, how much so far, how much at most) now and then.

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
    vectors = checked_double(vectors)
    n_codes = len(vectors)
    check_counts(n_clusters, n_codes, max_iterations)
    weights = positive_weights(weights, n_codes)
    block = rows_a_block(vectors)  # where clusters overlap, a code looks at nearly all others
    slack = slack_of(vectors)
    with RowPool(n_threads) as pool:
        labels, sqdist = nearest_centres(vectors, vectors[_draw_distinct(vectors, n_clusters, seed)], pool)
        labels = fill_empty_clusters(vectors, labels, n_clusters, sqdist)
        distance = np.empty(n_codes)
        seen = {digest_labels(labels)}
        for iteration in range(max_iterations):
            if progress is not None:
                progress("iterations", iteration, max_iterations)
            moved = np.empty(n_codes, dtype=np.int64)
            clusters = member_layout(vectors, labels, weights, n_clusters)
            pool.run(
                _kmeans_kernels.nearest_by_members, n_codes, block, vectors, *clusters, labels, slack, moved, distance
            )
            labels = fill_empty_clusters(vectors, moved, n_clusters, distance)
            digest = digest_labels(labels)
            if digest in seen:
                break
            seen.add(digest)
    return by_first_appearance(labels)


def _plusplus_seeds(
    points: np.ndarray, weights: np.ndarray, n_clusters: int, seed: int, pool: RowPool, progress: Progress | None
) -> np.ndarray:
    """Draw points one after the other, each with a probability proportional to its squared distance to those before.

    Greedily, as scikit-learn does: of a few points drawn, the one is taken that leaves the smallest squared error.
    """
    rng = np.random.default_rng(seed)
    n, n_trials = len(points), 2 + int(np.log(n_clusters))
    columns = np.ascontiguousarray(points.T)
    seeds = np.empty(n_clusters, dtype=np.int64)
    closest = np.full(n, np.inf)
    shorter, errors = np.empty((n_trials, n)), np.empty((n_trials, -(-n // _SEED_ROWS)))
    heads = np.cumsum(weights)
    for k in range(n_clusters):
        drawn = np.searchsorted(heads, rng.random(n_trials if k else 1) * heads[-1], side="right")
        drawn = np.minimum(drawn, n - 1)
        found = (closest, shorter, errors)
        pool.run(_kmeans_kernels.shortened, n, _SEED_ROWS, _SEED_ROWS, columns, weights, drawn, *found)
        best = int(np.argmin(errors[: len(drawn)].sum(axis=1)))
        seeds[k] = drawn[best]
        closest[:] = shorter[best]
        heads = np.cumsum(closest * weights)
        if progress is not None and k % 256 == 255:
            progress("seeds", k + 1, n_clusters)
    return seeds


def _draw_distinct(vectors: np.ndarray, n_codes: int, seed: int) -> np.ndarray:
    """Draw codes at random, no two with equal vectors; fewer than `n_codes` where fewer vectors differ."""
    drawn = np.random.default_rng(seed).permutation(len(vectors))
    return drawn[np.unique(duplicate_groups(vectors[drawn]))[:n_codes]]
