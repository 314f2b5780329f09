"""The small classifier that we train ourselves, as a feature network: a judge of images of one's own classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from codeprior.artifact import read_json, read_manifest, write_json
from codeprior.evaluation.features import require_uint8
from codeprior.pixels import to_tensor
from codeprior.tensors import load_strictly, read_tensors, save_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_SMALLEST_MAP = 4  # pixels a side at which the classifier stops halving


@dataclass(frozen=True)
class SmallCnnConfig:
    """Shape of a `SmallCnn`, and what it was trained on."""

    name: str
    """Name of the data and "-cnn"."""
    image_size: int
    """Side of the square images, pixels."""
    width: int
    """Channels of the first layer."""
    class_names: tuple[str, ...]
    """Name of each class, by label."""


class SmallCnn(nn.Module):
    """A small convolutional classifier whose pooled last layer serves as features.

    Two 3 x 3 convolutions a level, batch-normalised, the second of which halves the image and doubles the channels (up
    to eight times the first layer's) until the map is 4 x 4; then the mean over the map (the F features), then a linear
    layer.
    """

    def __init__(self, config: SmallCnnConfig) -> None:
        super().__init__()
        self.config = config
        levels = max(1, round(np.log2(config.image_size / _SMALLEST_MAP)))
        widths = [config.width * min(2**level, 8) for level in range(levels + 1)]
        blocks = [_convolution(3, widths[0], stride=1)]
        for before, after in pairwise(widths):
            blocks += [_convolution(before, after, stride=2), _convolution(after, after, stride=1)]
        self.trunk = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], len(config.class_names))

    def pool(self, images: torch.Tensor) -> torch.Tensor:
        """Features: (B, 3, S, S) in [-1, 1] -> (B, F)."""
        return self.trunk(images).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits: (B, 3, S, S) in [-1, 1] -> (B, C)."""
        return self.head(self.pool(images))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights from `generator`: He's normal for convolutions, a zero head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def _convolution(n_in: int, n_out: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


class ClassifierFeatures:
    """A trained `SmallCnn` as a feature network."""

    def __init__(self, model: SmallCnn, digest: str, device: torch.device) -> None:
        self.name = model.config.name
        self.digest = digest
        self.image_size = model.config.image_size
        self.n_features: int | None = None
        self.input_size: int | None = None
        self.n_classes: int | None = len(model.config.class_names)
        self._model = model.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Features: (B, S, S, 3) uint8 -> (B, F) float32; images of another size are refused, not resized."""
        require_uint8(images, self.name, self.image_size)
        return self._model.pool(to_tensor(images, self._device)).cpu().numpy()

    @torch.inference_mode()
    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Class probabilities: (B, F) -> (B, C) float64."""
        logits = self._model.head(torch.from_numpy(np.array(features)).float().to(self._device))
        return logits.double().softmax(dim=1).cpu().numpy()


def save_classifier(model: SmallCnn, folder: Path) -> list[str]:
    """Write a classifier's weights and config; gives the names of the files."""
    save_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CONFIG, asdict(model.config))
    return [WEIGHTS, CONFIG]


def load_features(folder: Path | str, device: torch.device | None = None) -> ClassifierFeatures:
    """Load a classifier folder (from `train-classifier`) as a feature network.

    Raises
    ------
    InputError
        If the folder is not a classifier of ours, whole, or its weights do not fit its config.
    """
    manifest = read_manifest(folder, "classifier")
    record = read_json(manifest.path(CONFIG))
    model = SmallCnn(SmallCnnConfig(**{**record, "class_names": tuple(record["class_names"])}))
    load_strictly(model, read_tensors(manifest.path(WEIGHTS))[0], str(manifest.path(WEIGHTS)))
    return ClassifierFeatures(model, manifest.digest, device or torch.device("cpu"))
