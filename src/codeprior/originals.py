"""What an original's checkpoint holds: which model, of which sizes, told by the names and shapes of its tensors.

What a state dict does not tell (the number of heads, the grid of a rotary model) is taken from the settings that a
training run left in the file, from the table of published sizes, or from the user; what was taken on trust is named.
Sources: LlamaGen ce98ec4 (`autoregressive/models/gpt.py`, `tokenizer/tokenizer_image/vq_model.py`), GigaTok 182920c
(`autoregressive/models/gpt_1d.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from codeprior.errors import InputError
from codeprior.families import FAMILIES as CODEBOOKS
from codeprior.model import PRESETS, ModelConfig, Transformer
from codeprior.pickles import StoredTensor
from codeprior.tensors import on_meta
from codeprior.tokenizers.folder import OF_TRAINING, FolderTokenizer, Shapes
from codeprior.tokenizers.loading import FAMILIES as TOKENIZERS
from codeprior.weights import Checkpoint, Scope

CAN = "LlamaGen's VQ-16 and VQ-8 (IAR's too), GigaTok's 1-D tokenizers, and the transformers of both"
_STRAY = re.compile(r"layers\.\d+\.attention\.kv_cache\.[kv]_cache|freqs_cis|causal_mask")  # left by sampling
_ADAPTIVE = re.compile(r"(layers\.\d+\.)?(adaLN_modulation|final_adaLN|adaLN|ada_gss)\b")
_SHOWN = 6


@dataclass(frozen=True)
class Given:
    """What the user says where a file does not."""

    image_size: int | None = None
    """Side of the images, pixels."""
    grid: tuple[int, int] | None = None
    """Rows and columns of tokens, of the tokenizer that goes with a transformer."""
    n_heads: int | None = None
    n_classes: int | None = None
    config: Any = None
    """A tokenizer's config, from elsewhere: GigaTok's YAML."""
    wrapper: str | None = None


@dataclass(frozen=True)
class Original:
    """A model in somebody's checkpoint: its config, and its tensors, still in the file."""

    what: str
    config: Any
    tensors: Mapping[str, StoredTensor]
    wrapper: str
    tokenizer: type[FolderTokenizer] | None = None
    """The family of a tokenizer; None of a transformer."""
    image_size: int | None = None
    average: Mapping[str, StoredTensor] | None = None
    """A transformer's weights averaged over steps, where the file has them too."""
    left_out: tuple[str, ...] = ()
    """What the file has besides: a training run's other entries, tensors that sampling left behind."""
    assumed: dict[str, Any] = field(default_factory=dict)
    """What the file does not say."""


def recognise(checkpoint: Checkpoint, given: Given) -> Original:
    """Which model a checkpoint holds.

    Raises
    ------
    InputError
        If it is none that can be converted, lacks tensors or has some of another shape or unknown names, or something
        must be said that the file does not tell.
    """
    scopes = [scope for scope in checkpoint.scopes if given.wrapper in (None, scope.wrapper)]
    if not scopes:
        found = ", ".join(scope.wrapper for scope in checkpoint.scopes if scope.wrapper) or "none"
        raise InputError(f"{checkpoint.source} has no {given.wrapper!r} around its weights; it has {found}")
    for scope in scopes:
        shapes = _shapes(scope)
        for tokenizer in TOKENIZERS:
            try:
                config = tokenizer.identify(shapes)
            except InputError as error:
                raise InputError(f"{checkpoint.source}: {error}") from None
            if config is not None:
                return _tokenizer(checkpoint, scope, tokenizer, config, given)
    # LlamaGen's samplers read a transformer's own weights, not the averaged ones.
    for scope in sorted(scopes, key=lambda scope: scope.wrapper == "ema"):
        if "tok_embeddings.weight" in scope.tensors:
            return _transformer(checkpoint, scope, given)
    raise InputError(_refusal(checkpoint))


def _refusal(checkpoint: Checkpoint) -> str:
    """Why nothing here can be converted, and what it is instead, if that is known."""
    lines = "\n".join(checkpoint.scopes[0].tensors)
    known = next((row.name for row in CODEBOOKS if row.is_told_by(lines)), None)
    said = f"by its names it is {known}, whose codebook `extract` reads" if known else "its names are unknown here"
    return f"{checkpoint.source} holds no model that can be converted: {said}; those that can are {CAN}"


