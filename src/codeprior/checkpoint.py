"""Checkpoints: a trained transformer that needs nothing beside it but the tokenizer.

A finished checkpoint is a folder with `model.safetensors`, `config.json` and, where there are such, `ema.safetensors`
(the weights averaged over steps) and `prior.safetensors` (whose clusters come out, or go in). While training, the
folder holds the states to continue from, see `states.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from codeprior.artifact import Manifest, digest_json, read_json, read_manifest, short, write_json
from codeprior.errors import InputError
from codeprior.model import ModelConfig, Transformer
from codeprior.prior import CodebookPrior
from codeprior.sharing import Shared
from codeprior.tensors import digest_tensors, load_strictly, on_meta, read_tensors, save_tensors

WEIGHTS = "model.safetensors"
AVERAGE = "ema.safetensors"
CONFIG = "config.json"
PRIOR = "prior.safetensors"


@dataclass(frozen=True)
class CheckpointConfig:
    """What a checkpoint knows besides its weights: everything that sampling needs and checks."""

    model: ModelConfig
    """Architecture."""
    class_names: tuple[str, ...]
    """Name of each class."""
    image_size: int
    """Side of the images whose codes it was trained on, pixels."""
    codebook_size: int
    """Codes of the tokenizer, V."""
    codebook_digest: str | None
    """Codebook that the codes belong to; None where nobody knows, of another project's transformer."""
    tokenizer_digest: str | None
    """Tokenizer that encoded the training images."""
    objective: str
    """What it was trained to predict: "token", "cluster", "iar", "factorised" or "refine"."""
    prior_digest: str | None = None
    """Prior that decoding needs, for "cluster" and "refine": its clusters are what comes out, or goes in."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))

    def verify(self, codebook_digest: str | None, what: str, n_codes: int | None = None) -> None:
        """Refuse to be combined with another codebook's tokenizer or codes; names both digests, if both are known."""
        if n_codes not in (None, self.codebook_size):
            raise InputError(f"this checkpoint was trained on {self.codebook_size} codes, {what} has {n_codes}")
        if codebook_digest is None or self.codebook_digest is None:
            return
        if codebook_digest != self.codebook_digest:
            raise InputError(
                f"this checkpoint was trained on codes of codebook {short(self.codebook_digest)}, {what} has codebook "
                f"{short(codebook_digest)}; use the tokenizer that encoded its training images"
            )


@dataclass(frozen=True, eq=False)
class Checkpoint(Shared):
    """A trained transformer, in `eval()`; `prior` is the one that decoding needs, if it does."""

    kind: ClassVar[str] = "checkpoint"

    model: Transformer = field(repr=False)
    config: CheckpointConfig
    prior: CodebookPrior | None = None
    made: Manifest | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        weights: Mapping[str, Tensor],
        config: CheckpointConfig,
        prior: CodebookPrior | None,
        device: torch.device | str = "cpu",
        what: str = "the weights",
        made: Manifest | None = None,
    ) -> Checkpoint:
        """A checkpoint of weights, which are not copied where they are on the device; every name and shape must fit."""
        with on_meta():
            model = Transformer(config.model)
        load_strictly(model, weights, what, assign=True)
        return cls(model.to(device).eval(), config, prior, made)

    @cached_property
    def digest(self) -> str:
        """Digest of the folder that it was loaded from; of its weights and config, if it was made in memory."""
        if self.made is not None:
            return self.made.digest
        prior = None if self.prior is None else self.prior.digest
        return digest_json([asdict(self.config), digest_tensors(self.model.state_dict()), prior])

    def write_files(self, folder: Path) -> list[str]:
        """Write weights, config and prior; weights averaged over steps only where they are the ones loaded."""
        return save_checkpoint(folder, self.model.state_dict(), self.config, self.prior)

    def facts(self) -> dict[str, Any]:
        """Sizes."""
        model = self.config.model
        return {
            "objective": self.config.objective,
            "n_parameters": self.model.n_parameters,
            "n_layers": model.n_layers,
            "dim": model.dim,
            "vocab_size": model.vocab_size,
            "n_classes": model.n_classes,
            "image_size": self.config.image_size,
        }

    @classmethod
    def open(cls, source: Path | str) -> Checkpoint:
        """`load_checkpoint`, on the CPU."""
        return load_checkpoint(source)


def save_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: CheckpointConfig,
    prior: CodebookPrior | None,
    average: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Write a checkpoint's files, each atomically; their names. `average` has the weights averaged over steps."""
    save_tensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, asdict(config))
    files = [WEIGHTS, CONFIG]
    if average is not None:
        save_tensors(folder / AVERAGE, average)
        files.append(AVERAGE)
    if prior is not None:
        prior.save(folder / PRIOR)
        files.append(PRIOR)
    return files


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu", *, average: bool = False) -> Checkpoint:
    """Read a checkpoint that `train` or `convert` made, from its folder or from the hub (`hf:owner/name`).

    `average` takes the weights averaged over steps.

    Raises
    ------
    InputError
        If the folder is absent, unfinished or damaged, its weights do not fit its config, or no average was kept.
    """
    manifest = read_manifest(folder, Checkpoint.kind)
    config = read_config(manifest.path(CONFIG))
    weights = manifest.path(AVERAGE if average else WEIGHTS)
    if average and not weights.exists():
        raise InputError(f"{folder} keeps no averaged weights; it was trained without --ema-decay")
    prior = None if config.prior_digest is None else CodebookPrior.load(manifest.path(PRIOR))
    return Checkpoint.of(read_tensors(weights)[0], config, prior, device, str(weights), manifest)


def read_config(path: Path) -> CheckpointConfig:
    """What a checkpoint's `config.json` says.

    Raises
    ------
    InputError
        If it is not the config of a checkpoint.
    """
    record = read_json(path)
    names = {entry.name for entry in fields(CheckpointConfig)}
    if not isinstance(record, dict) or record.keys() | {"objective"} != names:
        raise InputError(f"{path} is not the config of a checkpoint; it must hold {', '.join(sorted(names))}")
    # before it was written down there were two that sampling told apart
    record.setdefault("objective", "token" if record["prior_digest"] is None else "cluster")
    return CheckpointConfig(**{**record, "model": _read_model_config(record["model"])})


def _read_model_config(record: dict[str, Any]) -> ModelConfig:
    """An architecture as it was written; before there were several dropouts, one was all three."""
    if "dropout" in record:
        dropout = record.pop("dropout")
        record |= dict.fromkeys(("token_dropout", "resid_dropout", "ffn_dropout"), dropout)
    return ModelConfig(**record)
