"""GigaTok's YAML: the architecture that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from codeprior.errors import InputError
from codeprior.tokenizers.gigatok import GigaTokConfig

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