def _tokenizer(
    checkpoint: Checkpoint, scope: Scope, family: type[FolderTokenizer], config: Any, given: Given
) -> Original:
    said = checkpoint.settings("codebook_l2_norm")
    assumed: dict[str, Any] = {}
    if given.config is not None:
        if type(given.config) is not type(config):
            raise InputError(f"{checkpoint.source} is a {family.family} tokenizer, which no --yaml describes")
        config = replace(
            given.config, channels=config.channels, image_size=config.image_size
        )  # it has no words for them
    elif isinstance(said[0] if said else None, bool):
        config = replace(config, normalize=said[0])
    else:
        assumed["codes are compared"] = "normalised"
    only = getattr(config, "image_size", None)
    if only is not None and given.image_size not in (None, only):
        raise InputError(f"{checkpoint.source} takes images of {only} pixels only, got {given.image_size}")
    size = only or given.image_size or _whole(checkpoint.settings("image_size"))
    if size is None:
        size = assumed["image_size"] = 256
    with on_meta():
        model = family.model_class(config)
    _check(checkpoint, scope, _shapes_of(model), OF_TRAINING)
    family(model, size).grid(size)  # refuses a size that it cannot encode
    what = f"{family.family} tokenizer"
    left_out = _elsewhere(checkpoint, scope)
    return Original(what, config, scope.tensors, scope.wrapper, family, size, left_out=left_out, assumed=assumed)


def _transformer(checkpoint: Checkpoint, scope: Scope, given: Given) -> Original:
    tensors = {name: tensor for name, tensor in scope.tensors.items() if not _STRAY.fullmatch(name)}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if adaptive := [name for name in shapes if _ADAPTIVE.match(name)]:
        raise InputError(
            f"{checkpoint.source} has GigaTok's adaptive norms ({adaptive[0]}), which none of its released models has "
            "and which are not supported here"
        )
    assumed: dict[str, Any] = {}
    try:
        config = _architecture(checkpoint, shapes, given, assumed)
    except InputError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{checkpoint.source} is no whole transformer: {error} is missing or of another shape"
        ) from None
    with on_meta():
        model = Transformer(config)
    _check(checkpoint, Scope(scope.wrapper, tensors), _shapes_of(model), ())
    averages = (s.tensors for s in checkpoint.scopes if s.wrapper == "ema" and scope.wrapper != "ema")
    average = next((found for found in averages if found.keys() == tensors.keys()), None)
    left_out = (*_elsewhere(checkpoint, scope), *(name for name in scope.tensors if name not in tensors))
    if average is not None:
        left_out = tuple(name for name in left_out if name != "ema")
    size = given.image_size or _whole(checkpoint.settings("image_size"))
    return Original(
        _describe(config), config, tensors, scope.wrapper, None, size, average, left_out=left_out, assumed=assumed
    )


def _describe(config: ModelConfig) -> str:
    sizes = (config.n_layers, config.n_heads, config.dim)
    name = next((name for name, preset in PRESETS.items() if preset[:3] == sizes), f"dim {config.dim}")
    condition = "class" if config.caption_dim is None else "text"
    places = ", learned positions" if config.positions == "learned" else ""
    return f"{condition}-conditional transformer, {name}{places}"


def _architecture(checkpoint: Checkpoint, shapes: Shapes, given: Given, assumed: dict[str, Any]) -> ModelConfig:
    """The config of a transformer; what is taken on trust goes into `assumed`."""
    vocab_size, dim = shapes["tok_embeddings.weight"]
    layers = (int(match[1]) for name in shapes if (match := re.match(r"layers\.(\d+)\.", name)))
    n_layers = 1 + max(layers, default=0)
    if shapes["layers.0.attention.wqkv.weight"] != (3 * dim, dim):
        raise InputError(f"{checkpoint.source} has fewer heads for keys than for queries, which is not supported here")
    condition = _condition(checkpoint, shapes, given, assumed)
    positions = shapes.get("positional_embedding")
    n_slots = condition.get("caption_slots", 1)
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=_n_heads(checkpoint, shapes, n_layers, given, assumed),
        vocab_size=vocab_size,
        grid=_grid(checkpoint, positions[0] - n_slots if positions else None, given),
        ffn_multiple=_ffn_multiple(dim, shapes["layers.0.feed_forward.w1.weight"][0]),
        positions="learned" if positions else "rotary",
        qk_norm="layers.0.attention.q_norm.weight" in shapes,
        **condition,
    )


