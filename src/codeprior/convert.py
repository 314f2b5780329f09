"""Between the originals' files and folders of ours, both ways, bit for bit; and the verb `convert`.

A folder keeps the tensors under the originals' names and in their dtypes, so that what goes in comes out again. Our
models compute in float32 whatever the file holds; that is decided when they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codeprior.artifact import Workspace, is_artifact, read_manifest, with_article, write_atomically, write_json
from codeprior.checkpoint import AVERAGE, Checkpoint, CheckpointConfig, read_config
from codeprior.config import ConvertConfig
from codeprior.errors import InputError
from codeprior.exchange import read_class_names
from codeprior.model import ModelConfig
from codeprior.originals import Given, Original, recognise
from codeprior.pickles import StoredTensor
from codeprior.progress import track
from codeprior.rearrangement import read_mapping
from codeprior.tensors import digest_tensors, read_stored, read_tensors, save_tensors
from codeprior.tokenizers.folder import CONFIG, OF_TRAINING, WEIGHTS, FolderTokenizer, read_folder
from codeprior.tokenizers.gigatok_files import read_yaml
from codeprior.tokenizers.loading import FAMILIES, load_tokenizer
from codeprior.weights import SUFFIXES, open_checkpoint

_REORDERED = ("quantize.embedding.weight", "tok_embeddings.weight", "output.weight")  # a row a code
_BUFFERS = (*OF_TRAINING, "cls_embedding.uncond_embedding")
_N_RECENT = 65536  # recently used codes that LlamaGen's and GigaTok's files keep, and their strict loading asks for


@dataclass(frozen=True)
class Model:
    """A tokenizer or a transformer between two files: its `config.json`, its tensors as they are stored."""

    kind: str
    what: str
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    average: dict[str, Tensor] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        """Number of weights; buffers are none."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if name not in _BUFFERS)


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Turn an original's file into a folder of ours, or a folder of ours into an original's file.

    Raises
    ------
    InputError
        If the source is none that can be converted, is not whole, or does not tell something that must be given; if the
        output holds something else.
    """
    is_ours, to_file = is_artifact(config.source), config.output.suffix in SUFFIXES
    if is_ours and not to_file and config.mapping is None and config.undo_mapping is None:
        raise InputError(
            f"{config.source} is a folder of ours already; give an --output that ends in .pt, or a --mapping"
        )
    model = _read_ours(config.source) if is_ours else _read_theirs(config)
    for path, undo in ((config.mapping, False), (config.undo_mapping, True)):
        if path is not None:
            model = reorder(model, torch.from_numpy(read_mapping(path)), undo=undo)
    write = _write_file if to_file else _write_folder
    return {
        "output": str(config.output),
        "recognised": model.what,
        "n_parameters": model.n_parameters,
        **model.notes,
        **write(config, model),
        "warnings": list(model.warnings),
    }


def reorder(model: Model, mapping: Tensor, *, undo: bool = False) -> Model:
    """Give the codes other numbers, as IAR does: `new[mapping] = old`; or their old ones again.

    Rows of the codebook are moved; of a transformer, those of the tokens that go in and come out.

    Raises
    ------
    InputError
        If the mapping is of another number of codes, or the model has a prior, which knows them by their old numbers.
    """
    if model.record.get("prior_digest") is not None:
        raise InputError(
            "a model with a prior cannot be renumbered: the prior knows the codes by the numbers they have"
        )
    rows = mapping.argsort() if not undo else mapping  # row i of the result is row rows[i] of what there was

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {name: tensor for name, tensor in tensors.items() if name not in OF_TRAINING}  # codes by old numbers
        for name in _REORDERED:
            if name in kept:
                if len(kept[name]) != len(mapping):
                    raise InputError(f"the mapping is of {len(mapping)} codes, the model has {len(kept[name])}")
                kept[name] = kept[name][rows].contiguous()
        return kept

    average = None if model.average is None else moved(model.average)
    record = model.record
    if model.kind == Checkpoint.kind:  # it belongs to another tokenizer now
        record = {**record, "codebook_digest": None, "tokenizer_digest": None}
    return replace(model, tensors=moved(model.tensors), average=average, record=record)


def _read_theirs(config: ConvertConfig) -> Model:
    tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
    given = Given(
        image_size=config.image_size or (tokenizer.image_size if tokenizer else None),
        grid=tokenizer.grid(config.image_size or tokenizer.image_size) if tokenizer else None,
        n_heads=config.n_heads,
        n_classes=config.n_classes,
        config=None if config.yaml is None else read_yaml(config.yaml),
        wrapper=config.wrapper,
    )
    original = recognise(open_checkpoint(config.source), given)
    notes: dict[str, Any] = {"taken from": original.wrapper or "the bare file"}
    if original.left_out:
        notes["left out"] = ", ".join(original.left_out)
    notes |= {f"assumed: {name}": value for name, value in original.assumed.items()}
    if original.tokenizer is not None:
        record = {"family": original.tokenizer.family, **asdict(original.config), "image_size": original.image_size}
        return Model(FolderTokenizer.kind, original.what, record, _read_all(original.tensors), notes=notes)
    record, warnings = _checkpoint_record(original, config, tokenizer, notes)
    average = None if original.average is None else _read_all(original.average)
    tensors = _read_all(original.tensors)
    return Model(Checkpoint.kind, original.what, record, tensors, average, notes, tuple(warnings))


def _checkpoint_record(
    original: Original, config: ConvertConfig, tokenizer: Any, notes: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The `config.json` of a transformer; and what to warn of."""
    architecture: ModelConfig = original.config
    warnings = []
    if tokenizer is None:
        warnings.append("nothing says which tokenizer its codes belong to; give --tokenizer, and it will be checked")
    elif len(tokenizer.codebook) != architecture.vocab_size:
        raise InputError(
            f"{config.source} has {architecture.vocab_size} tokens, {config.tokenizer} has {len(tokenizer.codebook)} "
            "codes; give the tokenizer that it was trained with"
        )
    names = read_class_names(config.class_names) or tuple(map(str, range(architecture.n_classes)))
    if len(names) != architecture.n_classes:
        raise InputError(
            f"{config.source} has {architecture.n_classes} classes, {config.class_names} {len(names)} names"
        )
    notes |= {"vocabulary": architecture.vocab_size, "grid": " x ".join(map(str, architecture.grid))}
    notes |= {"n_classes": architecture.n_classes} if architecture.n_classes else {}
    found = CheckpointConfig(
        model=architecture,
        class_names=names,
        image_size=original.image_size or 16 * architecture.grid[0],
        codebook_size=architecture.vocab_size,
        codebook_digest=None if tokenizer is None else tokenizer.codebook.digest,
        tokenizer_digest=None if tokenizer is None else tokenizer.digest,
        objective="token",
    )
    return asdict(found), warnings


