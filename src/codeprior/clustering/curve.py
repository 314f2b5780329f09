"""What a clustering is like: the whole curve over the number of clusters from one tree, sizes, and agreement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import entr
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from codeprior.clustering._merges import Progress
from codeprior.clustering.distance import check_vectors, check_weights, mean_distance
from codeprior.errors import InputError

_BLOCK = 1024  # rows whose distances are held at a time


@dataclass(frozen=True, eq=False)
class Curve:
    """Figures of every cut of a tree; entry i of each array belongs to ``n_clusters[i]`` clusters."""

    n_clusters: np.ndarray
    """Numbers of clusters, ascending, (K,) int64."""
    mean_distance: np.ndarray | None
    """Mean distance over all pairs of codes that share a cluster, (K,) float64; 0 where no two do."""
    largest: np.ndarray
    """Codes in the largest cluster, (K,) int64."""
    singletons: np.ndarray
    """Clusters of a single code, (K,) int64."""
    entropy_nats: np.ndarray | None
    """Entropy of the clusters' usage, (K,) float64: what a model of cluster ids has to predict without context."""

    def at(self, n_clusters: int) -> dict[str, float]:
        """Give the figures for one number of clusters."""
        row = int(n_clusters) - int(self.n_clusters[0])
        if not 0 <= row < len(self.n_clusters):
            raise InputError(
                f"n_clusters must be between {self.n_clusters[0]} and {self.n_clusters[-1]}, got {n_clusters}"
            )
        figures: dict[str, float] = {
            "n_clusters": int(self.n_clusters[row]),
            "largest": int(self.largest[row]),
            "singletons": int(self.singletons[row]),
        }
        if self.mean_distance is not None:
            figures["mean_distance"] = float(self.mean_distance[row])
        if self.entropy_nats is not None:
            figures["entropy_nats"] = float(self.entropy_nats[row])
        return figures


@dataclass(frozen=True)
class SizeStatistics:
    """Cluster sizes in a few numbers, in codes a cluster."""

    n_clusters: int
    smallest: int
    median: float
    mean: float
    largest: int
    std: float
    singletons: int


@dataclass(frozen=True)
class Agreement:
    """How far two clusterings of the same codes agree; 1 is the same partition."""

    ari: float
    """Adjusted Rand index: 0 is what chance gives."""
    nmi: float
    """Normalised mutual information (arithmetic mean); not corrected for chance, hence high for many clusters."""


def tree_curve(
    Z: np.ndarray,
    n_codes: int,
    *,
    usage: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    average: bool = True,
) -> Curve:
    """Follow the merges of a tree once and give the figures of every cut on the way.

    In a tree of average linkage a merge of clusters of a and b codes at height h joins a * b pairs of mean distance h,
    so the sum of all distances within clusters grows by h * a * b: exact, without looking at a single vector.

    Parameters
    ----------
    Z : ndarray of shape (M, 4)
        Linkage matrix in SciPy's layout; complete or not.
    n_codes : int
        Number of leaves V.
    usage : ndarray of shape (V,), optional
        How often each leaf's code occurs; gives the entropy of the induced cluster distribution.
    weights : ndarray of shape (V,), optional
        The instance weights that the tree was made with; pairs are then weighted by their product.
    average : bool
        Whether the tree is of average linkage. Heights of others are not mean distances, and their curves have none;
        `with_mean_distances` gives them such heights.

    Returns
    -------
    Curve
        For V - M, ..., V clusters.

    Raises
    ------
    InputError
        If `Z` is not a linkage matrix of `n_codes` leaves, or `usage` or `weights` has another length.

    Notes
    -----
    Time and memory are linear in V: some 5 ms for 16,384 codes.
    """
    Z = np.asarray(Z, dtype=np.float64)
    if Z.ndim != 2 or Z.shape[1] != 4 or len(Z) >= n_codes:
        raise InputError(f"Z must have shape (M, 4) with fewer merges than the {n_codes} codes, got {Z.shape}")
    left, right = Z[:, 0].astype(np.int64), Z[:, 1].astype(np.int64)
    if len(Z) and not (
        0 <= min(left.min(), right.min()) and np.all(np.maximum(left, right) < n_codes + np.arange(len(Z)))
    ):
        raise InputError(f"Z merges clusters that do not exist yet; is n_codes ({n_codes}) the number of its leaves?")

    sizes = np.concatenate([np.ones(n_codes), Z[:, 3]])
    mean_distance = None
    if average:
        checked = check_weights(weights, n_codes)
        mean_distance = _mean_distances(Z, sizes if checked is None else _node_sums(checked, left, right))
    largest = np.maximum.accumulate(np.concatenate([[1.0], Z[:, 3]]))
    leaves_taken = (left < n_codes).astype(np.int64) + (right < n_codes)
    entropy = None
    if usage is not None:
        usage = _check_usage(usage, n_codes)
        terms = entr(_node_sums(usage / usage.sum(), left, right))
        change = terms[n_codes:] - terms[left] - terms[right]
        running = _running(float(terms[:n_codes].sum()), change)
        entropy = np.where(running < 1e-12, 0.0, running)[::-1]  # what rounding leaves of nothing
    return Curve(
        n_clusters=np.arange(n_codes - len(Z), n_codes + 1),
        mean_distance=mean_distance,
        largest=largest[::-1].astype(np.int64),
        singletons=(n_codes - np.concatenate([[0], np.cumsum(leaves_taken)]))[::-1],
        entropy_nats=entropy,
    )


