"""From a linkage matrix to labels: the first merges, in order, and nothing else."""

from __future__ import annotations

import numpy as np

from codeprior.clustering.distance import is_whole
from codeprior.errors import InputError


def cut(Z: np.ndarray, n_codes: int, n_clusters: int) -> np.ndarray:
    """Return the labels after the first ``n_codes - n_clusters`` merges of `Z`.

    Heights are never looked at: merges are applied in the order in which they were made, so the answer is right for
    trees that are not monotone (centroid linkage) and for equal heights.

    Parameters
    ----------
    Z : ndarray of shape (M, 4)
        A linkage matrix in SciPy's layout, of which at least ``n_codes - n_clusters`` merges are needed.
    n_codes : int
        Number of codes V; ``Z`` may end before the complete tree, so it does not say.
    n_clusters : int
        Number of clusters wanted, between ``n_codes - len(Z)`` and ``n_codes``.

    Returns
    -------
    labels : ndarray of shape (n_codes,), int64
        Numbered by first appearance: code 0 has label 0, the first code outside its cluster has label 1, and so on.

    Raises
    ------
    InputError
        If `Z` has too few merges, or the counts do not fit.
    """
    Z = np.asarray(Z, dtype=np.float64)
    if Z.ndim != 2 or Z.shape[1] != 4:
        raise InputError(f"Z must have shape (M, 4), got {Z.shape}")
    if not is_whole(n_clusters, 1, n_codes):
        raise InputError(f"n_clusters must be between 1 and {n_codes} (the number of codes), got {n_clusters!r}")
    n_merges = n_codes - n_clusters
    if n_merges > len(Z):
        raise InputError(
            f"n_clusters must be at least {n_codes - len(Z)} (the tree has {len(Z)} merges of {n_codes} codes), "
            f"got {n_clusters}"
        )
    children = Z[:n_merges, :2].astype(np.int64)
    # parent[i] of a cluster made later is larger than i, so one pass from the top finds every root.
    parent = np.arange(n_codes + n_merges)
    parent[children.ravel()] = np.repeat(np.arange(n_codes, n_codes + n_merges), 2)
    while True:  # pointer doubling: as many steps as the logarithm of the depth
        grandparent = parent[parent]
        if np.array_equal(grandparent, parent):
            break
        parent = grandparent
    _, first, labels = np.unique(parent[:n_codes], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[labels.ravel()]
