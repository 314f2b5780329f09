"""Settings of the verbs between this package and others' files and places."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from codeprior.config.base import NOT_IDENTITY, MakeConfig, VerbConfig, require


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(MakeConfig):
    """Turn LlamaGen's, IAR's or GigaTok's file into a folder of ours, or back, bit for bit."""

    source: Positional[Path] = field(metadata=NOT_IDENTITY)
    """A tokenizer or a transformer: an original's .pt, .pth, .ckpt, .bin or .safetensors file, a folder with
    consolidated.pth, hf:owner/name[/file]; or a folder of ours. Where --output ends in .pt, .pth or .safetensors an
    original's file is written, else a folder of ours."""
    tokenizer: Path | None = None
    """Of a transformer: the folder of the tokenizer that its codes belong to, which signs it and gives its grid."""
    image_size: int | None = None
    """Side of the images, pixels, where the file does not tell: 256 for c2i_B_256.pt, 384 for c2i_B_384.pt."""
    n_heads: int | None = None
    """Attention heads of a transformer of no published size."""
    n_classes: int | None = None
    """Classes, where there is no vector for "no class"; else the file tells."""
    class_names: Path | None = None
    """The image folder, whose class folders' names are taken, or a text file, a name a line; default: numbers."""
    yaml: Path | None = None
    """GigaTok's configs/vq/*.yaml, for a tokenizer whose options leave no trace in its weights."""
    wrapper: str | None = None
    """Which weights of the file: model, ema, ...; default: ema before model for tokenizers, model for transformers."""
    mapping: Path | None = None
    """IAR's file of new numbers of the codes: renumber them, new[mapping] = old."""
    undo_mapping: Path | None = None
    """The same file: give the codes their old numbers again."""
    bare: bool = False
    """Write the tensors of a .pt or .pth without `model` around them, as LlamaGen's --from-fsdp reads them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "n_heads", "n_classes"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, got {value}")
        require(self.mapping is None or self.undo_mapping is None, "give --mapping or --undo-mapping, not both")


@dataclass(frozen=True, kw_only=True)
class PushConfig(VerbConfig):
    """Push an artifact to the Hugging Face hub, with a card; every verb reads it there as hf:owner/name."""

    source: Positional[Path]
    """A folder of ours, or a prior's file."""
    repository: Positional[str]
    """owner/name; made if there is none."""
    private: bool = False
    """Of a repository that is made: only its owner sees it."""
    revision: str | None = None
    """Branch; default: main."""
    message: str | None = None
    """Of the commit."""
