"""LPIPS: how different two images look to a network trained on other things, from the published weights' files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codeprior.errors import InputError
from codeprior.evaluation.metrics import require_images
from codeprior.evaluation.pretrained import ALEXNET, LPIPS_ALEX, LPIPS_VGG, VGG16, find_weights
from codeprior.pixels import to_tensor
from codeprior.weights import open_checkpoint

Net = Literal["vgg", "alex"]

# Convolutions between two taps, as (number in torchvision's `features`, stride, padding); a pool stands between stages
# (with None, the maps go on as they are). What is tapped is what each stage ends with.
_STAGES: dict[str, list[tuple[tuple[int, int] | None, list[tuple[int, int, int]]]]] = {
    "vgg": [
        (None, [(0, 1, 1), (2, 1, 1)]),
        ((2, 2), [(5, 1, 1), (7, 1, 1)]),
        ((2, 2), [(10, 1, 1), (12, 1, 1), (14, 1, 1)]),
        ((2, 2), [(17, 1, 1), (19, 1, 1), (21, 1, 1)]),
        ((2, 2), [(24, 1, 1), (26, 1, 1), (28, 1, 1)]),
    ],
    "alex": [
        (None, [(0, 4, 2)]),
        ((3, 2), [(3, 1, 2)]),
        ((3, 2), [(6, 1, 1)]),
        (None, [(8, 1, 1)]),
        (None, [(10, 1, 1)]),
    ],
}
_FILES = {"vgg": (VGG16, LPIPS_VGG), "alex": (ALEXNET, LPIPS_ALEX)}
_SHIFT = (-0.030, -0.088, -0.188)  # of ImageNet's colours, for images in [-1, 1]
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10


class Lpips:
    """LPIPS 0.1 by VGG-16 or AlexNet; `name` is how its scores are called.

    Parameters
    ----------
    net : {"vgg", "alex"}
        VGG-16 is what tokenizers are trained with (taming, LlamaGen); the authors compare images with AlexNet.
    device : device
    download : bool
        See `pretrained.find_weights`.

    Raises
    ------
    InputError
        If a file of weights is missing, damaged or another network's.

    References
    ----------
    Zhang et al. 2018, arXiv:1801.03924, Eq. 1.
    """

    def __init__(self, net: Net, device: torch.device, *, download: bool = False) -> None:
        self._stages = _STAGES[net]
        trunk, heads = found = [find_weights(published, download=download) for published in _FILES[net]]
        is_standard = all(file.is_published(published) for file, published in zip(found, _FILES[net], strict=True))
        self.name = f"lpips_{net}" if is_standard else f"lpips_{net}[other weights]"
        self.digests = {"lpips trunk": trunk.digest, "lpips weights": heads.digest}
        convolutions = [f"features.{number}" for _, stage in self._stages for number, _, _ in stage]
        names = [f"{name}.{part}" for name in convolutions for part in ("weight", "bias")]
        self._trunk = {name: tensor.to(device) for name, tensor in _read(trunk.path, names).items()}
        heads_of = _read(heads.path, [f"lin{number}.model.1.weight" for number in range(len(self._stages))])
        self._heads = [tensor.to(device) for tensor in heads_of.values()]
        self._shift, self._scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        self._device = device

    @torch.inference_mode()
    def distances(self, originals: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Of each image to its original, 0 if they are equal: two of (B, H, W, 3) uint8 -> (B,) float64."""
        require_images(originals, images)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            taps = zip(self._taps(originals), self._taps(images), strict=True)
            parts = [
                F.conv2d((a - b).square(), head).mean(dim=(1, 2, 3))
                for (a, b), head in zip(taps, self._heads, strict=True)
            ]
        return torch.stack(parts).sum(dim=0).double().cpu().numpy()

    def _taps(self, pixels: np.ndarray) -> Iterator[Tensor]:
        """The maps that each stage ends with, each position's channels of length 1."""
        maps = (to_tensor(pixels, self._device) - self._shift) / self._scale
        for pool, stage in self._stages:
            if pool is not None:
                maps = F.max_pool2d(maps, *pool)
            for number, stride, padding in stage:
                weight, bias = (self._trunk[f"features.{number}.{part}"] for part in ("weight", "bias"))
                maps = F.relu(F.conv2d(maps, weight, bias, stride, padding))
            yield maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + _EPS)


def _read(path: Path, names: list[str]) -> dict[str, Tensor]:
    """Some tensors of a file; what else it holds, as VGG-16's 400 MB of classifier, is not read."""
    scope = open_checkpoint(path).scopes[0]
    missing = [name for name in names if name not in scope.tensors]
    if missing:
        raise InputError(f"{path} is not what its name says: it has no {missing[0]}; remove it and fetch it again")
    return {name: torch.from_numpy(scope.read(name)) for name in names}
