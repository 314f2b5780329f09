"""Feature networks: images to the numbers that scores are computed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from codeprior.errors import InputError
from codeprior.progress import track


class FeatureNetwork(Protocol):
    """What scores need of a network.

    A row of an image is its `n_features` features, and after them what the network has besides (Inception: the spatial
    features of sFID).
    """

    name: str
    """Stands in every score, `FD[name]`, but for the published Inception's."""
    digest: str
    """Of its weights."""
    n_features: int | None
    """Columns of a row that are features; None for all."""
    n_classes: int | None
    """Classes whose numbers are those of the images' labels; None if its classes are others, or none."""

    input_size: int | None
    """Side that it scales images to; None if it takes them as they are."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """Rows of images: (B, H, W, 3) uint8 -> (B, W) float32."""

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """Class probabilities: (B, n_features) -> (B, C), rows sum to 1; None if it knows no classes."""


def require_uint8(images: np.ndarray, name: str, size: int | None = None) -> None:
    """Refuse what is not a batch of uint8 RGB images, of `size` pixels a side if given.

    Raises
    ------
    InputError
        Naming the network that was to judge them.
    """
    right = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
    if size is None and not right:
        raise InputError(f"{name} judges uint8 images (B, H, W, 3), got {images.dtype} {images.shape}")
    if size is not None and not (right and images.shape[1:3] == (size, size)):
        raise InputError(
            f"{name} judges uint8 images of {size} x {size} x 3, got {images.dtype} {images.shape[1:]}; "
            "train one at this size with `codeprior train-classifier --image-size`"
        )


def extract_features(
    network: FeatureNetwork,
    read: Callable[[np.ndarray], np.ndarray],
    indices: np.ndarray,
    batch_size: int,
    label: str = "judging images",
) -> np.ndarray:
    """Rows of images, of which a batch at a time is in memory.

    Parameters
    ----------
    network : FeatureNetwork
    read : callable
        Gives the images (B, H, W, 3) uint8 of an array of indices.
    indices : ndarray of shape (N,), integer
    batch_size : int
    label : str
        What the progress is called.

    Returns
    -------
    ndarray of shape (N, W), float32
    """
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return np.concatenate([network.features(read(batch)) for batch in track(batches, label)])
