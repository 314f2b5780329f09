"""Settings of the verbs between a trained generator and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from codeprior.config.base import NOT_IDENTITY, MakeConfig, require, require_positive


@dataclass(frozen=True, kw_only=True)
class SampleConfig(MakeConfig):
    """Sample images from a trained transformer."""

    checkpoint: Path = field(metadata=NOT_IDENTITY)
    """Checkpoint folder (from train or convert), or hf:owner/name."""
    tokenizer: Path = field(metadata=NOT_IDENTITY)
    """Tokenizer to decode with: a folder, hf:owner/name, or one of your own, package.module:function."""
    ema: bool = False
    """Sample from the weights averaged over the steps of training, where it kept them (--ema-decay)."""
    captions: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Captions for a text-conditional checkpoint, as a text encoder's features: a .npy (N, L, C), a folder of such, or
    a .npz with features (N, L, C), mask (N, L) and perhaps captions (N,), the texts."""
    n_images: int = 1000
    """Images to sample, in equal shares of the classes, or of the captions."""
    cfg_scale: float = 1.5
    """Classifier-free guidance: uncond + s (cond - uncond); 1 is none."""
    cfg_interval: int = -1
    """Guidance ends after this many tokens past the first; -1 never (LlamaGen's --cfg-interval counts alike)."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int = 0
    """Keep the k likeliest (and ties); 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest that together reach this probability; 1 keeps all."""
    pick: Literal["uniform", "usage"] = "uniform"
    """How a token of the predicted cluster is picked."""
    refine: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Checkpoint of --objective refine, which chooses the tokens of the predicted clusters, in place of --pick."""
    refine_temperature: float = 1.0
    """Its logits are divided by it; 0 takes the likeliest token."""
    batch_size: int = field(default=250, metadata=NOT_IDENTITY)
    """Images a forward pass; results do not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n_images", "batch_size", "temperature", "cfg_scale")
        require(self.refine_temperature >= 0, f"refine_temperature must be 0 or more, got {self.refine_temperature}")
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}")
        require(self.top_k >= 0, f"top_k must be 0 (keep all) or more, got {self.top_k}")
