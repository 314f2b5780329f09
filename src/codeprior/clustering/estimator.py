"""DCPE as a scikit-learn estimator, for pipelines, grid searches and everyone used to `fit`."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import _check_sample_weight, validate_data

from codeprior.clustering.distance import normalize_rows
from codeprior.clustering.linkage import Metric
from codeprior.clustering.methods import cluster
from codeprior.errors import InputError


class DCPE(ClusterMixin, BaseEstimator):
    """Discriminative codebook prior extractor: exact average linkage of code vectors [1]_.

    Parameters
    ----------
    n_clusters : int or float, default=0.5
        Number of clusters, or their share of the samples; the paper's main experiments take half.
    normalize : bool, default=False
        Divide each row by its Euclidean length first, as tokenizers with an l2-normalised codebook do.
    metric : "euclidean", "precomputed" or callable, default="euclidean"
        Instance distance. With "precomputed", X is the (V, V) matrix of distances. A callable gets two blocks of rows,
        (A, E) and (B, E), and returns their (A, B) distances.
    max_cluster_size : int, optional
        A cluster larger than this merges no more (the paper's rule for IAR).
    strict : bool, default=False
        Make `max_cluster_size` a bound that no cluster exceeds; more clusters than asked for may then be left.
    complete_tree : bool, default=True
        Compute the tree to its root. False stops at `n_clusters`, which is faster.
    device : str, default="cpu"
        Where the linkage runs: "cpu" or a torch device.

    Attributes
    ----------
    labels_ : ndarray of shape (V,), int64
        Cluster of each sample, numbered by first appearance.
    n_clusters_ : int
        Number of clusters found.
    linkage_ : ndarray of shape (M, 4), float64
        The merges in SciPy's layout, ready for `scipy.cluster.hierarchy.dendrogram` if complete.
    children_ : ndarray of shape (M, 2), int64
        The two nodes of each merge, as in scikit-learn's `AgglomerativeClustering`.
    distances_ : ndarray of shape (M,), float64
        Mean instance distance between the two nodes of each merge; never decreases.
    n_leaves_ : int
        Number of samples in the tree: those whose weight is not zero.
    n_features_in_ : int
        Width of X.

    See Also
    --------
    codeprior.clustering.methods.cluster : the same with code usage, and the methods that DCPE is compared with.

    References
    ----------
    .. [1] DCPE (Tang et al., 2025), Eq. 1-2.

    Examples
    --------
    >>> import numpy as np
    >>> from codeprior import DCPE
    >>> DCPE(n_clusters=2).fit_predict(np.array([[0.0], [0.1], [5.0], [5.3]])).tolist()
    [0, 0, 1, 1]
    """

    def __init__(
        self,
        n_clusters: int | float = 0.5,
        *,
        normalize: bool = False,
        metric: Metric = "euclidean",
        max_cluster_size: int | None = None,
        strict: bool = False,
        complete_tree: bool = True,
        device: str = "cpu",
    ) -> None:
        self.n_clusters = n_clusters
        self.normalize = normalize
        self.metric = metric
        self.max_cluster_size = max_cluster_size
        self.strict = strict
        self.complete_tree = complete_tree
        self.device = device

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> DCPE:
        """Cluster the rows of X.

        Parameters
        ----------
        X : array-like of shape (V, E)
            One row a code; a matrix of distances if ``metric="precomputed"``. Not modified.
        y : ignored
            For scikit-learn's interface.
        sample_weight : array-like of shape (V,), optional
            Weight of each row in the mean distances. A row of weight zero takes no part and is attached to the
            cluster with the smallest mean distance to it afterwards.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X is not two-dimensional and finite, or a parameter is out of its range.
        """
        whole = isinstance(self.n_clusters, int | np.integer)
        X = validate_data(
            self, X, dtype=(np.float64, np.float32), ensure_min_samples=max(1, self.n_clusters) if whole else 1
        )
        if self.normalize:
            if self.metric == "precomputed":
                raise InputError("normalize needs vectors, got metric 'precomputed'; normalise before taking distances")
            X = normalize_rows(X)
        usage = weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            usage = weights
            weights = np.where(weights > 0, weights, 1.0)  # of dead rows, which have none
        result = cluster(
            X,
            self.n_clusters,
            usage=usage,
            weights=weights,
            max_cluster_size=self.max_cluster_size,
            strict=self.strict,
            complete_tree=self.complete_tree,
            metric=self.metric,
            device=self.device,
        )
        assert result.linkage is not None  # average linkage always makes a tree
        self.labels_ = result.labels
        self.n_clusters_ = result.n_clusters
        self.linkage_ = result.linkage
        self.children_ = result.linkage[:, :2].astype(np.int64)
        self.distances_ = result.linkage[:, 2].copy()
        self.n_leaves_ = int(result.live.sum())
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.metric == "precomputed"
        return tags
