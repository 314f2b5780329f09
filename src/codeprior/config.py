"""Settings of every verb: one frozen dataclass each, whose fields are the command line's flags and a recipe's keys.

Imports nothing heavy, so that `codeprior --help` answers at once. A field's text is its `--help`. Fields marked
`NOT_IDENTITY` say how or where a run is done, not what it computes: they may change between a run and its resumption.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from codeprior.errors import InputError

NOT_IDENTITY = {"identity": False}

Views = Literal["centre", "flip", "shift"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class VerbConfig:
    """What every verb understands."""

    seed: int = 0
    """Seed of everything random."""
    device: str = field(default="auto", metadata=NOT_IDENTITY)
    """cpu, cuda, cuda:1, ... or auto: the first CUDA device if there is one, else the CPU."""
    json: bool = field(default=False, metadata=NOT_IDENTITY)
    """Print the result as one line of JSON at the end."""
    dry_run: bool = field(default=False, metadata=NOT_IDENTITY)
    """Print the resolved settings as YAML and stop."""
    config: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """A YAML file of settings; flags given besides it win."""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")

    def settings(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON values; paths to inputs stand in the manifest as digests."""
        return {
            f.name: value
            for f in fields(self)
            if f.metadata.get("identity", True) and not isinstance(value := getattr(self, f.name), Path)
        }


