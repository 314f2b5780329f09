"""Settings of the verbs that score images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from codeprior.config.base import NOT_IDENTITY, ImagesConfig, MakeConfig, Views, require, require_positive


@dataclass(frozen=True, kw_only=True)
class TrainClassifierConfig(ImagesConfig, MakeConfig):
    """Train a small classifier on images, to judge generated ones of the same classes by."""

    image_size: int = 16
    """Side of the square images, pixels."""
    heldout: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Held-out images, for its accuracy."""
    steps: int = 300
    """Optimizer steps."""
    batch_size: int = 128
    """Images a step."""
    lr: float = 5e-3
    """Peak learning rate of AdamW, decayed by a cosine."""
    width: int = 16
    """Channels of the first layer."""
    views: Views = "shift"
    """Augmentation: a random one of these views of each image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "image_size", "steps", "batch_size", "lr", "width")


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Where published weights are."""

    inception_weights: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """pytorch-fid's or torch-fidelity's weights file; default: CODEPRIOR_WEIGHTS (a folder), then torch hub's cache."""
    download: bool = field(default=False, metadata=NOT_IDENTITY)
    """Allow published weights that are not at hand to be downloaded into torch hub's cache, their hash checked."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(WeightsConfig):
    """Which feature network judges."""

    features: str = field(default="inception", metadata=NOT_IDENTITY)
    """inception (FID's, whose weights are looked for where other tools keep them), a classifier folder (from
    train-classifier), or module:function (or file.py:function), a Python function that makes a network. Scores of
    another network than the published Inception carry its name and are not called FID."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(NetworkConfig, MakeConfig):
    """Score generated images against real ones."""

    samples: Path = field(metadata=NOT_IDENTITY)
    """Samples folder (from sample), an .npz with arr_0 (uint8 NHWC) and perhaps arr_1 (labels), a folder of images, or
    features made before (.npy, or .npz with features)."""
    reference: str = field(metadata=NOT_IDENTITY)
    """A reference batch of ADM (.npz), a folder from reference, statistics (.npz with mu, sigma), features, or real
    images, as --data elsewhere: digits:heldout, a folder, a file."""
    task: Literal["generation", "reconstruction"] = "generation"
    """What the samples are: it decides on names (gFID, rFID) and on which references are warned of."""
    baseline: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Other real images (say those trained on) to score in the samples' place: what perfect samples would get.
    Default: one half of the reference's images against the other, which is too pessimistic a bar where images are few;
    nothing where the reference comes with statistics."""
    distances: Literal["exact", "float16"] = "exact"
    """Of precision and recall; float16 is as ADM's evaluator rounds them: slightly higher scores."""
    split_size: int = 5000
    """Images of a run of Inception Score, as ADM's evaluator has it."""
    n_resamples: int | None = None
    """Bootstrap draws for the spread of a Fréchet distance; 0 for none. Default: 20 up to 512 features, else 0."""
    save_features: bool = False
    """Keep the samples' features (features.npz), to evaluate them again without the network."""
    write_txt: bool = field(default=False, metadata=NOT_IDENTITY)
    """Also write the scores beside the samples, <samples>.txt, in the words of ADM's evaluator."""
    batch_size: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Images a forward pass; default: by their size and the device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "split_size")
        require(self.batch_size is None or self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}")
        enough = self.n_resamples is None or self.n_resamples == 0 or self.n_resamples > 1
        require(enough, f"n_resamples must be 0, or 2 or more, got {self.n_resamples}")


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(NetworkConfig, ImagesConfig, MakeConfig):
    """Compute what images are judged by, once: statistics and some features of real images."""

    purpose: Literal["generation", "reconstruction"] = "generation"
    """What is to be judged: generated images (by the training images) or reconstructions (by their originals)."""
    image_size: int = 256
    """Side of the squares that are cut from the images, pixels; an .npz keeps its own."""
    n_kept: int = 10000
    """Images kept for precision and recall, drawn by the seed: published ones have 10,000."""
    batch_size: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Images a forward pass; default: by their size and the device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "image_size", "n_kept")
        require(self.batch_size is None or self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(MakeConfig):
    """Measure how likely held-out codes are to a transformer, in nats per token."""

    checkpoint: Path = field(metadata=NOT_IDENTITY)
    """Checkpoint folder (from train)."""
    codes: Path = field(metadata=NOT_IDENTITY)
    """Folder of the held-out code store (from encode)."""
    refine: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Checkpoint of --objective refine, to choose the tokens of a model of clusters."""
    ema: bool = False
    """Measure the weights averaged over the steps of training, where it kept them (--ema-decay)."""
    views: Literal["first", "all"] = "first"
    """Which views of each image: the first is the centre square."""
    n_images: int | None = None
    """Images to measure, evenly spaced; default: all."""
    batch_size: int = 64
    """Views a forward pass, and at least one image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "batch_size")
        require(self.n_images is None or self.n_images > 0, f"n_images must be positive, got {self.n_images}")


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(WeightsConfig, ImagesConfig, MakeConfig):
    """Encode, decode and score: reconstructions as they are, and with each token a random one of its cluster."""

    tokenizer: Path = field(metadata=NOT_IDENTITY)
    """Tokenizer: a folder, hf:owner/name, or one of your own, package.module:function."""
    priors: tuple[Path, ...] = field(default=(), metadata=NOT_IDENTITY)
    """Priors to compare (the papers' replacement test); no replacement is always scored too."""
    features: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Feature network for a Fréchet distance: inception, a classifier folder, or module:function, see evaluate.
    Default: none."""
    reference: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Statistics to measure it to (a folder from reference --purpose reconstruction, or an .npz with mu, sigma);
    default: those of the originals."""
    lpips: Literal["vgg", "alex"] | None = None
    """Also LPIPS by this network, if its weights are at hand; default: no."""
    n_seeds: int = 3
    """Random replacements to average over; the spread is reported."""
    n_images: int = 2000
    """Images to score, at most; they pass through a batch at a time."""
    image_size: int | None = None
    """Side of the square images, pixels; default: the size that the tokenizer was trained at."""
    batch_size: int = field(default=64, metadata=NOT_IDENTITY)
    """Images a forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n_seeds", "n_images", "batch_size")
