"""Precision and recall: how many samples lie among the real images, and how much of the real images they cover."""

from __future__ import annotations

import numpy as np

from codeprior.errors import InputError

DISTANCES_AT_ONCE = 1 << 26  # 256 MB in float32


def precision_and_recall(reference: np.ndarray, samples: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall, exactly.

    An image lies on a set's manifold if it is no farther from one of its images than that one's `neighbours`-th nearest
    other image of the set. Precision is the share of samples on the reference's manifold, recall the share of the
    reference on that of the samples.

    Parameters
    ----------
    reference, samples : ndarray of shape (N, F) and (M, F)
        More than `neighbours` rows each. Not modified.
    neighbours : int
        3 in the paper and in ADM's evaluator.

    Returns
    -------
    precision, recall : float
        Both grow or fall with the numbers of images, so only scores with equal N and M compare.

    Raises
    ------
    InputError
        If the sets do not have the same features, or too few rows.

    Notes
    -----
    Distances are compared in float64 wherever float32 products leave a doubt; an image at a radius is inside. Takes
    2 F (N^2 + M^2 + N M) operations and 1 GB at most beside the features. Differs from ADM's evaluator, which rounds
    squared distances to float16 and so counts near misses: its figures are higher by some 0.001.

    References
    ----------
    Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1-2.
    """
    reference, samples = np.asarray(reference), np.asarray(samples)
    for name, features in (("reference", reference), ("samples", samples)):
        if features.ndim != 2 or len(features) <= neighbours or features.shape[1] != reference.shape[1]:
            raise InputError(
                f"precision and recall need more than {neighbours} rows of equal features, got {features.shape} of the "
                f"{name} (reference: {reference.shape})"
            )
    precision = _inside(samples, reference, _squared_radii(reference, neighbours)).mean()
    recall = _inside(reference, samples, _squared_radii(samples, neighbours)).mean()
    return float(precision), float(recall)


def _squared_radii(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row, float64 (N,)."""
    pairs = _Pairs(features, features)
    radii = np.empty(len(features))
    for rows in pairs.blocks():
        sqdist = pairs.approximate(rows)
        sqdist[np.arange(len(sqdist)), np.arange(rows.start, rows.stop)] = np.inf
        kth = np.partition(sqdist, neighbours - 1, axis=1)[:, neighbours - 1]
        row, column = np.nonzero(sqdist <= kth[:, None] + 2 * pairs.margin)
        exact = pairs.exact(row + rows.start, column)
        order = np.lexsort((exact, row))
        first = np.searchsorted(row[order], np.arange(len(sqdist)))
        radii[rows] = exact[order][first + neighbours - 1]
    return radii


def _inside(queries: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
    """Whether each query is within the radius of any centre, bool (N,)."""
    pairs = _Pairs(queries, centres)
    inside = np.zeros(len(queries), dtype=bool)
    radii = squared_radii.astype(np.float32)
    margin = pairs.margin + float(np.abs(radii - squared_radii).max())
    for rows in pairs.blocks():
        beyond = pairs.approximate(rows)
        beyond -= radii
        nearest = beyond.min(axis=1)
        inside[rows] = nearest < -margin
        doubtful = np.flatnonzero(np.abs(nearest) <= margin)
        row, column = np.nonzero(np.abs(beyond[doubtful]) <= margin)
        row = doubtful[row] + rows.start
        hits = pairs.exact(row, column) <= squared_radii[column]
        inside[row[hits]] = True
    return inside


class _Pairs:
    """Squared distances between two sets: approximate ones by float32 products, in blocks of rows, and exact ones."""

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        self._left, self._right = left, right
        centre = right.mean(axis=0, dtype=np.float64)  # shorter vectors, smaller errors
        self._x, self._y = ((features - centre).astype(np.float32) for features in (left, right))
        self._x_squared, self._y_squared = (np.einsum("ij,ij->i", a, a) for a in (self._x, self._y))
        # Of the sums of F products: F 2^-24 of the lengths; the rest covers the other roundings.
        lengths = float(self._x_squared.max()) + float(self._y_squared.max())
        self.margin = 2.0**-23 * (left.shape[1] + 16) * lengths

    def blocks(self) -> list[slice]:
        """Ranges of rows of the left set."""
        n_rows = max(1, DISTANCES_AT_ONCE // len(self._y))
        return [slice(start, min(start + n_rows, len(self._x))) for start in range(0, len(self._x), n_rows)]

    def approximate(self, rows: slice) -> np.ndarray:
        """Squared distances (R, M), float32, no more than the margin off."""
        sqdist = self._x[rows] @ self._y.T
        sqdist *= -2
        sqdist += self._x_squared[rows, None]
        sqdist += self._y_squared
        return sqdist

    def exact(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Squared distances of pairs, float64."""
        exact = np.empty(len(row))
        step = max(1, DISTANCES_AT_ONCE // 8 // self._left.shape[1])
        for start in range(0, len(row), step):
            some = slice(start, start + step)
            difference = self._left[row[some]].astype(np.float64) - self._right[column[some]]
            exact[some] = np.einsum("ij,ij->i", difference, difference)
        return exact