def _condition(checkpoint: Checkpoint, shapes: Shapes, given: Given, assumed: dict[str, Any]) -> dict[str, Any]:
    if "cls_embedding.uncond_embedding" in shapes:
        n_slots, width = shapes["cls_embedding.uncond_embedding"]
        return {"n_classes": 0, "caption_dim": width, "caption_slots": n_slots}
    n_rows = shapes["cls_embedding.embedding_table.weight"][0]
    n_classes = given.n_classes or _whole(checkpoint.settings("num_classes"))
    if n_classes is None:
        n_classes = assumed["n_classes"] = n_rows - 1  # and the null class, as in every released model
    if n_rows - n_classes not in (0, 1):
        raise InputError(f"{checkpoint.source} has {n_rows} class vectors, which do not fit {n_classes} classes")
    return {"n_classes": n_classes, "null_class": n_rows > n_classes}


def _n_heads(checkpoint: Checkpoint, shapes: Shapes, n_layers: int, given: Given, assumed: dict[str, Any]) -> int:
    dim = shapes["tok_embeddings.weight"][1]
    if norm := shapes.get("layers.0.attention.q_norm.weight"):
        return dim // norm[0]
    if given.n_heads is not None:
        return given.n_heads
    for name, (layers, heads, width, _) in PRESETS.items():
        if (layers, width) == (n_layers, dim):
            assumed["n_heads"] = f"{heads}, as {name}"
            return heads
    raise InputError(
        f"{checkpoint.source} has {n_layers} layers of width {dim}, no published size; give its number of --n-heads"
    )


def _grid(checkpoint: Checkpoint, n_tokens: int | None, given: Given) -> tuple[int, int]:
    if given.grid is not None and n_tokens in (None, math.prod(given.grid)):
        return given.grid
    if n_tokens is None:
        size, downsample = (_whole(checkpoint.settings(name)) for name in ("image_size", "downsample_size"))
        size = given.image_size or size
        if size is None:
            raise InputError(
                f"{checkpoint.source} does not tell its grid; give --image-size (256 for LlamaGen's c2i_B_256.pt, 384 "
                "for c2i_B_384.pt), and --tokenizer where that is not VQ-16"
            )
        downsample = downsample or 16
        if size % downsample:
            raise InputError(f"image_size must be a multiple of {downsample} (pixels a token), got {size}")
        return size // downsample, size // downsample
    side = math.isqrt(n_tokens)
    if side**2 != n_tokens:
        raise InputError(f"{checkpoint.source} has positions of {n_tokens} tokens, which are no square")
    return side, side


def _ffn_multiple(dim: int, width: int) -> int:
    """What the feed-forward's width was rounded up to a multiple of; 256 in every published model."""
    exact = int(8 * dim / 3)
    for multiple in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        if -(-exact // multiple) * multiple == width:
            return multiple
    raise ValueError(f"a feed-forward of width {width}")


def _check(checkpoint: Checkpoint, scope: Scope, expected: Shapes, may: tuple[str, ...]) -> None:
    """Refuse a file that lacks tensors of the model, has some of another shape, or others that are not known."""
    found = _shapes(scope)
    problems = {
        "lacks": expected.keys() - found.keys(),
        "has of another shape": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
        "has, unknown here,": found.keys() - expected.keys() - set(may),
    }
    if any(problems.values()):
        said = "; ".join(f"it {what} {_list(names)}" for what, names in problems.items() if names)
        raise InputError(f"{checkpoint.source} cannot be converted: {said}")


def _elsewhere(checkpoint: Checkpoint, scope: Scope) -> tuple[str, ...]:
    """Entries of the file that hold tensors too, beside the wrapper of these: optimizers, discriminators, averages."""
    if not scope.wrapper:
        return ()
    entries = (name.partition(".")[0] for bare in checkpoint.scopes if not bare.wrapper for name in bare.tensors)
    return tuple(sorted(set(entries) - {scope.wrapper}))


def _list(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def _shapes(scope: Scope) -> Shapes:
    return {name: tensor.shape for name, tensor in scope.tensors.items()}


def _shapes_of(model: Any) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _whole(values: list[Any]) -> int | None:
    """The one whole number among settings, if they agree."""
    found = {value for value in values if isinstance(value, int) and not isinstance(value, bool)}
    return found.pop() if len(found) == 1 else None
