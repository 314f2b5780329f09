"""Generation: logits to a token, a token to a sequence, a sequence to an image; and the verb `sample`.

Random numbers belong to a sample's index, so an image does not depend on the batch that it was made in, but for the
rounding of matrix products, whose order of summation may change with the batch size.

Shapes: B batch, T tokens, V vocabulary of the model (tokens or clusters).
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codeprior.artifact import Workspace, write_atomically
from codeprior.captions import Captions, read_captions
from codeprior.checkpoint import Checkpoint, load_checkpoint
from codeprior.config import SampleConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.model import KVCache, Transformer
from codeprior.pixels import to_pixels
from codeprior.plots import image_grid
from codeprior.progress import track
from codeprior.refine import Chooser, chooser
from codeprior.tokenizers import Tokenizer, load_tokenizer

SAMPLES = "samples.npz"
GRID = "grid.png"
_PARTS = "parts"
_ROWS_WRITTEN_AT_ONCE = 1024
_GRID_ROWS, _GRID_COLUMNS = 20, 10


@dataclass(frozen=True)
class Decoding:
    """How logits become tokens."""

    cfg_scale: float = 1.0
    """Guidance: uncond + s (cond - uncond); 1 is none."""
    cfg_interval: int = -1
    """Guidance ends after this many tokens past the first; -1 never."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int = 0
    """Keep the k likeliest, and ties; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest that together reach this probability; 1 keeps all."""

    def scale_at(self, index: int) -> float:
        """Guidance scale of the token at `index`."""
        ended = 0 <= self.cfg_interval < index - 1  # LlamaGen counts from the token after the first
        return 1.0 if ended else self.cfg_scale


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with all but the k largest, and what ties with the k-th, at -inf."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with all but the likeliest at -inf: those before which less than, or exactly, p is gathered."""
    ordered, order = logits.sort(descending=True)
    gathered = ordered.softmax(-1).cumsum(-1)
    beyond = torch.zeros_like(gathered, dtype=torch.bool)
    beyond[:, 1:] = gathered[:, :-1] > p
    return logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)


def logits_to_probs(logits: Tensor, decoding: Decoding) -> Tensor:
    """Probabilities (B, V) of logits (B, V): temperature, then top-k, then top-p, as LlamaGen orders them."""
    logits = logits / decoding.temperature
    if decoding.top_k:
        logits = keep_top_k(logits, decoding.top_k)
    if decoding.top_p < 1:
        logits = keep_top_p(logits, decoding.top_p)
    return logits.softmax(-1)


