"""Settings of the verbs between codes and a trained generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from codeprior.config.base import NOT_IDENTITY, MakeConfig, require, require_positive


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MakeConfig):
    """Train a class-conditional transformer on codes, with a prior or without."""

    codes: Path = field(metadata=NOT_IDENTITY)
    """Code store to train on."""
    heldout_codes: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Code store for the validation loss."""
    prior: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Prior, for every objective but token."""
    objective: Literal["token", "cluster", "iar", "factorised", "refine"] | None = None
    """What to predict: token; cluster (DCPE: clusters in place of tokens); iar (tokens, and a loss on their clusters);
    factorised (the cluster, then the token within it); refine (all tokens of an image whose clusters are given: the
    second stage after cluster). Default: cluster where --prior is given, else token."""
    iar_weight: float = 1.0
    """Weight of the cluster loss of iar, its lambda."""
    iar_form: Literal["logsumexp", "mean", "logmeanexp"] = "logsumexp"
    """How iar makes a cluster's logit of its tokens': logsumexp is the model's own probability; mean is the paper's."""
    refine_over: Literal["cluster", "vocabulary"] = "cluster"
    """What refine's probabilities are spread over: the members of the cluster that is given, or all codes (CTF)."""
    model: str = "tiny"
    """Size, by its name in the presets table: tiny, GPT-B, GPT-L, GPT-XL, ..."""
    n_layers: int | None = None
    """Blocks, where not as many as the model's name says; refine needs few (DCPE: 1 of GPT-B's)."""
    positions: Literal["rotary", "learned"] = "rotary"
    """rotary tells rows and columns, as in LlamaGen; learned goes with tokens that lie on no grid, as GigaTok's."""
    qk_norm: bool = False
    """Normalise queries and keys in each head, as GigaTok's --qk-norm."""
    steps: int = 700
    """Optimizer steps."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    warmup: int = 0
    """Steps of linear warm-up."""
    decay: float = 0.3
    """Share of the steps, at the end, over which the rate falls; 0 keeps it constant, 1 lets it fall from the start."""
    decay_form: Literal["linear", "cosine", "sqrt"] = "linear"
    """How it falls: linear, cosine, or sqrt (1 minus the root of the share done: GigaTok's warm-up, stable, decay)."""
    final_lr: float = 0.0
    """Rate that it falls to."""
    accumulate: int = field(default=1, metadata=NOT_IDENTITY)
    """Parts that a batch is worked off in, one after the other: memory of one part, gradients of all. With fewer
    processes and as many parts more, a run goes on as it was, to rounding."""
    ema_decay: float = 0.0
    """Keep also the weights averaged over steps with this decay (LlamaGen: 0.9999), for `sample --ema`; 0 does not."""
    weight_decay: float = 0.05
    """On matrices, embeddings included."""
    beta2: float = 0.95
    """Second momentum of AdamW."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    dropout: float = 0.1
    """Residual and feed-forward dropout; none where there is drop path (LlamaGen)."""
    token_dropout: float = 0.1
    """Dropout of the input embeddings."""
    drop_path: float = 0.0
    """Share of the images that skip the last block's branches; less in the blocks before it."""
    class_dropout: float = 0.1
    """Share of samples trained without their class, for guidance."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast over float32 weights; auto takes it where the device computes in it."""
    heldout_images: int = 1000
    """Held-out images to validate on, at most."""
    validate_every: int = 100
    """Steps between validations."""
    snapshot_every: int = field(default=0, metadata=NOT_IDENTITY)
    """Steps between checkpoints that stay, snapshots/00005000 and the like, for `sample` and `sweep`; 0 makes none."""
    sample_every: int = field(default=0, metadata=NOT_IDENTITY)
    """Steps between pictures of what the model makes, previews/00000100.png and the like; 0 makes none."""
    tokenizer: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Tokenizer to decode them with, as that of `sample`."""
    cfg_scale: float = field(default=1.5, metadata=NOT_IDENTITY)
    """Their classifier-free guidance; 1 is none."""
    checkpoint_every: int = field(default=100, metadata=NOT_IDENTITY)
    """Steps between checkpoints."""
    keep: int = field(default=2, metadata=NOT_IDENTITY)
    """Checkpoints to keep while training, the newest."""
    shard: bool = field(default=False, metadata=NOT_IDENTITY)
    """Spread the weights over the processes that torchrun started (FSDP2), for models that one device cannot hold."""
    compile: bool | None = field(default=None, metadata=NOT_IDENTITY)
    """Compile the blocks and the loss (torch.compile); default: on CUDA devices, where a process alone also records its
    orders (CUDA graph). A CPU needs a C++ compiler for it, and a minute."""
    log_with: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = field(
        default=(), metadata=NOT_IDENTITY
    )
    """Trackers that get the metrics too, where they are installed; metrics.jsonl is written always."""
    peak_tflops: float | None = field(default=None, metadata=NOT_IDENTITY)
    """Peak of one device in TFLOP/s, for MFU in the log; default: that of its name at bf16, where it is known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "steps", "batch_size", "lr", "grad_clip", "heldout_images")
        require_positive(self, "validate_every", "checkpoint_every", "keep", "cfg_scale")
        for name in ("sample_every", "snapshot_every"):
            require(getattr(self, name) >= 0, f"{name} must be 0 (never) or more, got {getattr(self, name)}")
        require(
            (self.sample_every > 0) == (self.tokenizer is not None),
            "sample_every and tokenizer go together: pictures are made every so many steps, decoded by the tokenizer",
        )
        require(
            not self.sample_every or self.cfg_scale == 1 or self.class_dropout > 0,
            "without class dropout there is no guidance; give --cfg-scale 1",
        )
        require(self.n_layers is None or self.n_layers > 0, f"n_layers must be positive, got {self.n_layers}")
        require(
            self.peak_tflops is None or self.peak_tflops > 0, f"peak_tflops must be positive, got {self.peak_tflops}"
        )
        require(self.iar_weight >= 0, f"iar_weight must be 0 or more, got {self.iar_weight}")
        require(
            self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
            f"accumulate must divide the batch of {self.batch_size} images, got {self.accumulate}",
        )
        require(0 <= self.ema_decay < 1, f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        require(0 <= self.final_lr <= self.lr, f"final_lr must be between 0 and lr ({self.lr}), got {self.final_lr}")
        require(0 <= self.decay <= 1, f"decay must be a share between 0 and 1, got {self.decay}")
        require(0 <= self.class_dropout < 1, f"class_dropout must be at least 0 and below 1, got {self.class_dropout}")
