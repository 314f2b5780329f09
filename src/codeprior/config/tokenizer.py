"""Settings of the verbs between images and codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from codeprior.config.base import (
    NOT_IDENTITY,
    ImagesConfig,
    MakeConfig,
    StoredViews,
    VerbConfig,
    Views,
    require,
    require_positive,
)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(ImagesConfig, MakeConfig):
    """Train a VQ tokenizer on images."""

    tokenizer: str = "VQ-4-tiny"
    """Architecture, by its name in the presets table."""
    image_size: int = 16
    """Side of the square training images, pixels."""
    codebook_size: int = 256
    """Number of codes."""
    codebook_dim: int = 8
    """Width of a code vector."""
    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW, decayed by a cosine."""
    warmup: int = 25
    """Steps of linear warm-up; without it the encoder's outputs collapse to a few codes."""
    unquantized: float = 0.0
    """Share of the steps, at the start, that train a plain autoencoder, whose outputs then become the first codes; a
    few percent spread the codes over more directions, which helped photographs and not digits."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    edge_weight: float = 0.05
    """Weight of the L1 loss on image gradients."""
    restart_every: int = 25
    """Steps between restarts of dead codes; 0 for none."""
    restart_until: float = 0.7
    """Share of the steps after which dead codes are left alone."""
    views: Views = "shift"
    """Augmentation: a random one of these views of each image."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast over float32 weights; auto takes it where the device computes in it."""
    checkpoint_every: int = field(default=100, metadata=NOT_IDENTITY)
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "image_size", "codebook_size", "codebook_dim", "steps", "batch_size", "lr")
        require_positive(self, "checkpoint_every")
        require(self.warmup >= 0, f"warmup must be 0 or more, got {self.warmup}")
        require(0 <= self.unquantized < 1, f"unquantized must be a share from 0 to below 1, got {self.unquantized}")
        require(self.restart_every >= 0, f"restart_every must be 0 (never) or more, got {self.restart_every}")
        require(
            0 <= self.restart_until <= 1, f"restart_until must be a share between 0 and 1, got {self.restart_until}"
        )


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(ImagesConfig, MakeConfig):
    """Encode images into a packed store of codes."""

    tokenizer: Path = field(metadata=NOT_IDENTITY)
    """Tokenizer folder, hf:owner/name, or a tokenizer of your own: package.module:function or file.py:function."""
    image_size: int | None = None
    """Side of the square images, pixels; default: the size that the tokenizer was trained at."""
    views: StoredViews = "centre"
    """Views of each image to store: centre, flip (centre and its mirror image), shift (centre and four shifts),
    ten-crop-1.1 and ten-crop-1.05 (ten crops of a centre square 1.1 or 1.05 times the size), ten-crop-1.1+1.05 (both,
    20 views)."""
    batch_size: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Views a forward pass; default: 1 of 256x256 on a CPU, 128 on a GPU, and accordingly for other sizes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size is None or self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class ImportCodesConfig(MakeConfig):
    """Pack codes that LlamaGen, IAR, GigaTok or RAR wrote into a store."""

    sources: Positional[tuple[Path, ...]] = field(metadata=NOT_IDENTITY)
    """The folder that holds `<name>_codes` and `<name>_labels`, or RAR's .jsonl file. Two, in the order of the ranges,
    for ten-crop-1.1+1.05, or one that holds all views."""
    tokenizer: Path = field(metadata=NOT_IDENTITY)
    """Folder of the tokenizer that made the codes: signs the store, and gives the range of the codes."""
    views: StoredViews
    """Which views of each image they are; `verify-codes` tells whether that is true."""
    image_size: int | None = None
    """Side of the square images, pixels; default: the size that the tokenizer was trained at."""
    n_images: int | None = None
    """Images to take, from the first; default: all. LlamaGen's distributed extraction pads its files to a multiple of
    the number of GPUs: ImageNet's training images are 1281167."""
    class_names: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """The image folder, whose class folders' names are taken, or a text file, a name a line; default: numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.sources), "give the codes' folder or .jsonl file")
        require(self.n_images is None or self.n_images > 0, f"n_images must be positive, got {self.n_images}")


@dataclass(frozen=True, kw_only=True)
class ExportCodesConfig(MakeConfig):
    """Write a store of codes as LlamaGen, GigaTok or RAR read them."""

    codes: Positional[Path] = field(metadata=NOT_IDENTITY)
    """Folder of the store."""
    layout: Literal["llamagen", "gigatok", "rar"]
    """llamagen (IAR too): a file an image, (1, A, T) int64; gigatok: (A, T); rar: one .jsonl file, a line a view."""
    name: str = "imagenet"
    """What LlamaGen's and GigaTok's folders begin with: <name><image size>_codes."""


@dataclass(frozen=True, kw_only=True)
class VerifyCodesConfig(ImagesConfig, VerbConfig):
    """Encode a sample of a store's images again and compare, before anybody trains on it."""

    codes: Positional[Path]
    """Folder of the store."""
    tokenizer: Path
    """Folder of the tokenizer that is said to have made it."""
    n_images: int = 64
    """Images to encode again, drawn by the seed."""
    batch_size: int = 16
    """Views a forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n_images", "batch_size")
