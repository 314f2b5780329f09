"""GigaTok's own files: the architecture from its YAML, or from the shapes of its weights; and into a folder of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from codeprior.artifact import Manifest, Workspace, digest_array, digest_json
from codeprior.errors import InputError
from codeprior.tensors import on_meta, save_tensors
from codeprior.tokenizers.gigatok import SIZES, GigaTok, GigaTokConfig, GigaTokTokenizer
from codeprior.tokenizers.loading import CONFIG, WEIGHTS, fit_weights, save_config
from codeprior.weights import open_checkpoint

_MARK = "s2to1encoder.encoder_embed.weight"  # only 1-D GigaTok tokenizers have it

# The options of `init_args`, with what GigaTok assumes where a YAML says nothing.
_RENAMED: dict[str, tuple[str, Any]] = {
    "codebook_size": ("codebook_size", 16384),
    "codebook_embed_dim": ("codebook_dim", 8),
    "codebook_l2_norm": ("normalize", True),
    "num_latent_tokens": ("n_tokens", 256),
    "z_channels": ("z_channels", 256),
    "encoder_ch_mult": ("encoder_multipliers", (1, 1, 2, 2, 4)),
    "decoder_ch_mult": ("decoder_multipliers", (1, 1, 2, 2, 4)),
    "use_qk_norm": ("qk_norm", False),
    "adaptive_gn": ("adaptive_norm", False),
    "d2s_up": ("depth_to_space", False),
    "use_attn": ("attention", True),
}
_ENCODER_QUERIES = {"multi_level_query_init": "pooled", "learnable_1d_query_init": "learned"}
_DECODER_QUERIES = {
    "last_level_2d_query_init": "last_level",
    "multi_level_2d_query_init": "multi_level",
    "learnable_2d_query_init": "learned",
}
_OTHERS = {
    "model_size": "small",
    "encoder_size": None,
    "decoder_size": None,
    "distill_depth": None,
    "out_inner_dim": None,
}
_OF_TRAINING = {
    "codebook_show_usage",
    "commit_loss_beta",
    "entropy_loss_ratio",
    "dropout_p",
    "rot",
    "fea_rec_loss_type",
    "fea_rec_loss_weight",
    "bernoulli_sample",
    "eval_deterministic",
    "stochastic_temperature",
    "freeze_codebook",
    "downsample_match_channel",  # these two only qualify res_up_down_sample
    "upsample_match_channel",
}
_TEACHER_WIDTHS = {
    "dinov2-vit-s": 384,
    "dinov2-vit-b": 768,
    "dinov2-vit-l": 1024,
    "siglip-sovit-400m": 1152,
    "clip_dfn-vit-l/14": 1024,
}


def read_yaml(path: Path | str) -> GigaTokConfig:
    """Read the architecture from one of GigaTok's `configs/vq/*.yaml`.

    Raises
    ------
    InputError
        If the file is absent or not such a file, or asks for what this package does not have: the 2-D ablations and
        the options that GigaTok itself calls deprecated.
    """
    try:
        record = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None
    try:
        return _config(record)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not a GigaTok configuration: it needs model.model_cls, model.init_args") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _config(record: Mapping[str, Any]) -> GigaTokConfig:
    model_class, arguments = record["model"]["model_cls"], dict(record["model"]["init_args"])
    if model_class != "VQVitModelPlus":
        raise InputError(f"model_cls must be VQVitModelPlus, a 1-D tokenizer, got {model_class}")
    known = {*_RENAMED, *_ENCODER_QUERIES, *_DECODER_QUERIES, *_OTHERS, *_OF_TRAINING}
    for name, value in arguments.items():
        if value and name not in known:
            raise InputError(f"init_args.{name}: {value} is not supported")
    options = {**_OTHERS, **arguments}
    return GigaTokConfig(
        encoder=options["encoder_size"] or options["model_size"],
        decoder=options["decoder_size"] or options["model_size"],
        encoder_queries=_chosen(options, _ENCODER_QUERIES) or "mean",
        decoder_queries=_chosen(options, _DECODER_QUERIES) or "first",
        distill_width=_distill_width(options, record.get("trainer") or {}),
        **{ours: options.get(theirs, default) for theirs, (ours, default) in _RENAMED.items()},
    )


def _chosen(options: Mapping[str, Any], meanings: Mapping[str, str]) -> str | None:
    set_options = [name for name in meanings if options.get(name)]
    if len(set_options) > 1:
        raise InputError(f"of {' and '.join(set_options)} at most one may be set")
    return meanings[set_options[0]] if set_options else None


def _distill_width(options: Mapping[str, Any], trainer: Mapping[str, Any]) -> int | None:
    if options["distill_depth"] is None:
        return None
    if options["out_inner_dim"] is not None:
        return options["out_inner_dim"]
    teacher = trainer.get("distill_model", "dinov2-vit-b") if trainer.get("distill_loss") else "dinov2-vit-b"
    if teacher not in _TEACHER_WIDTHS:
        raise InputError(f"trainer.distill_model must be one of {', '.join(_TEACHER_WIDTHS)}, got {teacher}")
    return _TEACHER_WIDTHS[teacher]


def identify(shapes: Mapping[str, tuple[int, ...]]) -> GigaTokConfig:
    """The architecture whose weights have these names and shapes.

    What leaves no trace in the weights is as in every released tokenizer: pooled queries, those of the decoder the
    first token, codes on the unit sphere. A YAML says it; see `read_yaml`.

    Raises
    ------
    InputError
        If these are not the weights of a GigaTok tokenizer.
    """
    try:
        return _identify(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"not the weights of a 1-D GigaTok tokenizer: {error} is missing or has another shape"
        ) from None


def _identify(shapes: Mapping[str, tuple[int, ...]]) -> GigaTokConfig:
    size_of_width = {size[0]: name for name, size in SIZES.items()}
    channels, codebook = shapes["encoder.conv_in.weight"][0], shapes["quantize.embedding.weight"]
    multipliers = {part: _multipliers(shapes, part, channels) for part in ("encoder", "decoder")}
    grid = math.isqrt(shapes["s2to1encoder.positional_embedding"][0])
    distill = shapes.get("s1to2decoder.distill_mlp.4.bias")
    return GigaTokConfig(
        encoder=size_of_width[shapes["s2to1encoder.encoder_embed.weight"][0]],
        decoder=size_of_width[shapes["s1to2decoder.decoder_embed.weight"][0]],
        codebook_size=codebook[0],
        codebook_dim=codebook[1],
        n_tokens=shapes["s2to1encoder.latent_token_positional_embedding"][0],
        z_channels=shapes["quant_conv.weight"][1],
        encoder_multipliers=multipliers["encoder"],
        decoder_multipliers=multipliers["decoder"][::-1],
        encoder_queries="learned" if "s2to1encoder.query_1d" in shapes else "pooled",
        decoder_queries="learned" if "s1to2decoder.q_2d" in shapes else "first",
        qk_norm="s2to1encoder.transformer.0.self_attn.q_norm.weight" in shapes,
        adaptive_norm="decoder.adaptive.0.gamma.weight" in shapes,
        depth_to_space="decoder.conv_blocks.0.upsample.conv1.weight" in shapes,
        attention="encoder.mid.1.q.weight" in shapes,
        distill_width=distill[0] if distill else None,
        channels=channels,
        image_size=grid * 2 ** (len(multipliers["encoder"]) - 1),
    )


def _multipliers(shapes: Mapping[str, tuple[int, ...]], part: str, channels: int) -> tuple[int, ...]:
    widths: list[int] = []
    while (name := f"{part}.conv_blocks.{len(widths)}.res.0.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    return tuple(width // channels for width in widths)


def from_state_dict(weights: Mapping[str, Tensor], config: GigaTokConfig | None = None) -> GigaTok:
    """A model with the weights of one of GigaTok's files, every name and shape checked.

    Parameters
    ----------
    weights : mapping
        The state dict, unwrapped; its tensors become the model's, without a copy where they are float32.
    config : GigaTokConfig, optional
        From `read_yaml`; without it, what `identify` finds.

    Raises
    ------
    InputError
        If the weights do not fit.
    """
    config = config or identify({name: tuple(tensor.shape) for name, tensor in weights.items()})
    with on_meta():
        model = GigaTok(config)
    fit_weights(model, weights, "the GigaTok checkpoint")
    return model.eval().requires_grad_(False)


def read_original(source: Path | str, config: GigaTokConfig | None = None) -> GigaTok:
    """The tokenizer in one of GigaTok's checkpoints; nothing in it is run.

    Parameters
    ----------
    source : path
        What `weights.open_checkpoint` opens: a `.pt` file, a folder, `hf:owner/name/file`.
    config : GigaTokConfig, optional
        As for `from_state_dict`.

    Raises
    ------
    InputError
        If there is no such file, or it holds another model, or one that the configuration does not fit.
    """
    for scope in open_checkpoint(source).scopes:
        if _MARK in scope.tensors:
            shapes = {name: tensor.shape for name, tensor in scope.tensors.items()}
            config = config or identify(shapes)
            return from_state_dict({name: torch.from_numpy(scope.read(name)) for name in shapes}, config)
    raise InputError(f"{source} holds no 1-D GigaTok tokenizer: there is no {_MARK} in it")


def import_original(
    source: Path | str, output: Path | str, config: GigaTokConfig | None = None, *, overwrite: bool = False
) -> Manifest:
    """Put the tokenizer of one of GigaTok's checkpoints into a folder that `load_tokenizer` opens.

    Raises
    ------
    InputError
        As `read_original`; or if the folder holds other work.
    """
    model = read_original(source, config)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    inputs = {"weights": digest_json({name: digest_array(tensor.numpy()) for name, tensor in weights.items()})}
    settings = {"family": "gigatok", **asdict(model.config)}
    with Workspace(output, kind="tokenizer", settings=settings, inputs=inputs, overwrite=overwrite) as workspace:
        if workspace.manifest is not None:
            return workspace.manifest
        save_config(workspace.folder, model.config, model.config.image_size)
        save_tensors(workspace.path(WEIGHTS), weights)
        codebook = GigaTokTokenizer(model, "").codebook
        results = {
            "n_parameters": sum(tensor.numel() for tensor in weights.values()),
            "codebook_size": len(codebook),
            "codebook_digest": codebook.digest,
        }
        return workspace.finish([CONFIG, WEIGHTS], results)