def _read_ours(source: Path) -> Model:
    manifest = read_manifest(source)
    if manifest.kind == FolderTokenizer.kind:
        manifest, record = read_folder(source)
        tensors = read_tensors(manifest.path(WEIGHTS))[0]
        untold = _untold(record, tensors)
        warnings = (f"the file alone does not tell, and must be told: {untold}",) if untold else ()
        return Model(manifest.kind, f"{record['family']} tokenizer", record, tensors, warnings=warnings)
    if manifest.kind != Checkpoint.kind:
        raise InputError(f"{source} holds {with_article(manifest.kind)}; only tokenizers and checkpoints are converted")
    settings = read_config(manifest.path(CONFIG))
    _check_that_originals_have_it(settings)
    average = read_tensors(manifest.path(AVERAGE))[0] if manifest.path(AVERAGE).exists() else None
    clusters = "its tokens are clusters: what it generates must still be decoded by its prior"
    warnings = (clusters,) if settings.objective == "cluster" else ()
    tensors = read_tensors(manifest.path(WEIGHTS))[0]
    what = f"transformer, trained on {settings.objective}"
    return Model(manifest.kind, what, asdict(settings), tensors, average, warnings=warnings)


def _untold(record: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """What of a tokenizer's config cannot be told from its tensors, and differs from what is then assumed."""
    if record.get("norm_groups", 32) != 32:
        raise InputError(
            f"this tokenizer normalises in {record['norm_groups']} groups, the originals in 32: it stays a folder"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assumed = next(filter(None, (family.identify(shapes) for family in FAMILIES)))
    said = replace(assumed, **{name: record[name] for name in asdict(assumed) if name in record})
    differing = {name: value for name, value in asdict(said).items() if value != getattr(assumed, name)}
    return ", ".join(f"{name} = {value}" for name, value in differing.items())


def _check_that_originals_have_it(settings: CheckpointConfig) -> None:
    model = settings.model
    if not model.causal or model.n_clusters is not None or model.n_outputs != model.vocab_size:
        raise InputError(
            f"a model of objective {settings.objective} has layers that no original has; it stays a folder"
        )


def _write_folder(config: ConvertConfig, model: Model) -> dict[str, Any]:
    files = {WEIGHTS: model.tensors} | ({} if model.average is None else {AVERAGE: model.average})
    with Workspace(
        config.output,
        kind=model.kind,
        settings=model.record,
        inputs={name: digest_tensors(tensors) for name, tensors in files.items()},
        overwrite=config.overwrite,
    ) as workspace:
        manifest = workspace.manifest
        if manifest is None:
            for name, tensors in files.items():
                save_tensors(workspace.path(name), tensors)
            write_json(workspace.path(CONFIG), model.record)
            results = {"recognised": model.what, "n_parameters": model.n_parameters}
            manifest = workspace.finish([*files, CONFIG], results)
        return {"digest": manifest.digest}


def _write_file(config: ConvertConfig, model: Model) -> dict[str, Any]:
    """Write an original's file: the tensors below `model`, or bare."""
    if config.output.exists() and not config.overwrite:
        raise InputError(f"{config.output} exists; choose another --output, or replace it with --overwrite")
    tensors = dict(model.tensors)
    if model.kind == FolderTokenizer.kind:
        for name in OF_TRAINING:
            tensors.setdefault(name, torch.zeros(_N_RECENT))
    if config.output.suffix == ".safetensors":
        save_tensors(config.output, tensors)
        return {"wrapper": "none"}
    tree: dict[str, Any] = tensors if config.bare else {"model": tensors}
    if model.average is not None and not config.bare:
        tree["ema"] = model.average
    with write_atomically(config.output) as temporary:
        torch.save(tree, temporary)
    return {"wrapper": "none" if config.bare else "model"}


def _read_all(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    return {name: read_stored(tensors[name]) for name in track(list(tensors), "read")}