def _mean_distances(Z: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Return the mean distance within clusters of each cut of a tree of average linkage, (M + 1,); fewest first.

    `masses` are the weights of all nodes, (V + M,).
    """
    children = Z[:, :2].astype(np.int64)
    pairs = masses[children[:, 0]] * masses[children[:, 1]]
    pair_mass = _running(0.0, pairs)
    distance_sum = _running(0.0, Z[:, 2] * pairs)
    return np.divide(distance_sum, pair_mass, out=np.zeros(len(Z) + 1), where=pair_mass > 0)[::-1]


def with_mean_distances(Z: np.ndarray, vectors: np.ndarray, progress: Progress | None = None) -> np.ndarray:
    """Return a tree with the mean distance of the two clusters of each merge for its height (DCPE, Eq. 2).

    Parameters
    ----------
    Z : ndarray of shape (M, 4)
        Linkage matrix in SciPy's layout, of any linkage. Not modified.
    vectors : ndarray of shape (V, E)
        Its leaves.
    progress : callable, optional
        Called with ("merges", merges done, merges in all) now and then.

    Returns
    -------
    Z : ndarray of shape (M, 4), float64
        For `tree_curve`. It takes the distances of all pairs that the tree joins: V² / 2 of a complete one.
    """
    vectors = check_vectors(vectors)
    n = len(vectors)
    Z = np.array(Z, dtype=np.float64)
    children = Z[:, :2].astype(np.int64)
    sizes = np.concatenate([np.ones(n), Z[:, 3]]).astype(np.int64)
    begin = np.zeros(n + len(Z), dtype=np.int64)  # of the leaves of each node, in an order that keeps them together
    roots = np.setdiff1d(np.arange(n + len(Z)), children)
    begin[roots] = np.cumsum(sizes[roots]) - sizes[roots]
    for node in range(len(Z) - 1, -1, -1):
        left, right = children[node]
        begin[left], begin[right] = begin[n + node], begin[n + node] + sizes[left]
    rows = np.empty_like(vectors)
    rows[begin[:n]] = vectors
    for t, (left, right) in enumerate(children):
        x, y = (rows[begin[node] : begin[node] + sizes[node]] for node in (left, right))
        Z[t, 2] = mean_distance(x, y)
        if progress is not None:
            progress("merges", t + 1, len(Z))
    return Z


def within_cluster_distance(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of codes that share a cluster, for any clustering; 0 if no two do.

    The time is the number of those pairs: the largest cluster, squared, decides. `tree_curve` has it for nothing where
    there is a tree.
    """
    vectors = check_vectors(vectors)
    labels = _check_labels(labels, len(vectors))
    members = np.argsort(labels, kind="stable")
    total, pairs = 0.0, 0
    for cluster in np.split(members, np.flatnonzero(np.diff(labels[members])) + 1):
        rows = vectors[cluster]
        pairs += len(rows) * (len(rows) - 1) // 2
        # Every pair is met twice, and a code's distance to itself is zero.
        total += sum(float(cdist(rows[i : i + _BLOCK], rows).sum()) for i in range(0, len(rows), _BLOCK)) / 2
    return total / pairs if pairs else 0.0


def induced_entropy(labels: np.ndarray, usage: np.ndarray) -> float:
    """Entropy in nats of the clusters that tokens fall into, given how often each code is used."""
    usage = _check_usage(usage, len(labels))
    return float(entr(np.bincount(_check_labels(labels, len(usage)), usage / usage.sum())).sum())


def size_statistics(labels: np.ndarray) -> SizeStatistics:
    """Summarise the sizes of the clusters that occur in `labels`."""
    _, sizes = np.unique(_check_labels(labels, len(labels)), return_counts=True)
    return SizeStatistics(
        n_clusters=len(sizes),
        smallest=int(sizes.min()),
        median=float(np.median(sizes)),
        mean=float(sizes.mean()),
        largest=int(sizes.max()),
        std=float(sizes.std()),
        singletons=int(np.count_nonzero(sizes == 1)),
    )


def agreement(labels: np.ndarray, other: np.ndarray) -> Agreement:
    """Compare two clusterings of the same codes, whatever their clusters are called."""
    labels = _check_labels(labels, len(labels))
    other = _check_labels(other, len(labels))
    return Agreement(
        ari=float(adjusted_rand_score(labels, other)), nmi=float(normalized_mutual_info_score(labels, other))
    )


def _running(first: float, changes: np.ndarray) -> np.ndarray:
    return np.cumsum(np.concatenate([[first], changes]))


def _node_sums(leaves: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Add a figure of the leaves up the tree: (V,) leaves -> (V + M,) nodes."""
    sums = leaves.tolist()
    for a, b in zip(left.tolist(), right.tolist(), strict=True):  # in order: a merge needs those before it
        sums.append(sums[a] + sums[b])
    return np.array(sums)


def _check_usage(usage: np.ndarray, n_codes: int) -> np.ndarray:
    usage = np.asarray(usage, dtype=np.float64)
    if usage.shape != (n_codes,):
        raise InputError(
            f"usage must be one count for each of the {n_codes} codes of the tree, got shape {usage.shape}; "
            "a tree of live codes needs usage[live]"
        )
    if not (np.isfinite(usage) & (usage >= 0)).all() or usage.sum() == 0:
        raise InputError("usage must be counts of zero or more, and not all zero")
    return usage


def _check_labels(labels: np.ndarray, n_codes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (n_codes,) or not n_codes or labels.dtype.kind not in "iu":
        raise InputError(f"labels must be {n_codes} whole numbers, got {labels.dtype} of shape {labels.shape}")
    return labels
