"""The Inception network of 2015 by which FID, sFID, KID and Inception Score are defined, from others' weights file.

It is TensorFlow's, ported to PyTorch by pytorch-fid and torch-fidelity, whose file and names this reads. It differs
from torchvision's of the same name in its weights, in its 1,008 classes, and in what its pools average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codeprior.artifact import digest_file
from codeprior.errors import InputError
from codeprior.evaluation.features import require_uint8
from codeprior.weights import open_checkpoint

NAME = "inception-2015-12-05"
SIDE = 299
N_FEATURES = 2048  # of the last pool
N_SPATIAL = 17 * 17 * 7  # of the first seven channels of a branch of Mixed_6d
N_CLASSES = 1008
_NORM_EPS = 1e-3
_ROWS_AT_ONCE = 4096


class Conv(NamedTuple):
    """A convolution, batch-normalised, then rectified."""

    name: str
    n_out: int
    kernel: int | tuple[int, int]
    stride: int = 1
    pads: bool = True
    """So that the map keeps its size; with a stride of 2 none does."""


Step = Conv | tuple[Conv, Conv] | str
"""A convolution, two of them side by side, or a pool."""
Branches = list[list[Step]]


def _block_a(pooled: int) -> Branches:
    return [
        [Conv("branch1x1", 64, 1)],
        [Conv("branch5x5_1", 48, 1), Conv("branch5x5_2", 64, 5)],
        [Conv("branch3x3dbl_1", 64, 1), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3)],
        ["average", Conv("branch_pool", pooled, 1)],
    ]


def _block_c(inner: int) -> Branches:
    return [
        [Conv("branch1x1", 192, 1)],
        [Conv("branch7x7_1", inner, 1), Conv("branch7x7_2", inner, (1, 7)), Conv("branch7x7_3", 192, (7, 1))],
        [
            Conv("branch7x7dbl_1", inner, 1),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ],
        ["average", Conv("branch_pool", 192, 1)],
    ]


def _block_e(pool: str) -> Branches:
    return [
        [Conv("branch1x1", 320, 1)],
        [Conv("branch3x3_1", 384, 1), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))],
        [
            Conv("branch3x3dbl_1", 448, 1),
            Conv("branch3x3dbl_2", 384, 3),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ],
        [pool, Conv("branch_pool", 192, 1)],
    ]


BLOCKS: dict[str, Branches] = {
    "": [
        [
            Conv("Conv2d_1a_3x3", 32, 3, stride=2),  # 299 -> 149
            Conv("Conv2d_2a_3x3", 32, 3, pads=False),
            Conv("Conv2d_2b_3x3", 64, 3),
            "halve",  # 147 -> 73
            Conv("Conv2d_3b_1x1", 80, 1),
            Conv("Conv2d_4a_3x3", 192, 3, pads=False),
            "halve",  # 71 -> 35
        ]
    ],
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": [  # 35 -> 17
        [Conv("branch3x3", 384, 3, stride=2)],
        [Conv("branch3x3dbl_1", 64, 1), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3, stride=2)],
        ["halve"],
    ],
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": [  # 17 -> 8
        [Conv("branch3x3_1", 192, 1), Conv("branch3x3_2", 320, 3, stride=2)],
        [
            Conv("branch7x7x3_1", 192, 1),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, 3, stride=2),
        ],
        ["halve"],
    ],
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("largest"),  # the original's graph has it so, perhaps by mistake
}
"""The network, from pixels to the last maps; the first block is without a name."""

_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "halve": lambda maps: F.max_pool2d(maps, 3, stride=2),
    "largest": lambda maps: F.max_pool2d(maps, 3, stride=1, padding=1),
    # TensorFlow divides by the number of pixels that there are, not by nine.
    "average": lambda maps: F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False),
}


class Block(nn.Module):
    """Branches that all start from the same maps; `forward` gives what each ends with."""

    def __init__(self, n_in: int, branches: Branches) -> None:
        super().__init__()
        self.branches = branches
        self.n_out = 0
        for branch in branches:
            n_channels = n_in
            for step in branch:
                n_channels = self._add(n_channels, step)
            self.n_out += n_channels

    def _add(self, n_in: int, step: Step) -> int:
        if isinstance(step, str):
            return n_in
        if not isinstance(step, Conv):
            return sum(self._add(n_in, conv) for conv in step)
        height, width = step.kernel if isinstance(step.kernel, tuple) else (step.kernel, step.kernel)
        padding = (height // 2, width // 2) if step.pads and step.stride == 1 else 0
        self.add_module(step.name, nn.Conv2d(n_in, step.n_out, (height, width), step.stride, padding))
        return step.n_out

    def forward(self, maps: Tensor) -> list[Tensor]:
        ends = []
        for branch in self.branches:
            end = maps
            for step in branch:
                end = self._take(end, step)
            ends.append(end)
        return ends

    def _take(self, maps: Tensor, step: Step) -> Tensor:
        if isinstance(step, str):
            return _POOLS[step](maps)
        if not isinstance(step, Conv):
            return torch.cat([self._take(maps, conv) for conv in step], dim=1)
        return F.relu_(self.get_submodule(step.name)(maps))


class Inception(nn.Module):
    """The network with its batch normalisations folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict()
        n_channels = 3
        for name, branches in BLOCKS.items():
            block = Block(n_channels, branches)
            self.blocks[name or "stem"] = block
            n_channels = block.n_out
        self.fc = nn.Linear(N_FEATURES, N_CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features: (B, 3, H, W), values 0 to 255 -> the last pool (B, 2048), spatial (B, 2023).

        The spatial ones are the first seven channels of the first branch of Mixed_6d, positions first, as sFID's.
        """
        maps = (resize(pixels, SIDE) - 128) / 128
        spatial = maps
        for name, block in self.blocks.items():
            ends = block(maps)
            if name == "Mixed_6d":
                spatial = ends[0][:, :7].permute(0, 2, 3, 1).flatten(1)
            maps = torch.cat(ends, dim=1)
        return maps.mean(dim=(2, 3)), spatial

    def logits(self, features: Tensor) -> Tensor:
        """Logits without the bias, as Inception Score takes them: (B, 2048) -> (B, 1008)."""
        return F.linear(features, self.fc.weight)


def resize(images: Tensor, side: int) -> Tensor:
    """Bilinear as TensorFlow 1 has it: pixel i looks at i * size / side, without antialias; (B, C, H, W) float."""
    for dim in (3, 2):
        size = images.shape[dim]
        place = torch.arange(side, dtype=images.dtype, device=images.device) * (size / side)
        low = place.long()
        a, b = (images.index_select(dim, index) for index in (low, (low + 1).clamp_(max=size - 1)))
        share = (place - low).view(-1, *[1] * (3 - dim))
        images = a + (b - a) * share
    return images


def load_inception(path: Path) -> Inception:
    """Read the weights file of pytorch-fid or torch-fidelity.

    Raises
    ------
    InputError
        If the file is damaged, or is another network's.
    """
    with torch.device("meta"):
        model = Inception()
    tensors = _read(path)
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    try:
        folded = {name: _folded(tensors, name.removeprefix("blocks.").removeprefix("stem.")) for name in convolutions}
        state = {f"{name}.{part}": value for name, parts in folded.items() for part, value in parts.items()}
        model.load_state_dict({**state, "fc.weight": tensors["fc.weight"], "fc.bias": tensors["fc.bias"]}, assign=True)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(
            f"{path} is not the Inception of FID ({reason}); it must be pytorch-fid's or torch-fidelity's file of 2015"
        ) from None
    return model.eval().requires_grad_(False)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix in (".pb", ".pt"):
        raise InputError(
            f"{path} is a program for TensorFlow or TorchScript, which is not run here; give the weights as "
            "weights-inception-2015-12-05-6726825d.pth or pt_inception-2015-12-05-6726825d.pth"
        )
    scope = open_checkpoint(path).scopes[0]
    return {name: torch.from_numpy(scope.read(name)) for name in scope.tensors}


def _folded(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weight and bias of a convolution and the batch normalisation after it, as one: computed in float64."""
    kernel, scale, shift, mean, variance = (
        tensors[f"{name}.{part}"].double()
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    scale = scale / torch.sqrt(variance + _NORM_EPS)
    return {"weight": (kernel * scale[:, None, None, None]).float(), "bias": (shift - mean * scale).float()}


class InceptionFeatures:
    """Inception as a feature network; `is_standard` says whether its weights are the published ones."""

    def __init__(self, path: Path, device: torch.device, *, is_standard: bool) -> None:
        self.digest = digest_file(path)
        self.is_standard = is_standard
        self.name = NAME if is_standard else path.stem
        self.n_features: int | None = N_FEATURES
        self.input_size: int | None = SIDE
        self.n_classes: int | None = None  # its classes are not those of anybody's labels
        self._model = load_inception(path).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device

    @torch.inference_mode()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Features and, after them, spatial features: (B, H, W, 3) uint8 -> (B, 2048 + 2023) float32.

        Images of any size are scaled to 299. In float32 throughout: TF32 would move features by a thousandth.
        """
        require_uint8(images, self.name)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device).permute(0, 3, 1, 2).float()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat(self._model(pixels), dim=1).cpu().numpy()

    @torch.inference_mode()
    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Probabilities of its 1,008 classes: (N, 2048) -> (N, 1008) float32."""
        rows = [
            self._model.logits(torch.from_numpy(np.array(features[start : start + _ROWS_AT_ONCE])).to(self._device))
            for start in range(0, len(features), _ROWS_AT_ONCE)
        ]
        return torch.cat([logits.softmax(dim=1).cpu() for logits in rows]).numpy()
