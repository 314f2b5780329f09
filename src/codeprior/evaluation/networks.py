"""The feature network that a setting names: Inception, a classifier of ours, or anybody's, by its Python entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeprior.artifact import digest_bytes
from codeprior.errors import InputError
from codeprior.evaluation.features import FeatureNetwork, require_uint8
from codeprior.evaluation.inception import InceptionFeatures
from codeprior.evaluation.pretrained import INCEPTION, find_weights
from codeprior.evaluation.scores import Space
from codeprior.evaluation.small_cnn import load_features
from codeprior.hub import is_on_hub
from codeprior.own import call_own, is_own

INCEPTION_NAME = "inception"


def load_network(
    features: str, device: torch.device, *, inception_weights: Path | None = None, download: bool = False
) -> FeatureNetwork:
    """The feature network of a setting.

    Parameters
    ----------
    features : str
        "inception", a classifier folder (from `train-classifier`), or "module:function" or "file.py:function".
    device : device
    inception_weights, download
        See `pretrained.find_weights`.

    Raises
    ------
    InputError
        If there is no such network, or its weights are missing or damaged.
    """
    if features == INCEPTION_NAME:
        found = find_weights(INCEPTION, inception_weights, download=download)
        return InceptionFeatures(found.path, device, is_standard=found.is_published(INCEPTION))
    if is_own(features):
        return OwnFeatures(features, device)
    if Path(features).is_dir() or is_on_hub(features):
        return load_features(features, device)
    raise InputError(
        f"no feature network at {features}: give {INCEPTION_NAME}, a classifier folder (from train-classifier), or "
        "module:function, a Python function that makes one"
    )


def space_of(network: FeatureNetwork) -> Space:
    """The space of a network's features."""
    return Space(network.name, network.digest, getattr(network, "is_standard", False))


class OwnFeatures:
    """A network that a Python function makes.

    The function, called without arguments, gives either an object whose `features(images)` maps uint8 (B, H, W, 3) to
    (B, F), and which may have a `name`, a `digest`, `n_classes` and `probabilities(features)`; or a torch Module, or
    any other callable, that maps a uint8 tensor (B, 3, H, W) to (B, F), as torchmetrics' and torch-fidelity's do.
    """

    def __init__(self, entry: str, device: torch.device) -> None:
        self._network: Any = call_own(entry)
        if isinstance(self._network, torch.nn.Module):
            self._network = self._network.to(device).eval()
        elif not callable(self._network) and not hasattr(self._network, "features"):
            raise InputError(f"{entry} gave a {type(self._network).__name__}, which is neither callable nor features()")
        self._device = device
        self.name: str = getattr(self._network, "name", entry.rpartition(":")[2])
        self.digest: str = getattr(self._network, "digest", None) or _digest(entry)
        self.n_features: int | None = None
        self.input_size: int | None = None
        self.n_classes: int | None = getattr(self._network, "n_classes", None)

    @torch.inference_mode()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Features: (B, H, W, 3) uint8 -> (B, F) float32."""
        require_uint8(images, self.name)
        if hasattr(self._network, "features") and not isinstance(self._network, torch.nn.Module):
            made = self._network.features(images)
        else:
            pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device).permute(0, 3, 1, 2)
            made = self._network(pixels)
        rows = np.asarray(made.float().cpu() if isinstance(made, torch.Tensor) else made, dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(images):
            raise InputError(f"{self.name} must give a row of features an image, got {rows.shape} of {len(images)}")
        return rows

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """Class probabilities, if the network gives any: (B, F) -> (B, C)."""
        if not hasattr(self._network, "probabilities"):
            return None
        return np.asarray(self._network.probabilities(features))


def _digest(entry: str) -> str:
    """Of the entry and, where it is a file, its code: the weights of somebody else's network are unknown here."""
    path = Path(entry.rpartition(":")[0])
    return digest_bytes(entry.encode(), path.read_bytes() if path.is_file() else b"")
