"""Settings of the verbs between a trained generator and images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from codeprior.config.base import NOT_IDENTITY, MakeConfig, require, require_positive

GuidanceSchedule = Literal[
    "constant", "linear", "linear_re", "triangular", "rectangular", "step", "cosine", "power_cosine"
]
"""How the scale of guidance goes over the tokens of an image."""


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
    """Images to sample."""
    classes: tuple[str, ...] = ()
    """Classes to sample, by number or name, also with commas between: 207,360,387; default: all. The numbers of
    captions, where these are given."""
    class_order: Literal["balanced", "random"] = "balanced"
    """balanced: the classes take turns, in equal shares; random: each image's is drawn, as LlamaGen's script does."""
    prefix_images: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Images to continue, as --data elsewhere: the upper rows of their tokens are given. Their own classes unless
    --classes says otherwise."""
    prefix_rows: int = 1
    """Rows of tokens that are given of them."""
    cfg_scale: float = 1.5
    """Classifier-free guidance: uncond + s (cond - uncond); 1 is none."""
    cfg_schedule: GuidanceSchedule = "constant"
    """How the scale goes from the first token to the last: constant; GigaTok's linear, linear_re, triangular,
    rectangular, step and cosine; RAR's power_cosine."""
    cfg_window: tuple[float, float] = (0.18, 1.0)
    """Where guidance is on, in shares of the image, for step (which heeds the start alone) and rectangular."""
    cfg_power: float = 1.0
    """Exponent of power_cosine (RAR-B: 2.75)."""
    cfg_interval: int = -1
    """Guidance ends after this many tokens past the first; -1 never (LlamaGen's --cfg-interval counts alike)."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest."""
    top_k: int = 0
    """Keep the k likeliest (and ties); 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest that together reach this probability; 1 keeps all."""
    pick: Literal["uniform", "usage"] = "uniform"
    """How a token of the predicted cluster is picked."""
    pick_seed: int | None = None
    """Seed of the choice of tokens within clusters, picked or refined; default: --seed. Another one leaves the clusters
    as they were: what the choice alone changes."""
    refine: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Checkpoint of --objective refine, which chooses the tokens of the predicted clusters, in place of --pick."""
    refine_temperature: float = 1.0
    """Its logits are divided by it; 0 takes the likeliest token."""
    image_size_eval: int | None = None
    """Side that images are resized to (bicubic, before they are clamped, as LlamaGen's 384 to 256); default: none."""
    png: bool = field(default=False, metadata=NOT_IDENTITY)
    """Write the images as png/000000.png, ... too, numbered as the rows of the .npz; also of samples made before."""
    llamagen_name: bool = field(default=False, metadata=NOT_IDENTITY)
    """Give the .npz a second name, a link: that of LlamaGen's script, which tells model, sizes and settings."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the transformer's matrix products, over float32 weights and sums; auto is bf16 where the device computes in
    it."""
    compile: bool | None = field(default=None, metadata=NOT_IDENTITY)
    """Compile the step from token to token, and replay it as a CUDA graph; default: on CUDA, where it pays."""
    batch_size: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Images worked on at once; default: what suits the device. On a CPU no image depends on it in any bit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n_images", "cfg_scale", "cfg_power", "prefix_rows")
        for name in ("cfg_scale", "cfg_power", "temperature", "refine_temperature"):
            require(math.isfinite(getattr(self, name)), f"{name} must be finite, got {getattr(self, name)}")
        for name in ("batch_size", "image_size_eval"):
            require(getattr(self, name) is None or getattr(self, name) > 0, f"{name} must be positive")
        require(self.pick_seed is None or self.pick_seed >= 0, f"pick_seed must be 0 or more, got {self.pick_seed}")
        start, end = self.cfg_window
        require(0 <= start <= end <= 1, f"cfg_window must be two shares in order, 0 to 1, got {start} {end}")
        require(self.temperature >= 0, f"temperature must be 0 or more, got {self.temperature}")
        require(self.refine_temperature >= 0, f"refine_temperature must be 0 or more, got {self.refine_temperature}")
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}")
        require(self.top_k >= 0, f"top_k must be 0 (keep all) or more, got {self.top_k}")
        require(
            self.prefix_images is None or bool(self.classes) or self.class_order == "balanced",
            "images are continued in their own classes or in those of --classes; leave out --class-order random",
        )


@dataclass(frozen=True, kw_only=True)
class SweepConfig(MakeConfig):
    """Sample and score while settings vary: guidance scales, seeds, checkpoints, ..."""

    over: tuple[str, ...]
    """What varies, as name=value,value: cfg-scale=1,1.5,2 seed=0,1,2 checkpoint=runs/a,runs/b. Any settings of sample,
    in all combinations; values that were not there before may be added later."""
    sample: tuple[str, ...] = ()
    """The other settings of sample, as name=value: tokenizer=runs/tokenizer n-images=1000."""
    evaluate: tuple[str, ...] = ()
    """Settings of evaluate, as name=value: reference=digits:heldout features=runs/judge."""
    discard: bool = field(default=False, metadata=NOT_IDENTITY)
    """Remove the images of each point once they are scored: 50,000 of 256 x 256 are 10 GB."""
