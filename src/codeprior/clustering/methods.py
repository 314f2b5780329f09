"""Every clustering method behind one door: what the papers compare, by name, on the live codes where usage is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codeprior.clustering.agglomerative import agglomerative_linkage
from codeprior.clustering.assignment import by_first_appearance, nearest_clusters
from codeprior.clustering.balanced import balanced_kmeans
from codeprior.clustering.cut import cut
from codeprior.clustering.distance import check_vectors, check_weights, is_whole
from codeprior.clustering.kmeans import centroid_free_kmeans, kmeans
from codeprior.clustering.linkage import Metric, Progress, ask, average_linkage
from codeprior.errors import InputError

_BLOCK = 256  # dead codes whose distances to all others are held at a time


@dataclass(frozen=True)
class Method:
    """What a clustering method is and what it takes."""

    description: str
    """One line, with the paper's name for it."""
    tree: bool = False
    """Makes a linkage matrix, hence every number of clusters at once."""
    seeded: bool = False
    """Depends on the seed."""
    weights: bool = False
    """Takes instance weights."""
    any_metric: bool = False
    """Needs instance distances only; the others need the vectors themselves, and Euclidean distance."""
    size_bound: bool = False
    """Takes `max_cluster_size`."""


METHODS: dict[str, Method] = {
    "dcpe": Method(
        "average linkage, exact: the paper's DCPE", tree=True, weights=True, any_metric=True, size_bound=True
    ),
    "kmeans": Method("k-means from random codes, as the paper describes it (III-A)", seeded=True, weights=True),
    "kmeans++": Method("k-means from k-means++ seeds", seeded=True, weights=True),
    "kmeans++-weighted": Method("k-means++ with codes weighted by their usage", seeded=True),
    "balanced-kmeans": Method("k-means with clusters of equal size, as in IAR", seeded=True),
    "kmeans-instance": Method(
        "k-means by mean instance distance, the paper's 'k-means w/o centroid'", seeded=True, weights=True
    ),
    "centroid": Method("agglomerative by centroid distance, the paper's 'DCPE w/ centroid'", tree=True),
    "ward": Method("agglomerative by Ward's increase of the squared error", tree=True),
    "complete": Method("agglomerative by the largest instance distance", tree=True, any_metric=True),
}


@dataclass(frozen=True, eq=False)
class Clustering:
    """Labels of all codes, and the tree that they were cut from."""

    labels: np.ndarray
    """Cluster of each code, (V,) int64, numbered by first appearance."""
    n_clusters: int
    """Number of clusters, none of them empty."""
    linkage: np.ndarray | None
    """SciPy's Z, (M, 4) float64, or None. Its leaves are the live codes in their order; merges in the order made."""
    live: np.ndarray
    """Whether each code was clustered, (V,) bool; the others were attached to the nearest cluster afterwards."""


