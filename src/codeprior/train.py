"""The verb `train`: a class-conditional transformer on the codes of images, with a prior or without.

Whatever is random in a step is drawn from (seed, purpose, step or epoch), so there is no random state to keep, and
variants of equal seeds see the same images, views and dropped classes. A resumed run is the uninterrupted one: bit for
bit on CPU, and on a GPU as far as its kernels repeat themselves.
"""

from __future__ import annotations

import contextlib
import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from codeprior.artifact import Workspace, short
from codeprior.checkpoint import CheckpointConfig, save_checkpoint
from codeprior.codes import CodeStore
from codeprior.config import TrainConfig
from codeprior.device import resolve_device, resolve_precision
from codeprior.errors import InputError
from codeprior.model import Transformer
from codeprior.objectives import build, resolve_objective
from codeprior.prior import CodebookPrior
from codeprior.progress import announce, track
from codeprior.runlog import METRICS, MetricsLog
from codeprior.sanity import sanity, sentence, warnings
from codeprior.tensors import STATE, load_state, save_state

STEPS_BETWEEN_LOGS = 10
_MATH_ATTENTION_TOKENS = 256  # beyond, its T x T matrices cost more memory than its speed is worth


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a transformer; an interrupted run is continued exactly.

    Raises
    ------
    InputError
        If codes, held-out codes and prior belong to different codebooks, or any of them or a setting is not as it
        should be, or training diverges.
    """
    device = resolve_device(config.device)
    codes = CodeStore.open(config.codes)
    heldout = None if config.heldout_codes is None else CodeStore.open(config.heldout_codes)
    prior = None if config.prior is None else CodebookPrior.load(config.prior)
    _check_inputs(codes, heldout, prior)
    config = replace(config, objective=resolve_objective(config.objective, prior))
    named = {"codes": codes, "heldout_codes": heldout, "prior": prior}
    with Workspace(
        config.output,
        kind="checkpoint",
        settings=config.settings(),
        inputs={name: given.digest for name, given in named.items() if given is not None},
        overwrite=config.overwrite,
    ) as workspace:
        if not workspace.complete:
            _Run(config, workspace, device, codes, heldout, prior).finish()
        assert workspace.manifest is not None
        return {"output": str(config.output), **workspace.manifest.results}


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of a step (from 0): linear warm-up, constant, then a fall over the last `decay` share of the steps.

    With decay 0 it is LlamaGen's, with 0.2 and sqrt GigaTok's, with 1 and cosine IAR2's.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    left = min(1.0, (config.steps - step) / (config.decay * config.steps)) if config.decay else 1.0
    share = {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "sqrt": 1 - math.sqrt(1 - left)}
    return config.final_lr + (config.lr - config.final_lr) * share[config.decay_form]


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Random numbers that belong to (seed, purpose, index), whatever was drawn before."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


def batch_rows(seed: int, step: int, batch_size: int, n_images: int, n_views: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images and which view of each a step sees: int64 (B,) twice.

    Every epoch is a new order of all images with a random view of each; batches run on over its end.
    """
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), n_images)
    images, views = np.empty(batch_size, dtype=np.int64), np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order, view_of_image = _epoch(seed, int(epoch), n_images, n_views)
        images[here] = order[places[here]]
        views[here] = view_of_image[images[here]]
    return images, views


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, n_images: int, n_views: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        generator(seed, "order", epoch).permutation(n_images),
        generator(seed, "view", epoch).integers(n_views, size=n_images),
    )


