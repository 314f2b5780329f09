"""Checks of code vectors, exact duplicates and the few distances that every clustering method shares."""

from __future__ import annotations

import numpy as np

from codeprior.errors import InputError

_WEIGHTS_WITHIN = 1e60  # of products of two weights and a distance none vanishes then


def check_vectors(vectors: np.ndarray, name: str = "codebook") -> np.ndarray:
    """Return `vectors` as a C-ordered (V, E) float32 or float64 array, or say what is wrong with it.

    float32 and float64 are kept as they are, without a copy when they are already C-ordered; every other real type
    becomes float64.

    Raises
    ------
    InputError
        If the array is not two-dimensional, is empty, is not real, or holds a NaN or an infinity.
    """
    try:
        vectors = np.asarray(vectors)
    except ValueError as error:
        raise InputError(f"{name} must be an array of shape (V, E), one row a code: its rows differ") from error
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise InputError(f"{name} must be an array of shape (V, E), one row a code, got shape {vectors.shape}")
    if vectors.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold real numbers, got dtype {vectors.dtype}")
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float64)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        count = int(np.count_nonzero(~finite))
        raise InputError(
            f"{name} has {count} non-finite vector{'s' if count > 1 else ''}, first at index {first}; "
            "is the checkpoint complete?"
        )
    return np.ascontiguousarray(vectors)


def check_weights(weights: np.ndarray | None, n_codes: int) -> np.ndarray | None:
    """Return positive and finite weights as float64 of shape (V,), by a power of two not above 1; None stays None."""
    if weights is None:
        return None
    weights = np.asarray(weights)
    if weights.shape != (n_codes,) or weights.dtype.kind not in "fiub":
        raise InputError(
            f"weights must be numbers of shape ({n_codes},), one for each code, got {weights.dtype} {weights.shape}"
        )
    weights = weights.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
    if wrong.size:
        raise InputError(
            f"weights must be positive and finite, got {weights[wrong[0]]} at index {wrong[0]} "
            f"({wrong.size} such); leave unused codes out and attach them afterwards"
        )
    if weights.max() / _WEIGHTS_WITHIN > weights.min():
        raise InputError(
            f"weights must lie within a factor of {_WEIGHTS_WITHIN:.0e}, got {weights.min()} and {weights.max()}"
        )
    return np.ldexp(weights, -np.frexp(weights.max())[1])


def is_whole(value: object, low: int, high: float = np.inf) -> bool:
    """Whether a value is a whole number within bounds; True and 2.0 are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(low <= value <= high)


def normalize_rows(vectors: np.ndarray) -> np.ndarray:
    """Divide each row by its Euclidean length; float32 stays float32, the length is taken in float64.

    Raises
    ------
    InputError
        If a row is zero: it has no direction. The message names the first.
    """
    vectors = check_vectors(vectors)
    # The largest entry is divided out first, so that squares neither overflow nor vanish.
    largest = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64)
    zero = np.flatnonzero(largest[:, 0] == 0)
    if zero.size:
        raise InputError(
            f"codebook has {zero.size} zero vector{'s' if zero.size > 1 else ''}, first at index {zero[0]}; "
            "a zero vector has no direction: leave it out, or do not normalize"
        )
    scaled = vectors / largest
    return (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).astype(vectors.dtype)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the (len(x), len(y)) float64 matrix of squared Euclidean distances, never negative.

    By the expansion |x|² + |y|² - 2xy: fast, with an absolute error near 1e-15 of the squared lengths. To decide an
    order between close neighbours, sum the squares of the differences instead.
    """
    x = np.asarray(x, dtype=np.float64)
    y = np.asarray(y, dtype=np.float64)
    sqdist = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None, :] - 2.0 * (x @ y.T)
    return np.maximum(sqdist, 0.0, out=sqdist)


def mean_distance(x: np.ndarray, y: np.ndarray, block: int = 1024) -> float:
    """Return the mean of |a - b| over all rows a of `x` and b of `y`: the paper's D of two clusters (DCPE, Eq. 2)."""
    total = 0.0
    for start in range(0, len(x), block):
        total += float(np.sqrt(squared_distances(x[start : start + block], y)).sum())
    return total / (len(x) * len(y))


def duplicate_groups(vectors: np.ndarray) -> np.ndarray:
    """Return for each row the index of the first row equal to it, as int64 of shape (V,); -0.0 equals 0.0."""
    rows = np.ascontiguousarray(vectors) + 0.0  # turns -0.0 into 0.0, so that equal rows have equal bytes
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    # A short hash first: sorting integers is far cheaper than sorting rows, and almost no rows share one.
    words = np.ascontiguousarray(rows).view(np.uint32).reshape(len(rows), -1)
    hashes = np.zeros(len(rows), dtype=np.uint64)
    for column in words.T:
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    first = np.arange(len(rows), dtype=np.int64)
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return first
    order = np.argsort(hashes, kind="stable")
    same_hash = hashes[order][1:] == hashes[order][:-1]
    # Only rows that share a hash with another are compared in full.
    shared = np.zeros(len(rows), dtype=bool)
    shared[order[1:][same_hash]] = True
    shared[order[:-1][same_hash]] = True
    candidates = np.flatnonzero(shared)
    _, first_of, inverse = np.unique(keys[candidates], return_index=True, return_inverse=True)
    first[candidates] = candidates[first_of[inverse.ravel()]]
    return first