def cluster(
    vectors: np.ndarray,
    n_clusters: int | float,
    *,
    method: str = "dcpe",
    seed: int = 0,
    usage: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    max_cluster_size: int | None = None,
    strict: bool = False,
    complete_tree: bool = True,
    metric: Metric = "euclidean",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Clustering:
    """Cluster the codes of a codebook by any of `METHODS`.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32 or float64
        One row a code, in the space in which the tokenizer compares them. Not modified. With ``metric="precomputed"``
        the (V, V) matrix of instance distances.
    n_clusters : int or float
        Number of clusters, or their share of all V codes: 0.5 makes V / 2 clusters.
    method : str
        A name in `METHODS`.
    seed : int
        For the methods that draw their first centres; the others ignore it.
    usage : ndarray of shape (V,), optional
        How often each code was used. Codes never used are dead: the method sees the live ones alone, and each dead
        code is attached to the cluster with the smallest mean instance distance to it.
    weights : ndarray of shape (V,), optional
        Positive weight of each code in the means. Usage counts serve, but in trials weighting average linkage by them
        did not help; "kmeans++-weighted" did.
    max_cluster_size : int, optional
        A cluster larger than this merges no more (the paper's rule for IAR). Counts live codes.
    strict : bool
        Make `max_cluster_size` a bound that no cluster exceeds. The bound may then leave more clusters than asked for.
    complete_tree : bool
        Go on to a single cluster, for the whole curve over the number of clusters; otherwise the tree ends at
        `n_clusters`, which is faster. With `max_cluster_size` it always ends there.
    metric : "euclidean", "precomputed" or callable
        Instance distance, for the methods that need nothing else: "dcpe" and "complete". A callable gets two blocks of
        rows, (A, E) and (B, E), and returns their (A, B) distances.
    device : str
        Where "dcpe" runs; every other method runs on the CPU.
    progress : callable, optional
        Called with (what is done, how much so far, how much in all or at most) now and then.

    Returns
    -------
    Clustering
        Labels numbered by first appearance, the tree where there is one, and which codes are live.

    Raises
    ------
    InputError
        If an argument is out of range, is not one that the method takes, fewer codes are live than clusters wanted,
        or the method needs more memory than the machine has.

    Notes
    -----
    "centroid", "ward" and "complete" hold the distances of all pairs: 1.1 GB for 16,384 codes. Heights of centroid
    linkage may decrease; its merges are applied in the order in which they were made.
    """
    vectors = check_vectors(vectors)
    n_codes = len(vectors)
    if metric == "precomputed" and vectors.shape[1] != n_codes:
        raise InputError(f"a precomputed matrix of distances must be square, got shape {vectors.shape}")
    n_clusters = resolve_n_clusters(n_clusters, n_codes)
    _check_method(method, weights, usage, max_cluster_size, metric)
    if not is_whole(seed, 0):
        raise InputError(f"seed must be a whole number of 0 or more, got {seed!r}")
    weights = check_weights(weights, n_codes)
    live = live_codes(usage, n_codes)
    n_live = int(live.sum())
    if n_live < n_clusters:
        raise InputError(
            f"n_clusters must be at most {n_live}, the number of live codes (the other {n_codes - n_live} of {n_codes} "
            f"were never used), got {n_clusters}"
        )
    rows = vectors if n_live == n_codes else vectors[np.ix_(live, live)] if metric == "precomputed" else vectors[live]
    row_weights = None if weights is None else weights[live]
    Z = None
    if METHODS[method].tree:
        if method == "dcpe":
            stop = 1 if complete_tree and max_cluster_size is None else n_clusters
            Z = average_linkage(
                rows,
                stop,
                metric=metric,
                weights=row_weights,
                max_cluster_size=max_cluster_size,
                strict=strict,
                device=device,
                progress=progress,
            )
            n_clusters = max(n_clusters, n_live - len(Z))  # a size bound may end the merging early
        else:
            Z = agglomerative_linkage(rows, method, metric=metric, progress=progress)
            Z = Z if complete_tree else Z[: n_live - n_clusters]
        live_labels = cut(Z, n_live, n_clusters)
    elif method == "balanced-kmeans":
        live_labels = balanced_kmeans(rows, n_clusters, seed=seed, progress=progress)
    elif method == "kmeans-instance":
        live_labels = centroid_free_kmeans(rows, n_clusters, seed=seed, weights=row_weights, progress=progress)
    else:
        if method == "kmeans++-weighted":
            assert usage is not None  # checked above
            row_weights = np.asarray(usage, dtype=np.float64)[live]
        init = "random" if method == "kmeans" else "k-means++"
        live_labels = kmeans(rows, n_clusters, seed=seed, init=init, weights=row_weights, progress=progress)

    live_weights = None if weights is None else weights[live]
    labels = attach_dead_codes(vectors, live, live_labels, metric=metric, weights=live_weights)
    return Clustering(labels, n_clusters, Z, live)


def attach_dead_codes(
    vectors: np.ndarray,
    live: np.ndarray,
    live_labels: np.ndarray,
    *,
    metric: Metric = "euclidean",
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Labels of all codes (V,), numbered by first appearance, from those of the live ones (L,).

    Each dead code joins the cluster of smallest mean instance distance to it; `weights` (L,) are those of the means.
    """
    labels = np.empty(len(live), dtype=np.int64)
    labels[live] = live_labels
    if not live.all():
        labels[~live] = _nearest_to_dead(vectors, live, live_labels, metric, weights)
    return by_first_appearance(labels)


def resolve_n_clusters(n_clusters: int | float, n_codes: int) -> int:
    """Turn a number of clusters, or a share of the codes strictly between 0 and 1, into a number in 1..n_codes.

    A share is rounded to the nearest number, and never below one cluster.
    """
    allowed = f"n_clusters must be a whole number between 1 and {n_codes} (the codebook size), or a share such as 0.5"
    if isinstance(n_clusters, float | np.floating) and 0 < n_clusters < 1:
        return max(1, round(float(n_clusters) * n_codes))
    if not is_whole(n_clusters, 1, n_codes):
        raise InputError(f"{allowed}, got {n_clusters!r}")
    return int(n_clusters)


def live_codes(usage: np.ndarray | None, n_codes: int) -> np.ndarray:
    """Mark the codes that were used at least once, (V,) bool; all of them when usage is not known."""
    if usage is None:
        return np.ones(n_codes, dtype=bool)
    usage = np.asarray(usage)
    if usage.shape != (n_codes,) or usage.dtype.kind not in "fiub":
        given = f"{usage.dtype} of shape {usage.shape}"
        raise InputError(f"usage must be one count for each of the {n_codes} codes, got {given}")
    wrong = np.flatnonzero(~((usage >= 0) & np.isfinite(usage)))
    if len(wrong):
        raise InputError(f"usage must be counts of zero or more, got {usage[wrong[0]]} for code {wrong[0]}")
    return usage > 0


def _check_method(
    method: str,
    weights: np.ndarray | None,
    usage: np.ndarray | None,
    max_cluster_size: int | None,
    metric: Metric,
) -> None:
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")

    def able(trait: str) -> str:
        return ", ".join(name for name, other in METHODS.items() if getattr(other, trait))

    if weights is not None and not METHODS[method].weights:
        raise InputError(f"method {method!r} takes no weights; these do: {able('weights')}")
    if max_cluster_size is not None and not METHODS[method].size_bound:
        raise InputError(f"method {method!r} takes no max_cluster_size; this does: {able('size_bound')}")
    if not (callable(metric) or metric in ("euclidean", "precomputed")):
        raise InputError(f"metric must be 'euclidean', 'precomputed' or a callable, got {metric!r}")
    if metric != "euclidean" and not METHODS[method].any_metric:
        raise InputError(f"method {method!r} is Euclidean, got metric {metric!r}; these take any: {able('any_metric')}")
    if method == "kmeans++-weighted" and usage is None:
        raise InputError(f"method {method!r} weighs each code by its usage; pass usage, one count a code")


def _nearest_to_dead(
    vectors: np.ndarray, live: np.ndarray, live_labels: np.ndarray, metric: Metric, weights: np.ndarray | None
) -> np.ndarray:
    """Give each dead code the cluster of smallest mean instance distance (Eq. 2 for a single code)."""
    if metric == "euclidean":
        return nearest_clusters(vectors[~live], vectors[live], live_labels, weights=weights)
    dead = np.flatnonzero(~live)
    masses = np.ones(len(live_labels)) if weights is None else weights
    mass_of_cluster = np.bincount(live_labels, masses)
    nearest = []
    for rows in np.split(dead, range(_BLOCK, len(dead), _BLOCK)):
        distances = ask(metric, vectors[rows], vectors[live]) if callable(metric) else vectors[np.ix_(rows, live)]
        nearest += [np.argmin(np.bincount(live_labels, masses * row) / mass_of_cluster) for row in distances]
    return np.array(nearest)