@dataclass(frozen=True, kw_only=True)
class MakeConfig(VerbConfig):
    """A verb that leaves an artifact."""

    output: Path = field(metadata=NOT_IDENTITY)
    """Where the result goes. Run the same command again to continue an interrupted run."""
    overwrite: bool = field(default=False, metadata=NOT_IDENTITY)
    """Replace what --output holds if it was made with other settings or inputs."""


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Where images come from."""

    data: str = field(metadata=NOT_IDENTITY)
    """Images: a folder with one folder a class, a .parquet file (or a folder of them), an .npz file (arr_0 uint8 NHWC,
    arr_1 labels), or built-in: digits, digits:heldout, photos12, photos12:heldout."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be decoded: refuse names the first, skip counts and leaves them out."""


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
        _require_positive(self, "image_size", "codebook_size", "codebook_dim", "steps", "batch_size", "lr")
        _require_positive(self, "checkpoint_every")
        _require(self.warmup >= 0, f"warmup must be 0 or more, got {self.warmup}")
        _require(0 <= self.unquantized < 1, f"unquantized must be a share from 0 to below 1, got {self.unquantized}")
        _require(self.restart_every >= 0, f"restart_every must be 0 (never) or more, got {self.restart_every}")
        _require(
            0 <= self.restart_until <= 1, f"restart_until must be a share between 0 and 1, got {self.restart_until}"
        )


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(ImagesConfig, MakeConfig):
    """Encode images into a packed store of codes."""

    tokenizer: Path = field(metadata=NOT_IDENTITY)
    """Tokenizer folder."""
    image_size: int | None = None
    """Side of the square images, pixels; default: the size that the tokenizer was trained at."""
    views: Views = "centre"
    """Views of each image to store: centre, flip (centre and its mirror image), shift (centre and four shifts)."""
    batch_size: int = field(default=64, metadata=NOT_IDENTITY)
    """Images a forward pass."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(MakeConfig):
    """Extract a prior from a codebook: which codes belong together."""

    codebook: Positional[Path] = field(metadata=NOT_IDENTITY)
    """A tokenizer folder, an array (.npy, .npz), or anybody's checkpoint: .pt, .pth, .ckpt, .bin, .safetensors, a
    Hugging Face folder, or hf:owner/name[/file]. Pickles are read without running them."""
    family: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Family of the checkpoint's tokenizer, where the file does not tell it: llamagen, taming, titok, ..."""
    key: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Name of the codebook, where the checkpoint holds several; [i] at its end picks one of several heads."""
    n_clusters: int | float = 0.5
    """Number of clusters, or a share of the codebook: 0.5 is half."""
    method: str = "dcpe"
    """dcpe (exact average linkage), or a method to compare it with: kmeans, kmeans++, kmeans++-weighted,
    balanced-kmeans, kmeans-instance, centroid, ward, complete."""
    normalize: Annotated[bool | None, arg(metavar="| --no-normalize")] = None
    """Cluster l2-normalised vectors; default: as the tokenizer compares them."""
    usage: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """How often each code is used: a code store, a .npy of counts, or a checkpoint that keeps them (`cluster_size` of
    EMA codebooks, VAR's `ema_vocab_hit_SV`). Codes never used are attached to clusters, not clustered, never picked."""
    max_cluster_size: int | None = None
    """A cluster with more codes than this merges no more (the paper's rule for IAR: V / n_clusters)."""
    strict: bool = False
    """With --max-cluster-size: no cluster may exceed it; fewer merges than asked for may be possible."""
    compare: tuple[str, ...] = field(default=(), metadata=NOT_IDENTITY)
    """Other methods to run at the same number of clusters and to show beside this one; nothing of them is stored."""
    export_labels: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Also write token_to_cluster as .npy."""
    export_linkage: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Also write the tree as .npy, in SciPy's layout."""
    export_mapping: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Also write IAR's reordering as .pt: new id of each old id, clusters one after the other."""
    tree: bool = True
    """Store the complete tree, so that the prior can be cut at any k; --no-tree stops at n_clusters."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(VerbConfig):
    """Show what an artifact holds: a prior, a codebook, codes, a checkpoint, any folder of ours."""

    paths: Positional[tuple[Path, ...]]
    """One or more artifacts; priors of one codebook are compared with the first."""
    code: int | None = None
    """Show the nearest neighbours and the cluster of this code."""
    plot: Path | None = None
    """Folder for pictures of the priors: sizes.png, dendrogram.png, curve.png."""


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(ImagesConfig, MakeConfig):
    """Replace each token by a random one of its cluster, decode and score (the papers' replacement test)."""

    tokenizer: Path = field(metadata=NOT_IDENTITY)
    """Tokenizer folder."""
    priors: tuple[Path, ...] = field(default=(), metadata=NOT_IDENTITY)
    """Priors to compare; no replacement is always scored too."""
    features: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Classifier folder (from train-classifier) whose features give a Fréchet distance."""
    n_seeds: int = 3
    """Random replacements to average over; the spread is reported."""
    n_images: int = 2000
    """Images to score, at most."""
    image_size: int | None = None
    """Side of the square images, pixels; default: the size that the tokenizer was trained at."""
    batch_size: int = field(default=64, metadata=NOT_IDENTITY)
    """Images a forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "n_seeds", "n_images", "batch_size")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MakeConfig):
    """Train a class-conditional transformer on codes, or on the clusters of a prior."""

    codes: Path = field(metadata=NOT_IDENTITY)
    """Code store to train on."""
    heldout_codes: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Code store for the validation loss."""
    prior: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Prior whose clusters are predicted in place of tokens."""
    model: str = "tiny"
    """Size, by its name in the presets table: tiny, GPT-B, GPT-L, GPT-XL, ..."""
    steps: int = 700
    """Optimizer steps."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    warmup: int = 0
    """Steps of linear warm-up."""
    decay: float = 0.3
    """Share of the steps, at the end, over which the rate falls linearly to zero."""
    weight_decay: float = 0.05
    """On matrices, embeddings included."""
    beta2: float = 0.95
    """Second momentum of AdamW."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    dropout: float = 0.1
    """Token, residual and feed-forward dropout."""
    class_dropout: float = 0.1
    """Share of samples trained without their class, for guidance."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast over float32 weights; auto takes it where the device computes in it."""
    heldout_images: int = 1000
    """Held-out images to validate on, at most."""
    validate_every: int = 100
    """Steps between validations."""
    checkpoint_every: int = field(default=100, metadata=NOT_IDENTITY)
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "steps", "batch_size", "lr", "grad_clip", "heldout_images")
        _require_positive(self, "validate_every", "checkpoint_every")
        _require(0 <= self.decay <= 1, f"decay must be a share between 0 and 1, got {self.decay}")
        _require(0 <= self.class_dropout < 1, f"class_dropout must be at least 0 and below 1, got {self.class_dropout}")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(MakeConfig):
    """Sample images from a trained transformer."""

    checkpoint: Path = field(metadata=NOT_IDENTITY)
    """Checkpoint folder (from train)."""
    tokenizer: Path = field(metadata=NOT_IDENTITY)
    """Tokenizer folder, to decode with."""
    n_images: int = 1000
    """Images to sample, in equal shares of the classes."""
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
    batch_size: int = field(default=250, metadata=NOT_IDENTITY)
    """Images a forward pass; results do not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "n_images", "batch_size", "temperature", "cfg_scale")
        _require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}")
        _require(self.top_k >= 0, f"top_k must be 0 (keep all) or more, got {self.top_k}")


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
        _require_positive(self, "image_size", "steps", "batch_size", "lr", "width")


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


@dataclass(frozen=True, kw_only=True)
class ReportConfig(VerbConfig):
    """Gather every artifact below a folder into one self-contained HTML page."""

    folder: Positional[Path]
    """Where the artifacts are."""
    output: Path | None = None
    """The page; default: report.html in the folder."""
    title: str = "codeprior report"
    """Its headline."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig(VerbConfig):
    """Everything at once, on data that is installed already: tokenizer, priors, transformers, samples, report."""

    data: Literal["digits", "photos12"] = "digits"
    """digits takes about 3 minutes on two CPU cores, photos12 about 8."""
    output: Path | None = None
    """Folder of the run; default: demo/<data>. Run again to continue or to redo only what changed."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(VerbConfig):
    """Show the environment and the devices, what is missing and how to get it."""
