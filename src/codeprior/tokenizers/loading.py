"""A tokenizer's folder: `config.json` and `model.safetensors`, written, checked and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codeprior.artifact import read_json, read_manifest, write_json
from codeprior.codebook import Codebook
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.tensors import load_strictly, on_meta, read_tensors
from codeprior.tokenizers.gigatok import GigaTok, GigaTokConfig, GigaTokTokenizer
from codeprior.tokenizers.protocol import Tokenizer
from codeprior.tokenizers.vqgan import VQGAN, VQGANConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, eq=False)
class VQGANTokenizer:
    """A VQGAN with the size of its images and the digest of its folder; see `Tokenizer`."""

    model: VQGAN
    image_size: int
    digest: str

    @property
    def downsample(self) -> int:
        """Pixels a token, along each side."""
        return self.model.config.downsample

    @cached_property
    def codebook(self) -> Codebook:
        """The stored vectors, compared on the unit sphere."""
        return Codebook(self.model.quantize.embedding.weight.detach().cpu().numpy(), normalize=True)

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> codes int64 (B, T)."""
        if images.shape[2] % self.downsample or images.shape[3] % self.downsample:
            raise InputError(f"image size must be a multiple of {self.downsample}, got {tuple(images.shape[2:])}")
        return self.model.encode(images).flatten(1)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Codes (B, T) on a grid of (h, w) -> images (B, 3, H, W), not clamped."""
        return self.model.decode(codes.unflatten(1, grid))


def load_tokenizer(folder: Path | str, device: torch.device | str = "cpu") -> Tokenizer:
    """Open a tokenizer's folder.

    Raises
    ------
    InputError
        If the folder is absent, unfinished, damaged, or its weights do not fit its configuration.
    """
    manifest = read_manifest(folder, "tokenizer")
    with on_meta():  # the file's tensors become the model's; nothing is initialised for nothing
        tokenizer = _build(read_json(manifest.path(CONFIG)), manifest.path(CONFIG), manifest.digest)
    load_weights(tokenizer.model, manifest.path(WEIGHTS))
    target = resolve_device(device) if isinstance(device, str) else device
    tokenizer.model.eval().requires_grad_(False).to(target)
    if target.type == "cpu":  # convolutions of large images take two thirds of the time in this order of memory
        tokenizer.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tokenizer


def _build(record: dict[str, Any], path: Path, digest: str) -> VQGANTokenizer | GigaTokTokenizer:
    family = record.pop("family", "vqgan")
    if family == "vqgan":
        image_size = int(record.pop("image_size", 0))
        names = {field.name for field in fields(VQGANConfig)}
        if not image_size or set(record) != names:
            raise InputError(f"{path} must hold image_size, {', '.join(sorted(names))}")
        config = VQGANConfig(**{**record, "multipliers": tuple(record["multipliers"])})
        return VQGANTokenizer(VQGAN(config), image_size, digest)
    if family == "gigatok":
        names = {field.name for field in fields(GigaTokConfig)}
        if set(record) != names:
            raise InputError(f"{path} must hold family, {', '.join(sorted(names))}")
        return GigaTokTokenizer(GigaTok(GigaTokConfig(**record)), digest)
    raise InputError(f"{path}: family must be vqgan or gigatok, got {family}")


def save_config(folder: Path, config: VQGANConfig | GigaTokConfig, image_size: int) -> None:
    """Write what `load_tokenizer` needs besides the weights."""
    family = {"family": "gigatok"} if isinstance(config, GigaTokConfig) else {}
    write_json(folder / CONFIG, {**family, **asdict(config), "image_size": image_size})


def load_weights(model: nn.Module, path: Path) -> None:
    """Read weights strictly: every name and shape must agree."""
    fit_weights(model, read_tensors(path)[0], str(path))


def fit_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Give a model these weights, which may replace tensors on the meta device; every name and shape must agree."""
    # `codebook_used`, LlamaGen's buffer of recently used codes, serves training alone.
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    weights = {
        name: tensor.to(dtypes.get(name, tensor.dtype))
        for name, tensor in weights.items()
        if name != "quantize.codebook_used"
    }
    load_strictly(model, weights, source, assign=True)
