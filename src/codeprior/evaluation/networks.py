"""The feature network that a setting names: Inception, a classifier of ours, or anybody's, by its Python entry."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from codeprior.artifact import digest_bytes
from codeprior.errors import InputError
from codeprior.evaluation.features import FeatureNetwork, require_uint8
from codeprior.evaluation.inception import InceptionFeatures
from codeprior.evaluation.pretrained import INCEPTION, find_weights
from codeprior.evaluation.small_cnn import load_features

INCEPTION_NAME = "inception"


def load_network(
    features: str, device: torch.device, *, inception_weights: Path | None = None, download: bool = False
) -> FeatureNetwork:
    """The feature network of a setting.

    Parameters
    ----------
    features : str
        "inception", a classifier folder (from `train-classifier`), or "module:factory" or "file.py:factory".
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
    if Path(features).is_dir():
        return load_features(Path(features), device)
    if ":" in features:
        return OwnFeatures(features, device)
    raise InputError(
        f"no feature network at {features}: give {INCEPTION_NAME}, a classifier folder (from train-classifier), or "
        "module:factory, a Python function that makes one"
    )


class OwnFeatures:
    """A network that a Python function makes.

    The function, called without arguments, gives either an object whose `features(images)` maps uint8 (B, H, W, 3) to
    (B, F), and which may have a `name`, a `digest`, `n_classes` and `probabilities(features)`; or a torch Module, or
    any other callable, that maps a uint8 tensor (B, 3, H, W) to (B, F), as torchmetrics' and torch-fidelity's do.
    """

    def __init__(self, entry: str, device: torch.device) -> None:
        factory = _resolve(entry)
        self._network: Any = factory()
        if isinstance(self._network, torch.nn.Module):
            self._network = self._network.to(device).eval()
        elif not callable(self._network) and not hasattr(self._network, "features"):
            raise InputError(f"{entry} gave a {type(self._network).__name__}, which is neither callable nor features()")
        self._device = device
        self.name: str = getattr(self._network, "name", entry.rpartition(":")[2])
        self.digest: str = getattr(self._network, "digest", None) or _digest(entry, factory)
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


def _resolve(entry: str) -> Callable[[], Any]:
    place, _, name = entry.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        factory = getattr(module, name)
    except (ImportError, AttributeError, FileNotFoundError, ValueError) as error:
        raise InputError(f"cannot take {name or 'a function'} from {place or 'nothing'}: {error}") from error
    if not callable(factory):
        raise InputError(f"{entry} is a {type(factory).__name__}, not a function that makes a network")
    made: Callable[[], Any] = factory
    return made


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as `import` does, for classes that look themselves up
    spec.loader.exec_module(module)
    return module


def _digest(entry: str, factory: Callable[[], Any]) -> str:
    """Of the code: the weights of somebody else's network are unknown here."""
    try:
        source = Path(inspect.getfile(factory)).read_bytes()
    except (TypeError, OSError):
        source = b""
    return digest_bytes(entry.encode(), source)
