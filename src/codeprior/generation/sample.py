"""The verb `sample`: a checkpoint and a tokenizer in, images out.

Random numbers belong to a sample's index, so an image does not depend on the batch that it was made in or on the
number of processes: on a CPU in no bit, see `tiles`, elsewhere but for the rounding of matrix products.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codeprior.artifact import Workspace
from codeprior.checkpoint import Checkpoint, load_checkpoint
from codeprior.config import SampleConfig
from codeprior.device import resolve_device, resolve_precision
from codeprior.errors import InputError
from codeprior.generation.compiled import CompiledEngine
from codeprior.generation.conditions import Conditions, Prefixes
from codeprior.generation.decoding import Decoding, uniforms_of
from codeprior.generation.guidance import Guidance
from codeprior.generation.output import link, llamagen_name, write_grid, write_pngs, write_samples
from codeprior.generation.packed import pack
from codeprior.generation.refine import Chooser, chooser
from codeprior.generation.sequence import Engine, generate
from codeprior.generation.tiles import in_tiles, tile_size
from codeprior.parts import Parts, Rows, waiting
from codeprior.pixels import resize_bicubic, to_pixels
from codeprior.shards import Shard
from codeprior.tokenizers import Tokenizer, load_tokenizer

SAMPLES = "samples.npz"
GRID = "grid.png"
PNGS = "png"
_PARTS = "parts"
# Pixels that the tokenizer decodes at once: on a CPU larger activations leave the caches, on a GPU these fill it.
_PIXELS_AT_ONCE = {"cpu": 2**16, "cuda": 2**22}


def sample(config: SampleConfig) -> dict[str, Any]:
    """Sample images from a checkpoint; an interrupted run is continued.

    Where RANK and WORLD_SIZE are set, as by `torchrun`, each process makes its share of the images, and the last one to
    finish writes the result. A run may be continued by another number of processes.

    Raises
    ------
    InputError
        If the tokenizer's codebook is not the checkpoint's, or the checkpoint cannot do what is asked.
    """
    device = resolve_device(config.device)
    maker = Maker.of(config, device)
    with Workspace(
        config.output,
        kind="samples",
        settings={**config.settings(), "precision": maker.precision},
        inputs=maker.inputs,
        overwrite=config.overwrite,
        shard=Shard.from_environment(),
    ) as workspace:
        if not workspace.complete:
            _sample_all(config, workspace, maker)
        if workspace.manifest is None:
            return {"output": str(config.output), **waiting(workspace.shard)}
        if config.png:
            write_pngs(workspace.path(PNGS), workspace.path(SAMPLES))
        if config.llamagen_name:
            link(workspace.path(SAMPLES), llamagen_name(config, maker.checkpoint.config))
        return {"output": str(config.output), **workspace.manifest.results}


@dataclass(frozen=True, eq=False)
class Maker:
    """Everything that it takes to make the images of some indices."""

    config: SampleConfig
    device: torch.device
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    conditions: Conditions
    prefixes: Prefixes | None
    refiner: Checkpoint | None
    choose: Chooser
    engine: Engine
    precision: str
    """Of the transformer's products: "fp32" or "bf16"."""

    @classmethod
    def of(cls, config: SampleConfig, device: torch.device) -> Maker:
        """Open what the settings name.

        Raises
        ------
        InputError
            If something is missing, damaged, or does not fit the rest.
        """
        checkpoint = load_checkpoint(config.checkpoint, device, average=config.ema)
        tokenizer = load_tokenizer(config.tokenizer, device)
        refiner = None if config.refine is None else load_checkpoint(config.refine, device, average=config.ema)
        return cls.around(config, device, checkpoint, tokenizer, refiner)

    @classmethod
    def around(
        cls,
        config: SampleConfig,
        device: torch.device,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        refiner: Checkpoint | None = None,
    ) -> Maker:
        """The same of a checkpoint, whose model is made ready in place, and a tokenizer that have been opened."""
        checkpoint.config.verify(tokenizer.codebook.digest, "the tokenizer", len(tokenizer.codebook))
        if config.cfg_scale != 1 and not checkpoint.config.model.null_class:
            raise InputError(
                "this checkpoint was trained without class dropout and knows no guidance; use --cfg-scale 1"
            )
        choose = chooser(checkpoint, refiner, config.pick, config.refine_temperature)
        prefixes = Prefixes.of(checkpoint, config, tokenizer)
        conditions = Conditions.of(checkpoint, config, prefixes, device)
        precision = resolve_precision(config.precision, device)
        compiles = device.type == "cuda" if config.compile is None else config.compile
        pack(checkpoint.model, precision, in_order=not compiles)
        return cls(
            config,
            device,
            checkpoint,
            tokenizer,
            conditions,
            prefixes,
            refiner,
            choose,
            engine=CompiledEngine() if compiles else Engine(),
            precision=precision,
        )

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of all that it is made from."""
        digests = {
            "checkpoint": self.checkpoint.digest,
            "tokenizer": self.tokenizer.digest,
            "refine": None if self.refiner is None else self.refiner.digest,
            "captions": self.conditions.digest,
            "prefix_images": None if self.prefixes is None else self.prefixes.images.digest,
        }
        return {name: digest for name, digest in digests.items() if digest is not None}

    @property
    def image_size(self) -> int:
        """Side of the images that come out, pixels."""
        return self.config.image_size_eval or self.checkpoint.config.image_size

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 (B, H, W, 3) of the samples with these indices."""
        return self.decode(self.tokens(indices))

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> np.ndarray:
        """Images uint8 (B, H, W, 3) of codes (B, T), as many at once as suit the device."""
        n_pixels = self.checkpoint.config.image_size**2
        n_at_once = max(1, _PIXELS_AT_ONCE.get(self.device.type, _PIXELS_AT_ONCE["cuda"]) // n_pixels)
        return np.concatenate([self._decode(some) for some in tokens.split(n_at_once)])

    def _decode(self, tokens: Tensor) -> np.ndarray:
        decoded = self.tokenizer.decode(tokens, self.checkpoint.config.model.grid)
        if self.config.image_size_eval is not None:
            decoded = resize_bicubic(decoded, self.image_size)
        return to_pixels(decoded, self.tokenizer.pixel_range)

    def tokens(self, indices: np.ndarray) -> Tensor:
        """Codes int64 (B, T) of the samples with these indices."""
        config, n_tokens = self.config, self.checkpoint.config.model.n_tokens
        pick_seed = config.seed if config.pick_seed is None else config.pick_seed
        for_model, for_choice = (  # two rows of each sample's: one for the model, one for the choice
            torch.from_numpy(uniforms_of(seed, indices, (2, n_tokens))[:, row]).to(self.device)
            for row, seed in enumerate((config.seed, pick_seed))
        )
        condition = self.conditions.at(indices, self.device)
        given = None if self.prefixes is None else self.prefixes.at(indices, self.device)
        generated = generate(
            self.checkpoint.model,
            condition,
            for_model,
            Decoding(config.temperature, config.top_k, config.top_p),
            Guidance(config.cfg_scale, config.cfg_schedule, config.cfg_interval, config.cfg_window, config.cfg_power),
            None if given is None else self._as_generated(given),
            self.engine,
        )
        tokens = self.choose(generated, condition, for_choice)
        return tokens if given is None else torch.cat([given, tokens[:, given.shape[1] :]], dim=1)

    def _as_generated(self, codes: Tensor) -> Tensor:
        """Codes as what the model generates: themselves, or their clusters."""
        prior = self.checkpoint.prior
        return codes if prior is None else torch.from_numpy(prior.token_to_cluster).to(codes.device)[codes]


def _sample_all(config: SampleConfig, workspace: Workspace, maker: Maker) -> None:
    shape = (maker.image_size, maker.image_size, 3)
    parts = Parts(workspace.path(_PARTS), config.n_images, shape, np.dtype(np.uint8))
    n_made, time_s = _make_share(config, workspace, maker, parts)
    with workspace.alone():
        everything = np.arange(config.n_images)
        if workspace.complete or parts.missing(range(config.n_images)):
            return
        classes = maker.conditions.numbers(everything)
        order = np.random.default_rng([config.seed, config.n_images]).permutation(config.n_images)
        write_samples(workspace.path(SAMPLES), parts.take, shape, classes, order)
        write_grid(workspace.path(GRID), parts.take, classes, maker.conditions.names)
        results = {
            "n_images": config.n_images,
            "cfg_scale": config.cfg_scale,
            "images_per_s": round(n_made / time_s, 1) if n_made else None,
        }
        workspace.finish([SAMPLES], results)
        parts.remove()


def _make_share(config: SampleConfig, workspace: Workspace, maker: Maker, parts: Parts) -> tuple[int, float]:
    """Make what is missing of this process's images; how many these were and the seconds that it took."""
    tile = tile_size(maker.checkpoint.config.model, maker.device, config.batch_size)
    began, n_made = time.perf_counter(), 0

    def made(run: range) -> Iterator[Rows]:
        nonlocal n_made
        for images in in_tiles(maker.images, run, tile, config.batch_size, maker.device):
            n_made += len(images)
            yield images, {}

    _check_space(workspace, parts, sum(map(len, parts.missing(range(config.n_images)))))
    parts.make_share(workspace, tile, made, "sample")
    return n_made, time.perf_counter() - began


def _check_space(workspace: Workspace, parts: Parts, n_missing: int) -> None:
    """Refuse to begin what the disk cannot hold: the images, and all of them once more as they are joined."""
    needed = (n_missing + parts.n_items) * int(np.prod(parts.shape))
    free = shutil.disk_usage(workspace.folder).free
    if needed > free:
        raise InputError(
            f"{parts.n_items} images of {parts.shape[0]} x {parts.shape[1]} need {needed / 1e9:.3g} GB, the disk of "
            f"{workspace.folder} has {free / 1e9:.3g} GB left; choose another --output or sample fewer"
        )