def sample_tokens(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (B,) from probabilities (B, V) and uniform numbers (B,) in [0, 1), by the inverse distribution function.

    The distribution function ends in exactly 1, so a token of probability 0 is never drawn.
    """
    cdf = probs.double().cumsum(-1)
    return torch.searchsorted(cdf / cdf[:, -1:], uniforms.double()[:, None].contiguous(), right=True)[:, 0]


def guide(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: logits (2B, V), conditional then unconditional, to (B, V)."""
    conditional, unconditional = logits.chunk(2)
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


def prefill(model: Transformer, condition: Tensor | Captions, cache: KVCache) -> Tensor:
    """Logits (B, V) of the first token; fills the cache with the classes (B,) or captions."""
    no_tokens = torch.empty(len(condition), 0, dtype=torch.int64, device=cache.keys.device)
    return model(condition, no_tokens, cache)[:, -1]


def decode_one_token(model: Transformer, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits (B, V) of the token after `tokens` (B,); extends the cache."""
    return model.logits(model.tok_embeddings(tokens)[:, None], cache)[:, -1]


@torch.inference_mode()
def generate(model: Transformer, condition: Tensor | Captions, uniforms: Tensor, decoding: Decoding) -> Tensor:
    """Sample sequences of tokens.

    Parameters
    ----------
    model : Transformer
        In `eval()`.
    condition : Tensor of shape (B,), int64, or Captions
        Classes or captions.
    uniforms : Tensor of shape (B, T), float64
        Uniform numbers in [0, 1): all the randomness there is.
    decoding : Decoding
        With guidance, the conditional and the unconditional branch run as one batch.

    Returns
    -------
    tokens : Tensor of shape (B, T), int64
    """
    guided = decoding.cfg_scale != 1
    if guided:
        condition = model.with_null(condition)
    cache = KVCache(model.config, len(condition), device=uniforms.device, dtype=model.tok_embeddings.weight.dtype)
    logits = prefill(model, condition, cache)
    tokens: list[Tensor] = []
    for index in range(uniforms.shape[1]):
        if tokens:
            logits = decode_one_token(model, tokens[-1].repeat(2) if guided else tokens[-1], cache)
        logits = guide(logits, decoding.scale_at(index)) if guided else logits
        tokens.append(sample_tokens(logits_to_probs(logits, decoding), uniforms[:, index]))
    return torch.stack(tokens, dim=1)


def uniforms_of(seed: int, indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in [0, 1) that belong to (seed, index): float64 (len(indices), *shape)."""
    return np.stack([np.random.Generator(np.random.Philox(key=[seed, int(i)])).random(shape) for i in indices])


def classes_of(indices: np.ndarray, n_classes: int) -> np.ndarray:
    """Class of each sample by its index: equal shares, in any run of indices."""
    return np.asarray(indices) % n_classes


@dataclass(frozen=True)
class Conditions:
    """What images are sampled of, in equal shares: the classes of a checkpoint, or captions given to it."""

    names: tuple[str, ...]
    captions: Captions | None
    digest: str | None

    @classmethod
    def of(cls, checkpoint: Checkpoint, captions: Path | None, device: torch.device) -> Conditions:
        """The checkpoint's classes, or captions read from files.

        Raises
        ------
        InputError
            If the checkpoint takes captions and none are given, or the other way round, or they do not fit.
        """
        architecture = checkpoint.config.model
        if (architecture.caption_dim is None) != (captions is None):
            takes = "classes, not captions" if captions is not None else "captions; give their features as --captions"
            raise InputError(f"this checkpoint takes {takes}")
        if captions is None or architecture.caption_dim is None:
            return cls(checkpoint.config.class_names, None, None)
        found = read_captions(captions)
        padded = found.padded(architecture.caption_slots, architecture.caption_dim)
        return cls(found.names, padded.to(device), found.digest)

    def at(self, indices: np.ndarray, device: torch.device) -> Tensor | Captions:
        """The condition of the samples with these indices."""
        classes = torch.from_numpy(classes_of(indices, len(self.names))).to(device)
        return classes if self.captions is None else self.captions.take(classes)


def sample(config: SampleConfig) -> dict[str, Any]:
    """Sample images from a checkpoint; an interrupted run is continued.

    Raises
    ------
    InputError
        If the tokenizer's codebook is not the checkpoint's, or the checkpoint cannot do what is asked.
    """
    device = resolve_device(config.device)
    checkpoint = load_checkpoint(config.checkpoint, device, average=config.ema)
    tokenizer = load_tokenizer(config.tokenizer, device)
    _check_inputs(config, checkpoint, tokenizer)
    conditions = Conditions.of(checkpoint, config.captions, device)
    refiner = None if config.refine is None else load_checkpoint(config.refine, device, average=config.ema)
    choose = chooser(checkpoint, refiner, config.pick, config.refine_temperature)
    inputs = {"checkpoint": checkpoint.digest, "tokenizer": tokenizer.digest}
    inputs |= {} if refiner is None else {"refine": refiner.digest}
    inputs |= {} if conditions.digest is None else {"captions": conditions.digest}
    with Workspace(
        config.output,
        kind="samples",
        settings=config.settings(),
        inputs=inputs,
        overwrite=config.overwrite,
    ) as workspace:
        if not workspace.complete:
            _sample_all(config, workspace, checkpoint, tokenizer, conditions, choose, device)
        assert workspace.manifest is not None
        return {"output": str(config.output), **workspace.manifest.results}


def _check_inputs(config: SampleConfig, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    checkpoint.config.verify(tokenizer.codebook.digest, "the tokenizer", len(tokenizer.codebook))
    if config.cfg_scale != 1 and not checkpoint.config.model.null_class:
        raise InputError("this checkpoint was trained without class dropout and knows no guidance; use --cfg-scale 1")


def _sample_all(
    config: SampleConfig,
    workspace: Workspace,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    conditions: Conditions,
    choose: Chooser,
    device: torch.device,
) -> None:
    parts = _Parts(workspace.path(_PARTS))
    n_done = len(parts)
    began = time.perf_counter()
    starts = range(n_done, config.n_images, config.batch_size)
    n_batches_before = -(-n_done // config.batch_size)
    for start in track(starts, "sample", total=n_batches_before + len(starts), start=n_batches_before):
        indices = np.arange(start, min(start + config.batch_size, config.n_images))
        parts.append(_sample_batch(config, checkpoint, tokenizer, conditions, choose, indices, device))
        workspace.checkpoint()
    n_made, time_s = config.n_images - n_done, time.perf_counter() - began
    labels = classes_of(np.arange(config.n_images), len(conditions.names))
    order = np.random.default_rng([config.seed, config.n_images]).permutation(config.n_images)
    _write_npz(workspace.path(SAMPLES), parts, labels, order)
    _write_grid(workspace.path(GRID), parts, conditions.names)
    results = {
        "n_images": config.n_images,
        "cfg_scale": config.cfg_scale,
        "images_per_s": round(n_made / time_s, 1) if n_made else None,
    }
    workspace.finish([SAMPLES], results)
    parts.remove()


def _sample_batch(
    config: SampleConfig,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    conditions: Conditions,
    choose: Chooser,
    indices: np.ndarray,
    device: torch.device,
) -> np.ndarray:
    """Images uint8 (B, H, W, 3) of the samples with these indices."""
    architecture = checkpoint.config.model
    draws = uniforms_of(config.seed, indices, (2, architecture.n_tokens))  # one for the model, one for the choice
    for_model, for_choice = torch.from_numpy(draws).to(device).unbind(1)
    condition = conditions.at(indices, device)
    decoding = Decoding(config.cfg_scale, config.cfg_interval, config.temperature, config.top_k, config.top_p)
    tokens = choose(generate(checkpoint.model, condition, for_model, decoding), condition, for_choice)
    with torch.inference_mode():
        return to_pixels(tokenizer.decode(tokens, architecture.grid), tokenizer.pixel_range)


class _Parts:
    """Images made so far, a file a batch: what a killed run leaves for the next."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.starts = [0]  # index of each file's first image, and of the next file's
        while self._path(self.starts[-1]).exists():
            self.starts.append(self.starts[-1] + len(self._read(self.starts[-1])))

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""
        return self._read(0).shape[1:]

    def append(self, images: np.ndarray) -> None:
        """Add images, as one file."""
        with write_atomically(self._path(len(self))) as temporary, open(temporary, "wb") as file:
            np.save(file, images)
        self.starts.append(len(self) + len(images))

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Images at these indices."""
        images = np.empty((len(indices), *self.image_shape), dtype=np.uint8)
        for start, end in zip(self.starts, self.starts[1:], strict=False):
            inside = (indices >= start) & (indices < end)
            images[inside] = self._read(start)[indices[inside] - start]
        return images

    def remove(self) -> None:
        """Remove the files, once their images stand elsewhere."""
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.npy"

    def _read(self, start: int) -> np.ndarray:
        return np.load(self._path(start), mmap_mode="r")


def _write_npz(path: Path, parts: _Parts, labels: np.ndarray, order: np.ndarray) -> None:
    """Write images (arr_0) and labels (arr_1) in `order`, as a stream: the images may not fit in memory."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(order), *parts.image_shape)}
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in _chunks(order):
                file.write(parts.take(chunk).tobytes())
        with archive.open("arr_1.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, labels[order], version=(1, 0))


def _chunks(indices: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), _ROWS_WRITTEN_AT_ONCE):
        yield indices[start : start + _ROWS_WRITTEN_AT_ONCE]


def _write_grid(path: Path, parts: _Parts, class_names: tuple[str, ...]) -> None:
    """A picture of the first samples of (up to 20) classes: one row a class."""
    n_classes = len(class_names)
    n_columns = max(1, min(_GRID_COLUMNS, len(parts) // n_classes))
    shown = np.unique(np.linspace(0, min(n_classes, len(parts)) - 1, _GRID_ROWS).astype(int))
    indices = shown[:, None] + n_classes * np.arange(n_columns)
    rows = parts.take(indices.ravel()).reshape(*indices.shape, *parts.image_shape)
    image_grid(rows, [class_names[c] for c in shown], path)
