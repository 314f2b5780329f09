"""Clusters of equal size, and the order that IAR gives a codebook by them."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from codeprior.clustering import _kmeans_kernels
from codeprior.clustering._merges import Progress
from codeprior.clustering._parallel import RowPool
from codeprior.clustering.assignment import (
    by_first_appearance,
    check_counts,
    checked_double,
    cluster_means,
    digest_labels,
    nearest_centres,
    rows_a_block,
)
from codeprior.errors import InputError


def balanced_kmeans(
    vectors: np.ndarray,
    n_clusters: int,
    *,
    seed: int = 0,
    max_iterations: int = 100,
    init: np.ndarray | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
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
    progress : callable, optional
        Called with (what is done, how much so far, how much at most) now and then.

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
    vectors = checked_double(vectors)
    n_codes = len(vectors)
    check_counts(n_clusters, n_codes, max_iterations)
    if init is None:
        init = np.random.default_rng(seed).permutation(n_codes)[:n_clusters]
    elif len(init) != n_clusters:
        raise InputError(f"init must hold one code for each of the {n_clusters} clusters, got {len(init)}")
    centres = vectors[init]

    best_error = np.inf
    best = np.empty(0, dtype=np.int64)
    seen: set[bytes] = set()
    with RowPool(n_threads) as pool:
        for iteration in range(max_iterations):
            if progress is not None:
                progress("iterations", iteration, max_iterations)
            nearest, sqdist = nearest_centres(vectors, centres, pool)
            labels = _nearest_with_room(vectors, centres, nearest, np.argsort(sqdist, kind="stable"))
            centres = cluster_means(vectors, labels, n_clusters)
            error = float(np.square(vectors - centres[labels]).sum())
            if error < best_error:
                best_error, best = error, labels
            digest = digest_labels(labels)
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
    vectors = checked_double(vectors)
    labels = np.asarray(labels)
    if labels.shape != (len(vectors),):
        raise InputError(f"labels must be one for each of the {len(vectors)} codes, got shape {labels.shape}")
    members = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[members])) + 1
    order = np.concatenate([cluster[_two_sided_walk(vectors[cluster])] for cluster in np.split(members, ends)])
    mapping = np.empty(len(vectors), dtype=np.int64)
    mapping[order] = np.arange(len(vectors))
    return mapping


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
    block = rows_a_block(centres)
    for start in range(0, n_codes, block):  # short calls: Ctrl-C comes in between
        _kmeans_kernels.fill_in_order(
            order[start : start + block], vectors, nearest, room, left, place, open_ids, open_columns, labels
        )
    return labels
