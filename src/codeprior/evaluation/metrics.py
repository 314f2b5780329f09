"""Scores of images: PSNR and SSIM against an original, Inception Score and class consistency from probabilities."""

from __future__ import annotations

import numpy as np

from codeprior.errors import InputError

ROUNDING_MSE = 1 / 12  # of a value rounded to an integer; the least error that uint8 images can be said to have
SSIM_WINDOW = 7  # scikit-image's default
LLAMAGEN_RANGE = 510  # twice that of pixels: LlamaGen passes data_range=2.0 for images in [0, 1]


def psnr_db(originals: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, in dB.

    Parameters
    ----------
    originals, images : ndarray of shape (B, H, W, C), uint8

    Returns
    -------
    ndarray of shape (B,), float64
        10 log10(255^2 / MSE), as scikit-image. Differs in that an error below that of rounding counts as rounding's:
        equal images score 58.9 dB, not infinity, so that a mean stays a number.

    Raises
    ------
    InputError
        If the arrays are not uint8 images of equal shape.
    """
    require_images(originals, images)
    squared = (originals.astype(np.float64) - images) ** 2
    return 10 * np.log10(255**2 / np.maximum(squared.mean(axis=(1, 2, 3)), ROUNDING_MSE))


def ssim(originals: np.ndarray, images: np.ndarray, data_range: float = 255) -> np.ndarray:
    """Structural similarity of each image: scikit-image's, with its 7 x 7 uniform window.

    Parameters
    ----------
    originals, images : ndarray of shape (B, H, W, C), uint8
        H and W at least 7.
    data_range : float
        Of the pixels: 255. LlamaGen passes 2 for images in [0, 1], twice their range, which is 510 here: its scores are
        higher and compare with such scores alone.

    Returns
    -------
    ndarray of shape (B,), float64
        At most 1.

    Raises
    ------
    InputError
        If the arrays are not uint8 images of equal shape, or smaller than the window.

    Notes
    -----
    The images are put below each other and go through scikit-image as one. An image's score is the mean over the
    windows that lie inside it, and these see no neighbour: the result is that of a loop over the images, but faster.

    References
    ----------
    Wang et al. 2004, Eq. 13; scikit-image's `structural_similarity`.
    """
    from skimage.metrics import structural_similarity

    require_images(originals, images)
    n_images, height, width, channels = originals.shape
    if min(height, width) < SSIM_WINDOW:
        raise InputError(f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {height} x {width}")
    if n_images == 0:
        return np.empty(0)
    tall = [array.reshape(n_images * height, width, channels) for array in (originals, images)]
    _, full = structural_similarity(*tall, data_range=data_range, channel_axis=-1, win_size=SSIM_WINDOW, full=True)
    margin = SSIM_WINDOW // 2
    inside = full.reshape(originals.shape)[:, margin : height - margin, margin : width - margin]
    return inside.astype(np.float64).mean(axis=(1, 2, 3))


def inception_score(probabilities: np.ndarray, split_size: int | None = None) -> float:
    """Inception Score: exp of the mean KL divergence of each image's class distribution from their mean.

    Parameters
    ----------
    probabilities : ndarray of shape (N, C)
        Rows sum to 1.
    split_size : int, optional
        The mean of the scores of consecutive runs of so many images (a rest is a run too): 5,000 in ADM's evaluator.
        That depends on the order of the images, and is wrong where it follows their classes: a run then holds few.

    Returns
    -------
    float
        Between 1 and C. Without splits it is over all N at once, hence independent of the order.

    References
    ----------
    Salimans et al. 2016, arXiv:1606.03498, Sec. 4.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or len(probabilities) == 0:
        raise InputError(f"an Inception Score needs a row of probabilities an image, got {probabilities.shape}")
    size = split_size or len(probabilities)
    starts = range(0, len(probabilities), size)
    return float(np.mean([_score_of(probabilities[start : start + size]) for start in starts]))


def _score_of(probabilities: np.ndarray) -> float:
    """exp(H(mean of p) - mean of H(p)), H the entropy."""
    entropies = [_entropies(probabilities[start : start + 4096]) for start in range(0, len(probabilities), 4096)]
    marginal = probabilities.mean(axis=0, dtype=np.float64)
    return float(np.exp(_entropies(marginal[None])[0] - np.concatenate(entropies).mean()))


def _entropies(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats of each row; 0 log 0 is 0."""
    p = probabilities.astype(np.float64)
    return -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=1)


def class_consistency(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images that are taken for the class they were made for; for real images the accuracy."""
    return float((np.argmax(probabilities, axis=1) == labels).mean())


def require_images(originals: np.ndarray, images: np.ndarray) -> None:
    """Refuse what are not two batches of equal uint8 images."""
    for array in (originals, images):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape != originals.shape:
            raise InputError(
                f"need two batches of equal uint8 images (B, H, W, C), got {originals.dtype} {originals.shape} and "
                f"{images.dtype} {images.shape}"
            )
