"""Checkpoints: a trained transformer that needs nothing beside it but the tokenizer, and the state of one in training.

A finished checkpoint is a folder with `model.safetensors`, `config.json` and, where clusters are predicted,
`prior.safetensors`. While training, the folder holds one more file, `state.safetensors`: weights, optimizer and a
record in its metadata. It is replaced by one rename, so a kill at any moment leaves the last state or the one before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from codeprior.artifact import read_json, read_manifest, short, write_atomically, write_json
from codeprior.errors import InputError
from codeprior.model import ModelConfig, Transformer
from codeprior.prior import CodebookPrior

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PRIOR = "prior.safetensors"
STATE = "state.safetensors"


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
    """Codes of the tokenizer, V; equal to the model's vocabulary unless it predicts clusters."""
    codebook_digest: str
    """Codebook that the codes belong to."""
    tokenizer_digest: str
    """Tokenizer that encoded the training images."""
    prior_digest: str | None = None
    """Prior whose clusters are predicted; None where tokens are."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))

    @property
    def objective(self) -> str:
        """What is predicted: "token" or "cluster"."""
        return "token" if self.prior_digest is None else "cluster"

    def verify(self, codebook_digest: str, what: str) -> None:
        """Refuse to be combined with another codebook's tokenizer or codes; names both digests."""
        if codebook_digest != self.codebook_digest:
            raise InputError(
                f"this checkpoint was trained on codes of codebook {short(self.codebook_digest)}, {what} has codebook "
                f"{short(codebook_digest)}; use the tokenizer that encoded its training images"
            )


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained transformer, in `eval()`; `prior` is the one whose clusters it predicts, if it does."""

    model: Transformer
    config: CheckpointConfig
    prior: CodebookPrior | None
    digest: str


def save_checkpoint(
    folder: Path, model: Transformer, config: CheckpointConfig, prior: CodebookPrior | None
) -> list[str]:
    """Write a checkpoint's files, each atomically; their names."""
    save_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CONFIG, asdict(config))
    if prior is None:
        return [WEIGHTS, CONFIG]
    prior.save(folder / PRIOR)
    return [WEIGHTS, CONFIG, PRIOR]


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint that `train` made; needs the folder alone.

    Raises
    ------
    InputError
        If the folder is absent, unfinished or damaged, or its weights do not fit its config.
    """
    manifest = read_manifest(folder, "checkpoint")
    config = _read_config(manifest.path(CONFIG))
    with torch.device("meta"):
        model = Transformer(config.model)
    tensors, _ = read_tensors(manifest.path(WEIGHTS))
    load_strictly(model, tensors, str(manifest.path(WEIGHTS)), assign=True)
    prior = None if config.prior_digest is None else CodebookPrior.load(manifest.path(PRIOR))
    return Checkpoint(model.to(device).eval(), config, prior, manifest.digest)


def save_state(path: Path, model: Transformer, optimizer: torch.optim.Optimizer, record: Mapping[str, Any]) -> None:
    """Write the state of a training run: weights, optimizer and a record of JSON values, as one file by one rename."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = tensor
    save_tensors(path, tensors, metadata={"record": json.dumps(dict(record))})


def load_state(path: Path, model: Transformer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Continue from a state that `save_state` wrote: fills model and optimizer, gives the record.

    Raises
    ------
    InputError
        If the file is damaged, or of another model.
    """
    tensors, metadata = read_tensors(path)
    load_strictly(model, _below(tensors, "model."), str(path))
    flat = _below(tensors, "optimizer.")
    index_of = {id(parameter): index for index, parameter in enumerate(_parameters(optimizer))}
    state = {index_of[id(parameter)]: _below(flat, f"{name}.") for name, parameter in model.named_parameters()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads(metadata["record"])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically."""
    with write_atomically(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; is the file complete?") from error


def load_strictly(model: torch.nn.Module, tensors: Mapping[str, Tensor], what: str, *, assign: bool = False) -> None:
    """Fill a model's weights; every name and shape must fit.

    Raises
    ------
    InputError
        Naming what is missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    problems = {
        "missing": expected.keys() - tensors.keys(),
        "unexpected": tensors.keys() - expected.keys(),
        "of another shape": {n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape},
    }
    if any(problems.values()):
        details = "; ".join(f"{problem}: {_list(names)}" for problem, names in problems.items() if names)
        raise InputError(f"{what} does not fit its model ({details})")
    model.load_state_dict(tensors, assign=assign)


def _read_config(path: Path) -> CheckpointConfig:
    record = read_json(path)
    names = {field.name for field in fields(CheckpointConfig)}
    if not isinstance(record, dict) or record.keys() != names:
        raise InputError(f"{path} is not the config of a checkpoint; it must hold {', '.join(sorted(names))}")
    return CheckpointConfig(**{**record, "model": ModelConfig(**record["model"])})


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
