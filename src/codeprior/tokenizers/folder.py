"""Tokenizers that a folder keeps: what their families share.

A family is one file: a config, a model with the original's names of weights, and a `FolderTokenizer` that says how
images of a size become a grid of tokens. It is known by being listed in `loading.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from codeprior.artifact import Manifest, digest_json, read_json, read_manifest, write_json
from codeprior.codebook import Codebook
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.sharing import Shared
from codeprior.tensors import digest_tensors, load_strictly, on_meta, read_tensors, save_tensors
from codeprior.tokenizers.protocol import Tokenizer

KIND = "tokenizer"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
OF_TRAINING = ("quantize.codebook_used",)  # in originals' files; LlamaGen's buffer of recently used codes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class FolderTokenizer(Shared, Tokenizer):
    """A model, the size of its images, and what its folder says of its making; see `Tokenizer`.

    The model has `quantize.embedding`, `quantize.normalize`, `encode` and `decode`.
    """

    kind: ClassVar[str] = KIND
    family: ClassVar[str]
    config_class: ClassVar[type[Any]]
    model_class: ClassVar[type[nn.Module]]

    model: Any = field(repr=False)
    image_size: int
    made: Manifest | None = field(default=None, repr=False)
    of_training: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """Buffers that an original's file has besides and nothing here needs; kept, so that what is saved is the same."""

    @classmethod
    def identify(cls, shapes: Shapes) -> Any | None:
        """The config of a file of this family, by its tensors' names and shapes; None if it is another's.

        Raises
        ------
        InputError
            If it is this family's, but not one that can be loaded.
        """
        raise NotImplementedError

    @cached_property
    def codebook(self) -> Codebook:  # type: ignore[override]  # made once, never set
        """The stored vectors and the space in which they are compared."""
        quantize = self.model.quantize
        return Codebook(quantize.embedding.weight.detach().float().cpu().numpy(), normalize=quantize.normalize)

    @cached_property
    def digest(self) -> str:
        """Digest of the folder that it was loaded from; of its weights and config, if it was made in memory."""
        if self.made is not None:
            return self.made.digest
        return digest_json([self.record(), digest_tensors(self.model.state_dict())])

    def record(self) -> dict[str, Any]:
        """What `config.json` says."""
        return {"family": self.family, **asdict(self.model.config), "image_size": self.image_size}

    def facts(self) -> dict[str, Any]:
        """Sizes, and the codebook's digest."""
        return {
            "family": self.family,
            "n_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "codebook_size": len(self.codebook),
            "codebook_digest": self.codebook.digest,
            "image_size": self.image_size,
        }

    def write_files(self, folder: Path) -> list[str]:
        """Write config and weights."""
        save_tensors(folder / WEIGHTS, {**self.model.state_dict(), **self.of_training})
        write_json(folder / CONFIG, self.record())
        return [CONFIG, WEIGHTS]

    @classmethod
    def open(cls, source: Path | str) -> Self:
        """Load from a folder, or from the hub, on the CPU.

        Raises
        ------
        InputError
            If it is absent, unfinished, damaged, or holds a tokenizer of another family.
        """
        manifest, record = read_folder(source)
        family = record.pop("family")
        if family != cls.family:
            raise InputError(f"{source} holds a {family} tokenizer, not a {cls.family} one; try load_tokenizer")
        return cls.read(manifest, record, "cpu")

    @classmethod
    def read(cls, manifest: Manifest, record: dict[str, Any], device: torch.device | str) -> Self:
        """Load what a manifest and its `config.json` describe."""
        path = manifest.path(CONFIG)
        known = {entry.name: entry for entry in fields(cls.config_class)}
        size = record.get("image_size")
        if "image_size" not in known:  # a network that takes images of any size
            record.pop("image_size", None)
        needed = {name for name, entry in known.items() if entry.default is MISSING}
        if not isinstance(size, int) or record.keys() - known.keys() or needed - record.keys():
            raise InputError(f"{path} must hold family, image_size, {', '.join(sorted(known))}")
        with on_meta():  # the file's tensors become the model's; nothing is initialised for nothing
            model = cls.model_class(cls.config_class(**record))
        weights, _ = read_tensors(manifest.path(WEIGHTS))
        of_training = {name: weights.pop(name) for name in OF_TRAINING if name in weights}
        load_strictly(model, weights, str(manifest.path(WEIGHTS)), assign=True)
        target = resolve_device(device) if isinstance(device, str) else device
        model.eval().requires_grad_(False).to(target)
        if target.type == "cpu":  # convolutions of large images take two thirds of the time in this order of memory
            model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(model, size, manifest, of_training)


def read_folder(source: Path | str) -> tuple[Manifest, dict[str, Any]]:
    """The manifest and the `config.json` of a tokenizer's folder."""
    manifest = read_manifest(source, KIND)
    record = read_json(manifest.path(CONFIG))
    if not isinstance(record, dict):
        raise InputError(f"{manifest.path(CONFIG)} is not the config of a tokenizer")
    return manifest, {"family": "vqgan", **record}  # before there were several it was not written down
