"""Trees by other linkages, which average linkage is compared with: complete, Ward's, and that of centroids."""

from __future__ import annotations

import numpy as np

from codeprior.errors import InputError
from codeprior.machine import require_memory

from . import _agglomerative_kernels as kernels
from ._parallel import RowPool
from .distance import check_vectors
from .linkage import Metric, Progress, distance_matrix

LINKAGES = {"complete": kernels.COMPLETE, "ward": kernels.WARD, "centroid": kernels.CENTROID}
ENTRIES_PER_CALL = 20_000_000  # looked at in a fraction of a second: Ctrl-C waits for calls to end


def agglomerative_linkage(
    vectors: np.ndarray,
    linkage: str,
    *,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Merge code vectors bottom-up into the complete tree of a linkage.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32 or float64
        One row a code; with ``metric="precomputed"`` the symmetric (V, V) matrix of instance distances. Not modified.
    linkage : {"complete", "ward", "centroid"}
        The distance of two clusters: the largest instance distance; Ward's root of twice the increase of the squared
        error; the distance of the means [1]_.
    metric : "euclidean", "precomputed" or callable
        Distance of two codes, as `average_linkage` takes it; Euclidean for "ward" and "centroid".
    n_threads : int, optional
        Threads for the distances between codes; all cores by default. The tree does not depend on it.
    progress : callable, optional
        Called with ("merges", merges made, merges wanted) now and then.

    Returns
    -------
    Z : ndarray of shape (V - 1, 4), float64
        SciPy's layout, in the order of the merges, and SciPy's heights. Those of "centroid" may decrease.

    Raises
    ------
    InputError
        If an argument is out of range, or the distances between all codes are more than memory holds: 8 bytes each.

    Notes
    -----
    Ties: the lowest code of the nearer-numbered cluster. Time is some V² to V³ steps, V² in practice.

    References
    ----------
    .. [1] Müllner, Modern hierarchical, agglomerative clustering algorithms, 2011, arXiv:1109.2378.
    """
    if linkage not in LINKAGES:
        raise InputError(f"linkage must be one of {', '.join(LINKAGES)}, got {linkage!r}")
    squared = linkage != "complete"
    if squared and metric != "euclidean":
        raise InputError(f"{linkage!r} linkage is Euclidean, got metric {metric!r}")
    n = len(vectors)
    n_pairs = n * (n - 1) // 2
    require_memory(8 * n_pairs, f"{linkage!r} linkage holds every distance between {n} codes and")
    with RowPool(n_threads) as pool:
        rows = max(1, ENTRIES_PER_CALL // (n * (vectors.shape[1] if squared else 1) + 1))
        if metric == "euclidean":
            vectors = np.ascontiguousarray(check_vectors(vectors), dtype=np.float64)
            distances = np.empty(n_pairs)
            pool.run(kernels.condense, n, rows, vectors, squared, distances)
        else:
            distances = distance_matrix(vectors, metric)[np.triu_indices(n, 1)]
        alive, size, cluster = np.ones(n, dtype=bool), np.ones(n), np.arange(n)
        nearest, bound = np.empty(n, dtype=np.int64), np.empty(n)
        pool.run(kernels.begin, n, max(1, ENTRIES_PER_CALL // n), n, alive, distances, nearest, bound)
    Z = np.empty((n - 1, 4))
    steps = max(1, ENTRIES_PER_CALL // (8 * n))
    for first in range(0, n - 1, steps):
        last = min(first + steps, n - 1)
        kernels.merge(first, last, LINKAGES[linkage], distances, alive, size, cluster, nearest, bound, Z)
        if progress is not None:
            progress("merges", last, n - 1)
    if squared:
        Z[:, 2] = np.sqrt(np.maximum(Z[:, 2], 0.0))
    return Z