def parameter_groups(model: Transformer, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: decay on matrices, embeddings and output included; none on the norms' weights (LlamaGen)."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


@dataclass
class _Record:
    """What a run knows besides weights and optimizer; stored with them."""

    step: int = 0
    """Steps taken."""
    nats_sum: float = 0.0
    """Sum of the training losses since the last log."""
    window_time_s: float = 0.0
    """Time spent on them."""
    time_s: float = 0.0
    """Time spent on training steps before them."""
    train_nats: float | None = None
    """Last logged training loss."""
    heldout_nats: float | None = None
    """Last held-out loss."""


class _Run:
    """A training run: the state that a step changes, and the steps."""

    def __init__(
        self,
        config: TrainConfig,
        workspace: Workspace,
        device: torch.device,
        codes: CodeStore,
        heldout: CodeStore | None,
        prior: CodebookPrior | None,
    ) -> None:
        self.config, self.workspace, self.device = config, workspace, device
        self.codes, self.heldout = codes, heldout
        self.objective = build(config, codes, prior)
        usage = codes.usage()
        self.sanity, self.warnings = sanity(self.objective, usage), warnings(config, prior, usage)
        for line in (sentence(self.sanity), *self.warnings):
            announce(line)
        self.objective.to(device)
        self.model = self.objective.model
        self.precision = resolve_precision(config.precision, device)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.weight_decay), lr=config.lr, betas=(0.9, config.beta2), fused=True
        )
        self.average = None
        if config.ema_decay:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
            self.average.update_parameters(self.model)  # the first only copies: the average begins with the model
        self.record = _Record()
        if workspace.path(STATE).exists():
            self.record = _Record(**load_state(workspace.path(STATE), self.model, self.optimizer, self._averaged))
        self.nats_sum = torch.tensor(self.record.nats_sum, device=device)  # on the device, so that no step waits
        self.metrics = MetricsLog(workspace.path(METRICS), after_step=self.record.step or -1)
        if self.record.step == 0:
            self.metrics.write(step=0, **self.sanity)

    def finish(self) -> None:
        """Take the steps that are left and write the checkpoint."""
        config, first = self.config, self.record.step
        with _scoped(self.device, self.codes.grid):
            label = f"train {config.output.name}"
            for step in track(range(first + 1, config.steps + 1), label, total=config.steps, start=first):
                self._take_step()
                last = step == config.steps
                if step % STEPS_BETWEEN_LOGS == 0 or last:
                    self._log()
                if self.heldout is not None and (step % config.validate_every == 0 or last):
                    self._validate(self.heldout)
                if step % config.checkpoint_every == 0 and not last:
                    self._checkpoint()
        kept = (self._description(), self._kept_prior, self._averaged)
        files = save_checkpoint(self.workspace.folder, self.model, *kept)
        self.workspace.finish(files, self._results())
        self.workspace.path(STATE).unlink(missing_ok=True)

    def _take_step(self) -> None:
        began = time.perf_counter()
        config, step = self.config, self.record.step
        rows = batch_rows(config.seed, step, config.batch_size, *self.codes.codes.shape[:2])
        tokens, classes = self._batch(self.codes, *rows)
        classes = self._drop_classes(classes)
        torch.manual_seed(int(generator(config.seed, "dropout", step).integers(2**63)))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        self.optimizer.zero_grad()
        self.objective.train()
        for part in zip(classes.chunk(config.accumulate), tokens.chunk(config.accumulate), strict=True):
            with self._autocast():
                loss = self.objective(*part) / config.accumulate
            loss.backward()
            self.nats_sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.record.step += 1
        self.record.window_time_s += time.perf_counter() - began

    @property
    def _kept_prior(self) -> CodebookPrior | None:
        return self.objective.prior if self.objective.needs_prior else None

    @property
    def _averaged(self) -> torch.nn.Module | None:
        return None if self.average is None else self.average.module

    def _drop_classes(self, classes: Tensor) -> Tensor:
        """Replace a share of the classes by the null class."""
        uniforms = generator(self.config.seed, "class", self.record.step).random(len(classes))
        dropped = torch.from_numpy(uniforms < self.config.class_dropout).to(self.device)
        return classes.masked_fill(dropped, self.model.config.n_classes)

    def _batch(self, store: CodeStore, images: np.ndarray, views: np.ndarray | int) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) and classes (B,) of some rows of a store, on the device."""
        tokens = store.codes[images, views].astype(np.int64)
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(store.labels[images]).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def _log(self) -> None:
        """Record the mean training loss since the last log."""
        record, n_steps = self.record, (self.record.step - 1) % STEPS_BETWEEN_LOGS + 1
        began = time.perf_counter()
        nats = float(self.nats_sum) / n_steps  # here a GPU is waited for, so here its time shows
        record.window_time_s += time.perf_counter() - began
        if not math.isfinite(nats):
            raise InputError(f"training diverged before step {record.step} (loss {nats}); lower --lr")
        record.train_nats = nats
        record.time_s += record.window_time_s
        self.metrics.write(
            step=record.step,
            **{f"train_{self.objective.loss_unit}": nats},
            lr=learning_rate(record.step - 1, self.config),
            images_per_s=n_steps * self.config.batch_size / record.window_time_s,
            time_s=record.time_s,
        )
        record.window_time_s = 0.0
        self.nats_sum.zero_()

    @torch.no_grad()
    def _validate(self, store: CodeStore) -> None:
        """Record the held-out loss: images from all over the store, first views, true classes, no dropout."""
        self.objective.eval()
        n_images, total = min(len(store), self.config.heldout_images), 0.0
        chosen = np.arange(n_images) * len(store) // n_images  # stores are often in the order of the classes
        for start in range(0, n_images, self.config.batch_size):
            rows = chosen[start : start + self.config.batch_size]
            tokens, classes = self._batch(store, rows, 0)
            with self._autocast():
                total += len(rows) * float(self.objective.token_nats(classes, tokens))
        self.record.heldout_nats = total / n_images
        heldout = {f"heldout_{self.objective.unit}": self.record.heldout_nats}
        self.metrics.write(step=self.record.step, **heldout, time_s=self.record.time_s)

    def _checkpoint(self) -> None:
        record = replace(self.record, nats_sum=float(self.nats_sum))
        save_state(self.workspace.path(STATE), self.model, self.optimizer, asdict(record), self._averaged)
        self.workspace.checkpoint()

    def _description(self) -> CheckpointConfig:
        return CheckpointConfig(
            model=self.model.config,
            class_names=self.codes.class_names,
            image_size=self.codes.image_size,
            codebook_size=self.codes.codebook_size,
            codebook_digest=self.codes.codebook_digest,
            tokenizer_digest=self.codes.tokenizer_digest,
            objective=self.objective.name,
            prior_digest=None if self._kept_prior is None else self.workspace.inputs.get("prior"),
        )

    def _results(self) -> dict[str, Any]:
        return {
            "objective": self.objective.name,
            "method": None if self.objective.prior is None else self.objective.prior.method,
            "vocab_size": self.model.config.vocab_size,
            **self.sanity,
            f"train_{self.objective.loss_unit}": self.record.train_nats,
            f"heldout_{self.objective.unit}": self.record.heldout_nats,
            "images_per_s": round(self.config.steps * self.config.batch_size / self.record.time_s, 1),
            "precision": self.precision,
            "codebook_digest": self.codes.codebook_digest,
            "prior_digest": self.workspace.inputs.get("prior"),
            **({"warnings": self.warnings} if self.warnings else {}),
        }


@contextlib.contextmanager
def _scoped(device: torch.device, grid: tuple[int, int]) -> Iterator[None]:
    """Leave torch's own random numbers and its choice of attention kernels as they were found.

    On CPU, and for few tokens, plain matrix products beat the fused kernel, whose backward pass takes half of a step.
    """
    plain = device.type == "cpu" and grid[0] * grid[1] <= _MATH_ATTENTION_TOKENS
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
        yield


def _check_inputs(codes: CodeStore, heldout: CodeStore | None, prior: CodebookPrior | None) -> None:
    if prior is not None:
        prior.verify(codes.codebook_digest, "the code store")
    if heldout is None:
        return
    if heldout.codebook_digest != codes.codebook_digest:
        ours, other = short(codes.codebook_digest), short(heldout.codebook_digest)
        raise InputError(
            f"the training codes belong to codebook {ours}, the held-out codes to codebook {other}; "
            "encode both with one tokenizer"
        )
    if heldout.grid != codes.grid:
        raise InputError(f"training codes lie on a grid of {codes.grid}, held-out codes of {heldout.grid}")
    if heldout.class_names != codes.class_names:
        both = (codes.class_names, heldout.class_names)
        ours, other = (f"{len(names)} classes ({', '.join(names[:3])}, ...)" for names in both)
        raise InputError(f"training codes have {ours}, held-out codes {other}; both need the same classes")
