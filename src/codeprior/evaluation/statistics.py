"""Statistics of features, and the Fréchet distance between them, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codeprior.errors import InputError

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean (F,) and covariance (F, F) of features, float64: all that a Fréchet distance asks of a set of images."""

    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray | None = None
    """R (F, N) with R R' = covariance, where that is known: of N images, fewer than features."""

    @classmethod
    def of(cls, features: np.ndarray) -> Gaussian:
        """The one fitted to features (N, F), as ADM's evaluator fits it."""
        mean, covariance = mean_and_covariance(features)
        if len(features) > len(mean):
            return cls(mean, covariance)
        return cls(mean, covariance, (features - mean).T / np.sqrt(len(features) - 1))

    def distance(self, other: Gaussian) -> float:
        """Squared Fréchet distance, see `gaussian_distance`."""
        a, b = (other, self) if other.root is not None else (self, other)
        return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance, a.root)


def mean_and_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance of feature vectors (`np.cov`, ddof 1), in float64.

    Parameters
    ----------
    features : ndarray of shape (N, F)
        One row an image; N at least 2. May be mapped from disk: some thousand rows at a time are in memory.

    Returns
    -------
    mean : ndarray of shape (F,), float64
    covariance : ndarray of shape (F, F), float64

    Raises
    ------
    InputError
        If there are fewer than two rows, or one of the numbers is not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"a covariance needs a matrix of at least 2 images' features, got {features.shape}")
    mean = features.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise InputError("the features are not finite; are the images?")
    scatter = np.zeros((features.shape[1], features.shape[1]))
    for start in range(0, len(features), _ROWS_AT_ONCE):
        centred = features[start : start + _ROWS_AT_ONCE] - mean
        scatter += centred.T @ centred
    return mean, scatter / (len(features) - 1)


def gaussian_distance(
    mean_a: np.ndarray,
    cov_a: np.ndarray,
    mean_b: np.ndarray,
    cov_b: np.ndarray,
    root_a: np.ndarray | None = None,
) -> float:
    """Squared Fréchet (2-Wasserstein) distance between two Gaussians.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)). The trace of the root is the sum of the roots of
    the eigenvalues of cov_a cov_b, which for cov_a = R R' are those of the symmetric R' cov_b R: several times faster
    than an eigenproblem, or a matrix root, that is not symmetric. R is Cholesky's unless one is given.

    References
    ----------
    Dowson and Landau 1982, Eq. 4; as FID: Heusel et al. 2017, arXiv:1706.08500, Eq. 6.
    """
    root = _root(cov_a) if root_a is None else root_a
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ cov_b @ root), 0)).sum()
    difference = mean_a - mean_b
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * roots)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R R' = covariance: Cholesky's, or, where that has no full rank, from the eigenvectors."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.maximum(values, 0))


def kernel_distance(
    features_a: np.ndarray,
    features_b: np.ndarray,
    generator: np.random.Generator,
    n_subsets: int = 100,
    subset_size: int = 1000,
) -> tuple[float, float]:
    """Kernel distance: the unbiased squared MMD with the kernel (x y / F + 1)^3, over random subsets.

    Parameters
    ----------
    features_a, features_b : ndarray of shape (N, F) and (M, F)
    generator : numpy Generator
        Draws the subsets, without replacement.
    n_subsets, subset_size : int
        The size is cut to the smaller set.

    Returns
    -------
    mean, sd : float
        Over the subsets. Unlike the Fréchet distance it has no bias from few images; it can be negative.

    References
    ----------
    As KID: Bińkowski et al. 2018, arXiv:1801.01401, Sec. 4.
    """
    size = min(subset_size, len(features_a), len(features_b))
    if size < 2:
        raise InputError(f"a kernel distance needs 2 images or more a side, got {len(features_a)}, {len(features_b)}")

    def draw(features: np.ndarray) -> np.ndarray:
        return features[generator.choice(len(features), size, replace=False)].astype(np.float64)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
        within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y))) / (size * (size - 1))
        return float(within - 2 * kernel(x, y).mean())

    values = [squared_mmd(draw(features_a), draw(features_b)) for _ in range(n_subsets)]
    return float(np.mean(values)), float(np.std(values))


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features.

    Parameters
    ----------
    features_a, features_b : ndarray of shape (N, F) and (M, F)

    Returns
    -------
    float
        0 for equal sets. Biased: two samples of one distribution of finite size score above 0, by about
        O(F / N + F / M), so only scores with equal N, M and features compare (Chong and Forsyth 2020,
        arXiv:1911.07023).

    Raises
    ------
    InputError
        As `mean_and_covariance`.
    """
    return Gaussian.of(features_a).distance(Gaussian.of(features_b))


def bootstrap_sd(
    features: np.ndarray,
    reference: np.ndarray | Gaussian,
    generator: np.random.Generator,
    n_resamples: int = 20,
) -> float:
    """Standard deviation of the Fréchet distance when both sets are drawn anew, with replacement, from themselves.

    A reference of which the statistics alone are known stays as it is. It tells how much of a difference the choice of
    images explains; not that of another training seed, which is larger.
    """

    def drawn_anew(features: np.ndarray) -> Gaussian:
        return Gaussian.of(features[generator.integers(len(features), size=len(features))])

    scores = []
    for _ in range(n_resamples):
        other = reference if isinstance(reference, Gaussian) else drawn_anew(reference)
        scores.append(drawn_anew(features).distance(other))
    return float(np.std(scores, ddof=1))
