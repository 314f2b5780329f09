"""Settings of the verbs that score images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from codeprior.config.base import NOT_IDENTITY, ImagesConfig, MakeConfig, Views, require_positive


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
class EvaluateConfig(MakeConfig):
    """Score generated images against real ones."""

    samples: Path = field(metadata=NOT_IDENTITY)
    """Samples folder (from sample), or an .npz with arr_0 (uint8 NHWC) and, for consistency, arr_1 (labels)."""
    reference: str = field(metadata=NOT_IDENTITY)
    """Real images, as --data elsewhere: digits:heldout, a folder, a file."""
    features: Path = field(metadata=NOT_IDENTITY)
    """Classifier folder (from train-classifier). Scores carry its name: they are not FID."""
    baseline: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Other real images (say those trained on) to score in the samples' place: what perfect samples would get.
    Default: one half of the reference against the other, which is too pessimistic a bar where images are few."""
    batch_size: int = field(default=256, metadata=NOT_IDENTITY)
    """Images a forward pass."""
