"""Average linkage (UPGMA), exactly: the clustering of DCPE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from codeprior.errors import InputError
from codeprior.machine import require_memory

from ._duplicates import merge_duplicates
from ._matrix import LARGEST_MATRIX, Clusters, SizeRule, merge_by_matrix, singletons
from ._members import Members
from ._merges import MergeLog, Progress
from ._near import merge_near
from ._parallel import RowPool
from ._search import merge_by_search
from ._sums import cluster_sums
from .distance import check_vectors, check_weights, is_whole

# A tree over cluster means prunes in few dimensions only; beyond, all pairs are looked at.
TREE_DIMENSIONS = 16
# Clusters left when the search hands over to a matrix: below, a round on the matrix costs less than the searches.
MATRIX_CLUSTERS = 1024
# With more points than this, in many dimensions, the near ones are merged before there is a matrix.
NEAR_ABOVE = 2048
# Rows and columns of a matrix of given distances that are looked at in one go.
BLOCK = 1024

Metric = str | Callable[[np.ndarray, np.ndarray], np.ndarray]


def average_linkage(
    vectors: np.ndarray,
    n_clusters: int = 1,
    *,
    metric: Metric = "euclidean",
    weights: np.ndarray | None = None,
    max_cluster_size: int | None = None,
    strict: bool = False,
    device: str = "cpu",
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Merge code vectors bottom-up by mean pairwise distance (UPGMA), exactly.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32 or float64
        One row a code; with ``metric="precomputed"`` the symmetric (V, V) matrix of instance distances. Not modified.
    n_clusters : int
        Stop when this many clusters are left; 1 gives the complete tree.
    metric : "euclidean", "precomputed" or callable
        Distance of two codes. A callable gets two blocks of rows, (A, E) and (B, E), and returns (A, B) distances.
    weights : ndarray of shape (V,), optional
        Positive instance weights: the distance of two clusters is the weighted mean over their cross pairs.
    max_cluster_size : int, optional
        A cluster with more codes than this merges no more (the paper's rule for IAR, where it is V // n_clusters).
    strict : bool
        Read `max_cluster_size` as a bound instead: no merge makes a cluster with more codes.
    device : str
        "cpu", or a torch device such as "cuda".
    n_threads : int, optional
        Threads of the CPU path; by default one for each core that the process may use.
    progress : callable, optional
        Called with (what is done, how much so far, how much in all) now and then: "near pairs", "distances", "merges".

    Returns
    -------
    Z : ndarray of shape (V - reached, 4), float64
        SciPy's layout: left id, right id (the smaller first), height, size; row i of `vectors` has id i, the cluster
        made by merge t has id V + t. Heights never decrease. Without a size bound ``reached == n_clusters``. A bound
        may leave more clusters than asked for when no allowed pair is left; the paper's rule always reaches
        `n_clusters` if ``max_cluster_size >= V // n_clusters``, the strict one need not.

    Raises
    ------
    InputError
        If `vectors` is not two-dimensional and finite, or an argument is out of its range. It is a ValueError.

    Notes
    -----
    The distance of two clusters is the mean over all cross pairs (DCPE, Eq. 2); the nearest pair merges, greedily
    (Eq. 1). Rounds of reciprocal nearest neighbours give that tree [2]_.

    Ties: distances are compared after rounding to 41 significant bits (12 decimal digits), which is also the precision
    of the heights. Of pairs at equal distance the one whose lower representative is lowest merges first, then the one
    whose higher representative is; a cluster's representative is its lowest row. Equal rows thus merge first, at
    height 0. Z is the same on every run and for any number of threads.

    Cost: a complete tree takes about V² / 2 distances; tenths of a second and some 60 MB for 16,384 codes of dimension
    8 on two cores, to half of the codes a third of the time. In more than 16 dimensions the distances of up to 20,480
    clusters are held, 8 bytes each; distances that are given are held once more. `benchmarks/README.md` says more.

    References
    ----------
    .. [1] DCPE (Tang et al., 2025), Eq. 1-2 and Algorithm 1.
    .. [2] Müllner, Modern hierarchical, agglomerative clustering algorithms, 2011, arXiv:1109.2378.
    """
    vectors = check_vectors(vectors)
    n_codes = len(vectors)
    if not (callable(metric) or metric in ("euclidean", "precomputed")):
        raise InputError(f"metric must be 'euclidean', 'precomputed' or a callable, got {metric!r}")
    if not is_whole(n_clusters, 1, n_codes):
        raise InputError(f"n_clusters must be between 1 and {n_codes} (the codebook size), got {n_clusters!r}")
    if not (max_cluster_size is None or is_whole(max_cluster_size, 1)):
        raise InputError(f"max_cluster_size must be a whole number of at least 1, got {max_cluster_size!r}")
    weights = check_weights(weights, n_codes)
    if device != "cpu":
        if metric != "euclidean":
            raise InputError(f"metric {metric!r} runs on device 'cpu' only, got device {device!r}")
        from ._torch import average_linkage_torch

        return average_linkage_torch(
            vectors,
            n_clusters,
            weights=weights,
            max_cluster_size=max_cluster_size,
            strict=strict,
            device=device,
            progress=progress,
        )
    bound = max_cluster_size or 0
    rule = SizeRule(at_most=bound) if strict else SizeRule(frozen_above=bound)
    log = MergeLog(n_codes, n_clusters, progress)
    if log.wanted == 0:
        return log.linkage()
    with RowPool(n_threads) as pool:
        if isinstance(metric, str) and metric == "euclidean":
            vectors, exponent = _within_range(vectors)
            clusters = merge_duplicates(vectors, weights, rule, log).allowed(rule)
            _merge_points(vectors, clusters, log, rule, pool)
        else:
            clusters = singletons(n_codes, weights)
            sums, exponent = _within_range(distance_matrix(vectors, metric))
            if weights is not None:
                sums *= weights[:, None]
                sums *= weights
            merge_by_matrix(sums, clusters, log, rule, pool)
    Z = log.linkage()
    Z[:, 2] = np.ldexp(Z[:, 2], exponent)
    return Z


