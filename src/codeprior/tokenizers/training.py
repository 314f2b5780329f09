"""Train a VQ tokenizer: straight-through gradients, dead codes restarted, no perceptual or adversarial loss."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codeprior.artifact import Workspace
from codeprior.config import TrainTokenizerConfig
from codeprior.crops import N_VIEWS, view
from codeprior.device import resolve_device, resolve_precision
from codeprior.errors import InputError
from codeprior.evaluation.metrics import psnr_db
from codeprior.images import ImageSet, open_images
from codeprior.pixels import to_pixels, to_tensor
from codeprior.progress import track
from codeprior.randomness import generator
from codeprior.runlog import METRICS, MetricsLog
from codeprior.states import States, state_tensors
from codeprior.tokenizers.vqgan import VQGAN, VQGANConfig, VQGANTokenizer, preset

_STEPS_BETWEEN_METRICS = 20
_CACHED_BYTES = 2**30
_N_EVALUATED = 2048


def train_tokenizer(config: TrainTokenizerConfig) -> dict[str, Any]:
    """Train a tokenizer; an interrupted run is continued as if it had not been.

    Raises
    ------
    InputError
        If the images, the architecture or the output are not as they should be.
    """
    device = resolve_device(config.device)
    architecture = preset(config.tokenizer, config.codebook_size, config.codebook_dim)
    if config.image_size % architecture.downsample:
        raise InputError(f"image_size must be a multiple of {architecture.downsample}, got {config.image_size}")
    images = open_images(config.data, bad_images=config.bad_images, seed=config.seed)
    with Workspace(
        config.output,
        kind="tokenizer",
        settings=config.settings(),
        inputs={"images": images.digest},
        overwrite=config.overwrite,
    ) as workspace:
        if not workspace.complete:
            _train(config, architecture, images, workspace, device)
        assert workspace.manifest is not None
        return {"output": str(config.output), **workspace.manifest.results}


def _train(
    config: TrainTokenizerConfig,
    architecture: VQGANConfig,
    images: ImageSet,
    workspace: Workspace,
    device: torch.device,
) -> None:
    trainer = Trainer(config, architecture, device)
    states = States(workspace.folder)
    trainer.load(states)
    batches = Batches(config, images)
    first = trainer.step
    log = MetricsLog(workspace.path(METRICS), after_step=first)
    began, images_per_s = time.monotonic(), 0.0
    for step in track(range(first, config.steps), "train-tokenizer", total=config.steps, start=first):
        losses = trainer.advance(to_tensor(batches[step], device))
        if trainer.step % _STEPS_BETWEEN_METRICS == 0 or trainer.step == config.steps:
            time_s = time.monotonic() - began
            images_per_s = (trainer.step - first) * config.batch_size / time_s
            log.write(
                step=trainer.step,
                **{name: float(loss) for name, loss in losses.items()},
                lr=trainer.optimizer.param_groups[0]["lr"],
                images_per_s=images_per_s,
                time_s=time_s,
            )
        if trainer.step % config.checkpoint_every == 0 and trainer.step < config.steps:
            trainer.save(states)
            workspace.checkpoint()
    train_psnr_db, codes_used = evaluate(trainer.model, images, config)
    tokenizer = VQGANTokenizer(trainer.model, config.image_size)
    results = {
        "train_psnr_db": round(train_psnr_db, 3),
        "codes_used": codes_used,
        "images_per_s": round(images_per_s, 1),
    }
    workspace.finish(tokenizer.write_files(workspace.folder), tokenizer.facts() | results)
    states.clear()


class Batches:
    """The training images of each step, decided by the seed and the step alone, so that any step can be repeated."""

    def __init__(self, config: TrainTokenizerConfig, images: ImageSet) -> None:
        self.config = config
        self.n_images = len(images)
        n_cached = _CACHED_BYTES // (3 * config.image_size**2)
        self._read = lru_cache(n_cached)(lambda index: images.read(index, config.image_size))
        self._order = lru_cache(2)(lambda epoch: generator(config.seed, "order", epoch).permutation(self.n_images))

    def __getitem__(self, step: int) -> np.ndarray:
        """A random view of each image of the step: uint8 (B, S, S, 3). Every image is seen once an epoch."""
        config = self.config
        positions = range(step * config.batch_size, (step + 1) * config.batch_size)
        chosen = [int(self._order(position // self.n_images)[position % self.n_images]) for position in positions]
        which = generator(config.seed, "view", step).integers(N_VIEWS[config.views], size=len(chosen))
        return np.stack([view(self._read(i), config.views, int(k)) for i, k in zip(chosen, which, strict=True)])


class Trainer:
    """The model, its optimizer, and how often each code was used since dead ones were last restarted."""

    def __init__(self, config: TrainTokenizerConfig, architecture: VQGANConfig, device: torch.device) -> None:
        self.config = config
        self.step = 0
        self.first_quantized = math.ceil(config.unquantized * config.steps)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.model = VQGAN(architecture).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.uses = torch.zeros(architecture.codebook_size, dtype=torch.int64, device=device)
        self.bf16 = resolve_precision(config.precision, device) == "bf16"

    def advance(self, images: Tensor) -> dict[str, Tensor]:
        """One optimizer step on images (B, 3, S, S); returns the parts of the loss."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.model.features(images)
        features = F.normalize(features.float(), dim=1)
        vectors = self._quantize(features) if self.step >= self.first_quantized else features
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            decoded = self.model.decode_vectors(straight_through(features, vectors))
        losses = {
            "mse": F.mse_loss(decoded.float(), images),
            "edges": edge_loss(decoded.float(), images),
            "codebook": F.mse_loss(vectors, features.detach()),
            "commitment": F.mse_loss(features, vectors.detach()),
        }
        loss = losses["mse"] + config.edge_weight * losses["edges"] + losses["codebook"]
        loss = loss + config.commitment * losses["commitment"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return {name: value.detach() for name, value in losses.items()}

    def _quantize(self, features: Tensor) -> Tensor:
        """The code vectors nearest to features (B, E, h, w), with dead codes restarted before and uses counted."""
        every, last = self.config.restart_every, self.config.restart_until * self.config.steps
        if self.step == self.first_quantized or (every and self.step % every == 0 and self.step < last):
            self._restart_dead_codes(features.detach())
        codes = self.model.quantize.codes(features)
        self.uses += torch.bincount(codes.flatten(), minlength=len(self.uses))
        return self.model.quantize.lookup(codes)

    @torch.no_grad()
    def _restart_dead_codes(self, features: Tensor) -> None:
        """Put codes unused since the last restart where features (B, E, h, w) are; at first this is all of them."""
        dead = (self.uses == 0).nonzero().flatten()
        flat = features.permute(0, 2, 3, 1).flatten(0, 2)
        n_dead, n_vectors = len(dead), len(flat)
        random = generator(self.config.seed, "restart", self.step)
        chosen = random.choice(n_vectors, n_dead, replace=n_dead > n_vectors)
        weight = self.model.quantize.embedding.weight
        weight[dead] = flat[torch.from_numpy(chosen).to(flat.device)]
        for moment in ("exp_avg", "exp_avg_sq"):
            if weight in self.optimizer.state:
                self.optimizer.state[weight][moment][dead] = 0
        self.uses.zero_()

    def save(self, states: States) -> None:
        """Write all that the next step depends on."""
        states.save(self.step, self._tensors(), {"step": self.step})

    def load(self, states: States) -> None:
        """Continue from where `save` was called last, if it was."""
        record = states.load(self._tensors())
        self.step = record["step"] if record else 0

    def _tensors(self) -> dict[str, Tensor]:
        return {**state_tensors(self.model, self.optimizer), "uses": self.uses}


def learning_rate(config: TrainTokenizerConfig, step: int) -> float:
    """Linear warm-up times a cosine that reaches zero after the last step."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    return config.lr * warm * (1 + math.cos(math.pi * step / config.steps)) / 2


def straight_through(features: Tensor, vectors: Tensor) -> Tensor:
    """The vectors, with a gradient that reaches the features as if nothing had been rounded."""
    return features + (vectors - features).detach()


def edge_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels, both ways; images (B, 3, H, W)."""
    error = decoded - images
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


@torch.inference_mode()
def evaluate(model: VQGAN, images: ImageSet, config: TrainTokenizerConfig) -> tuple[float, int]:
    """Mean PSNR in decibels and number of codes used, over at most 2,048 of the images, evenly spaced."""
    model.eval()
    device = next(model.parameters()).device
    chosen = np.unique(np.linspace(0, len(images) - 1, _N_EVALUATED).round().astype(np.int64))
    used = torch.zeros(model.config.codebook_size, dtype=torch.bool, device=device)
    scores = []
    for start in range(0, len(chosen), config.batch_size):
        pixels = images.read_many(chosen[start : start + config.batch_size], config.image_size)
        codes = model.encode(to_tensor(pixels, device))
        used[codes.flatten()] = True
        scores.append(psnr_db(pixels, to_pixels(model.decode(codes))))
    return float(np.concatenate(scores).mean()), int(used.sum())