def _within_range(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return values of which no sum of squares overflows or vanishes, and the exponent of two that takes them back."""
    exponent = int(np.frexp(max(values.max(), -values.min()))[1])
    if abs(exponent) < 300:
        return values, 0
    return np.ldexp(values, -exponent), exponent


def _merge_points(vectors: np.ndarray, clusters: Clusters, log: MergeLog, rule: SizeRule, pool: RowPool) -> None:
    """Merge clusters of equal vectors: by search while there are many, then on a matrix."""
    n, dim = len(clusters), vectors.shape[1]
    prunes = dim <= TREE_DIMENSIONS
    require_memory(n * (40 * dim + (500 if prunes else 5000)), f"clustering {n} codes of dimension {dim}")
    points = np.ascontiguousarray(vectors[clusters.representatives])
    left: tuple[Members, Clusters] | None
    left = members, clusters = Members(points, clusters.weights, np.arange(len(points) + 1)), clusters
    if not prunes and len(clusters) > NEAR_ABOVE:
        left = merge_near(members, clusters, log, rule, pool)
    stop_below = MATRIX_CLUSTERS if prunes else LARGEST_MATRIX
    if left is not None and len(left[1]) > stop_below:
        left = merge_by_search(*left, log, rule, pool, stop_below, prunes)
    if left is not None:  # else nothing that is wanted is left to do
        members, clusters = left
        sums = cluster_sums(members, pool, log, few_dimensions=prunes)
        merge_by_matrix(sums, clusters, log, rule, pool)


def distance_matrix(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Return a new (V, V) float64 matrix of a caller's distances, checked; of a callable, asked for block by block."""
    if callable(metric):
        return _asked_distances(vectors, metric)
    return _checked_distances(vectors)


def ask(metric: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a caller's distances between two blocks of rows, (A, B) float64."""
    values = np.asarray(metric(x, y), dtype=np.float64)
    if values.shape != (len(x), len(y)):
        raise InputError(f"metric must return shape {(len(x), len(y))} for these blocks, got {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"metric must return finite distances, got {values[~np.isfinite(values)][0]}")
    return values


def _asked_distances(vectors: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the (V, V) float64 matrix of a caller's metric, asked for block by block above the diagonal."""
    n = len(vectors)
    require_memory(8 * n * n, f"the matrix of distances between {n} codes")
    distances = np.empty((n, n))
    for i in range(0, n, BLOCK):
        for j in range(i, n, BLOCK):
            values = ask(metric, vectors[i : i + BLOCK], vectors[j : j + BLOCK])
            distances[i : i + BLOCK, j : j + BLOCK] = values
            distances[j : j + BLOCK, i : i + BLOCK] = values.T
    np.fill_diagonal(distances, 0.0)
    return _checked_distances(distances)


def _checked_distances(distances: np.ndarray) -> np.ndarray:
    """Return a copy of the matrix, C-ordered float64, if it is square, symmetric, finite and not negative."""
    distances = np.asarray(distances)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise InputError(f"a distance matrix must be square, got shape {distances.shape}")
    check_vectors(distances, "distance matrix")
    require_memory(8 * distances.size, f"the matrix of distances between {len(distances)} codes")
    if (distances < 0).any():
        raise InputError(f"distances must not be negative, got {distances.min()}")
    checked = np.empty(distances.shape)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(checked), BLOCK)]
    for rows in blocks:
        checked[rows] = distances[rows]
    mirrored = [(rows, columns) for i, rows in enumerate(blocks) for columns in blocks[i:]]
    worst = max(float(np.abs(checked[at] - checked[at[::-1]].T).max()) for at in mirrored)
    if worst > 1e-6 * float(checked.max()):
        raise InputError(f"a distance matrix must be symmetric, entries differ from their mirror by up to {worst}")
    if worst > 0:
        for at in mirrored:
            middle = checked[at] / 2 + checked[at[::-1]].T / 2  # does not depend on the order of the two
            checked[at], checked[at[::-1]] = middle, middle.T
    return checked
