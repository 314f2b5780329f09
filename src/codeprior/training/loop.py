"""The verb `train`: a class-conditional transformer on the codes of images, with a prior or without.

Whatever is random in a step is drawn from (seed, purpose, step or epoch), so there is no random state to keep, and
variants of equal seeds see the same images, views and dropped classes. A resumed run is the uninterrupted one: bit for
bit on CPU, and on a GPU as far as its kernels repeat themselves.

A batch is that of all processes. It is worked off in n parts, where n is processes times `--accumulate`; dropout
belongs to the part, so that two processes are one process with twice as many parts, but for the order of sums.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from codeprior.artifact import Workspace, seal
from codeprior.checkpoint import Checkpoint, CheckpointConfig, save_checkpoint
from codeprior.codes import CodeStore
from codeprior.config import TrainConfig
from codeprior.device import resolve_precision
from codeprior.errors import InputError, StoppedError
from codeprior.machine import keep_freed_memory
from codeprior.model import Transformer
from codeprior.objectives import Objective, build, resolve_objective
from codeprior.prior import CodebookPrior
from codeprior.progress import announce, track
from codeprior.randomness import generator
from codeprior.runlog import METRICS, SNAPSHOTS, MetricsLog
from codeprior.sanity import sanity, sentence, warnings
from codeprior.states import States, state_tensors, step_of
from codeprior.training import optimizer
from codeprior.training.captured import Captured
from codeprior.training.data import Batch, Feed, read_batch, to_device
from codeprior.training.distributed import Team
from codeprior.training.inputs import Inputs
from codeprior.training.interruption import Interruption
from codeprior.training.logs import peak_memory_bytes, peak_tflops, speed
from codeprior.training.previews import Previews

STEPS_BETWEEN_LOGS = 10


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a transformer; an interrupted run is continued exactly.

    Under `torchrun` all processes train together, and the first one returns the results, the others nothing.

    Raises
    ------
    InputError
        If codes, held-out codes and prior belong to different codebooks, or any of them or a setting is not as it
        should be, or training diverges, or a disk is full.
    StoppedError
        After SIGTERM or Ctrl-C, when the step that was being taken is done and the state is saved.
    """
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(
            Team(config.device, sharded=config.shard, log_with=config.log_with, folder=config.output)
        )
        team.together(lambda: _check_parts(config, team))
        inputs = team.together(lambda: Inputs.open(config))
        config = replace(config, objective=resolve_objective(config.objective, inputs.prior))
        workspace = team.main_does(lambda: stack.enter_context(_open_workspace(config, inputs)))
        if not team.largest(workspace is not None and workspace.complete):
            Run(config, team, inputs, workspace).finish()
        if workspace is None:
            return {}
        assert workspace.manifest is not None
        return {"output": str(config.output), **workspace.manifest.results}


def _open_workspace(config: TrainConfig, inputs: Inputs) -> Workspace:
    return Workspace(
        config.output,
        kind="checkpoint",
        settings=config.settings(),
        inputs=inputs.digests,
        overwrite=config.overwrite,
    )


def _check_parts(config: TrainConfig, team: Team) -> None:
    n_parts = team.size * config.accumulate
    if config.batch_size % n_parts:
        raise InputError(
            f"batch_size must be a multiple of {n_parts} parts (processes: {team.size}, accumulate: "
            f"{config.accumulate}), got {config.batch_size}"
        )


@dataclass
class Record:
    """What a run knows besides weights and optimizer; stored with them."""

    step: int = 0
    """Steps taken."""
    nats_sums: tuple[float, ...] = ()
    """Sum of the training losses since the last log, of each process."""
    window_time_s: float = 0.0
    """Time spent on them."""
    time_s: float = 0.0
    """Time spent on training steps before them."""
    train_nats: float | None = None
    """Last logged training loss."""
    heldout_nats: float | None = None
    """Last held-out loss."""


class Run:
    """A training run: the state that a step changes, and the steps. `workspace` is the main process's alone."""

    def __init__(self, config: TrainConfig, team: Team, inputs: Inputs, workspace: Workspace | None) -> None:
        self.config, self.team, self.inputs, self.workspace = config, team, inputs, workspace
        self.precision = resolve_precision(config.precision, team.device)
        self.objective: Objective = build(config, inputs.codes, inputs.prior)
        self.sanity, self.warnings = self._say_what_is_known()
        self.model = self.objective.model
        self.average = optimizer.new_average(self.model, config.ema_decay) if config.ema_decay else None
        compiled = config.compile or (config.compile is None and team.device.type == "cuda")
        if compiled:
            self.objective.compile_parts()
        team.place(self.objective, self.model.layers, self.precision, "token_nats")
        if self.averaged is not None:
            team.place(self.averaged, self.averaged.layers, self.precision)
        self.parallel = team.parallel(self.objective)
        self.backward: Callable[..., Tensor] = self._backward
        alone = team.device.type == "cuda" and team.size == config.accumulate == 1  # gradients are of one pass
        if compiled and alone and not self.objective.asks_device:
            self.backward = Captured(self._backward, self.model.parameters())
        self.optimizer = optimizer.new_optimizer(self.model, config)
        self.states = States(config.output, config.keep)
        self.tensors = state_tensors(self.model, self.optimizer, self.averaged)
        self.record = Record(**(team.together(lambda: self.states.load(self.tensors, team.read)) or {}))
        self.nats_sum = torch.tensor(self._own_nats_sum(), device=team.device)  # there, so that no step waits for it
        self.grad_norm = torch.zeros((), device=team.device)
        self.previews = team.main_does(self._open_previews)
        self.metrics = team.main_does(self._open_metrics)

    def _say_what_is_known(self) -> tuple[dict[str, Any], list[str]]:
        """Numbers and warnings before the first step."""
        usage = self.inputs.codes.usage()
        numbers, found = sanity(self.objective, usage), warnings(self.config, self.inputs.prior, usage)
        for line in (sentence(numbers), *found):
            announce(line)
        return numbers, found

    def _own_nats_sum(self) -> float:
        """This process's sum; where other processes wrote the state, an equal share of theirs."""
        sums, size = self.record.nats_sums, self.team.size
        return sums[self.team.rank] if len(sums) == size else sum(sums) / max(1, len(sums))

    def _open_metrics(self) -> MetricsLog:
        metrics = MetricsLog(self.config.output / METRICS, after_step=self.record.step or -1)
        if self.record.step == 0:
            metrics.write(step=0, **self.sanity)
        self.team.track(self.config.settings(), self.config.output.name)
        return metrics

    def _open_previews(self) -> Previews | None:
        if not self.config.sample_every:
            return None
        return Previews(self.config, self.inputs.codes, self._description(), self.team.device)

    @property
    def averaged(self) -> Transformer | None:
        """The model of the averaged weights, if they are kept."""
        return None if self.average is None else cast(Transformer, self.average.module)

    def finish(self) -> None:
        """Take the steps that are left and write the checkpoint."""
        try:
            with scoped(self.team.device), Interruption() as interruption:
                self._take_steps(interruption)
            self._write()
        except OSError as error:
            whole = self.states.whole
            left = f"the state of step {step_of(whole[-1])} is whole" if whole else "nothing was saved before"
            then = "make room, and run the same command again to continue"
            raise InputError(f"step {self.record.step}: {error}; {left}; {then}") from error

    def _take_steps(self, interruption: Interruption) -> None:
        config, team, first = self.config, self.team, self.record.step
        feed = Feed(self.inputs.codes, config, self.model.config.n_classes, team.rank, team.size)
        batches = feed.batches(first, config.steps, team.device)
        for batch in track(batches, f"train {config.output.name}", total=config.steps, start=first):
            self.take_step(batch)
            step, last = self.record.step, self.record.step == config.steps
            if step % STEPS_BETWEEN_LOGS == 0 or last:
                self._log()
            if self.inputs.heldout is not None and (step % config.validate_every == 0 or last):
                self._validate(self.inputs.heldout)
            if config.sample_every and (step % config.sample_every == 0 or last):
                self._preview()
            if config.snapshot_every and step % config.snapshot_every == 0 and not last:
                self._snapshot()
            stop = team.largest(interruption.signal)
            if not last and (stop or step % config.checkpoint_every == 0):
                self._save()
            if not last and stop:
                self._stop(stop)

    def take_step(self, batch: Batch) -> None:
        """Forward, backward and the optimizer, on this process's part of a batch."""
        began = time.perf_counter()
        config, step = self.config, self.record.step
        parts = list(zip(*(tensor.chunk(config.accumulate) for tensor in batch), strict=True))
        self.objective.train()
        for number, part in enumerate(parts):
            seed = generator(config.seed, "dropout", step, self.team.rank * config.accumulate + number)
            torch.manual_seed(int(seed.integers(2**63)))
            is_last = number == len(parts) - 1
            with contextlib.nullcontext() if is_last else self.team.without_averaging(self.parallel):
                self.nats_sum += self.backward(*part)
        self.grad_norm = optimizer.step(self.optimizer, optimizer.learning_rate(step, config), config.grad_clip)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.record.step += 1
        self.record.window_time_s += time.perf_counter() - began

    def _backward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        """The loss of a part of a batch; its gradients are added to those that are there."""
        with self._autocast():
            loss: Tensor = self.parallel(classes, tokens) / self.config.accumulate
        loss.backward()
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.team.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def _log(self) -> None:
        """Record the mean training loss since the last log."""
        config, record, n_steps = self.config, self.record, (self.record.step - 1) % STEPS_BETWEEN_LOGS + 1
        began = time.perf_counter()
        nats = sum(self.team.gather(float(self.nats_sum))) / self.team.size / n_steps  # a GPU is waited for here,
        record.window_time_s += time.perf_counter() - began  # so here its time shows
        self.team.together(lambda: _check_finite(nats, record.step))
        record.train_nats = nats
        record.time_s += record.window_time_s
        peak = config.peak_tflops or peak_tflops(self.team.device, self.precision)
        images_per_s = n_steps * config.batch_size / record.window_time_s
        self._write_metrics(
            **{f"train_{self.objective.loss_unit}": nats},
            lr=optimizer.learning_rate(record.step - 1, config),
            grad_norm=float(self.grad_norm),
            **speed(images_per_s, self.model.config, self.team.size, peak),
            peak_memory_bytes=peak_memory_bytes(self.team.device),
            time_s=record.time_s,
        )
        record.window_time_s = 0.0
        self.nats_sum.zero_()

    def _write_metrics(self, **values: float) -> None:
        if self.metrics is not None:
            self.metrics.write(step=self.record.step, **values)
        self.team.log(values, self.record.step)

    @torch.no_grad()
    def _validate(self, store: CodeStore) -> None:
        """Record the held-out loss: images from all over the store, first views, true classes, no dropout."""
        self.objective.eval()
        n_images, total = min(len(store), self.config.heldout_images), 0.0
        chosen = np.arange(n_images) * len(store) // n_images  # stores are often in the order of the classes
        for rows in self._shares(chosen):
            classes, tokens = to_device(read_batch(store, rows if len(rows) else chosen[:1], 0), self.team.device)
            with self._autocast():
                total += len(rows) * float(self.objective.token_nats(classes, tokens))
        self.record.heldout_nats = sum(self.team.gather(total)) / n_images
        self._write_metrics(**{f"heldout_{self.objective.unit}": self.record.heldout_nats}, time_s=self.record.time_s)

    def _shares(self, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """This process's batches of rows; of some processes the last may be empty, for all must have equally many."""
        size = self.config.batch_size // (self.team.size * self.config.accumulate)
        n_rounds = -(-len(chosen) // (size * self.team.size))
        return iter(np.array_split(chosen, n_rounds * self.team.size)[self.team.rank :: self.team.size])

    def _preview(self) -> None:
        """Draw what the model makes, that of the averaged weights if they are kept: a copy, in the main process."""
        weights = self.team.whole((self.averaged or self.model).state_dict())

        def draw() -> None:
            assert self.previews is not None
            checkpoint = Checkpoint.of(weights, self._description(), self._kept_prior, self.team.device)
            self.team.log_images("samples", self.previews.draw(checkpoint, self.record.step), self.record.step)

        self.team.main_does(draw)

    def _save(self) -> None:
        record = replace(self.record, nats_sums=tuple(self.team.gather(float(self.nats_sum))))
        self.team.main_does(self._keep_books)
        self.team.save(self.states, record.step, self.tensors, asdict(record))

    def _keep_books(self) -> None:
        """What is written beside a state: before it, so that it never says less than the state knows."""
        assert self.metrics is not None
        assert self.workspace is not None
        self.metrics.sync()
        self.workspace.checkpoint()

    def _stop(self, number: int) -> None:
        code = 128 + number  # as shells say that a signal ended a process
        if not self.team.is_main:
            raise SystemExit(code)
        name = signal.Signals(number).name
        done = f"{name}: stopped after step {self.record.step}, whose state is saved"
        raise StoppedError(f"{done}; run the same command again to continue", code)

    def _snapshot(self) -> None:
        """Keep what there is at this step as a checkpoint of its own."""
        save, step = self._saver(), self.record.step

        def write() -> None:
            folder = self.config.output / SNAPSHOTS / f"{step:08d}"
            begun = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(begun, ignore_errors=True)
            settings = {**self.config.settings(), "steps": step}
            seal(
                begun, Checkpoint.kind, save(begun), settings, self.inputs.digests, self._results(), self.record.time_s
            )
            shutil.rmtree(folder, ignore_errors=True)  # of a run that went on from an older state
            begun.rename(folder)

        self.team.main_does(write)

    def _saver(self) -> Callable[[Path], list[str]]:
        """What writes the weights as they are now, and their average, into a folder; gives the names of the files."""
        weights = self.team.whole(self.model.state_dict())
        average = None if self.averaged is None else self.team.whole(self.averaged.state_dict())
        return lambda folder: save_checkpoint(folder, weights, self._description(), self._kept_prior, average)

    def _write(self) -> None:
        """Write the checkpoint; the states that led to it go."""
        save = self._saver()

        def write() -> None:
            assert self.workspace is not None
            self.workspace.finish(save(self.config.output), self._results())
            self.states.clear()

        self.team.main_does(write)

    @property
    def _kept_prior(self) -> CodebookPrior | None:
        return self.objective.prior if self.objective.needs_prior else None

    def _description(self) -> CheckpointConfig:
        codes = self.inputs.codes
        return CheckpointConfig(
            model=self.model.config,
            class_names=codes.class_names,
            image_size=codes.image_size,
            codebook_size=codes.codebook_size,
            codebook_digest=codes.codebook_digest,
            tokenizer_digest=codes.tokenizer_digest,
            objective=self.objective.name,
            prior_digest=None if self._kept_prior is None else self.inputs.digests.get("prior"),
        )

    def _results(self) -> dict[str, Any]:
        prior = self.objective.prior
        record = self.record
        images_per_s = record.step * self.config.batch_size / (record.time_s + record.window_time_s)
        return {
            "objective": self.objective.name,
            "method": None if prior is None else prior.method,
            "vocab_size": self.model.config.vocab_size,
            **self.sanity,
            f"train_{self.objective.loss_unit}": record.train_nats,
            f"heldout_{self.objective.unit}": record.heldout_nats,
            "images_per_s": round(images_per_s, 1),
            "precision": self.precision,
            "codebook_digest": self.inputs.codes.codebook_digest,
            "prior_digest": self.inputs.digests.get("prior"),
            **({"warnings": self.warnings} if self.warnings else {}),
        }


def _check_finite(nats: float, step: int) -> None:
    if not math.isfinite(nats):
        raise InputError(f"training diverged before step {step} (loss {nats}); lower --lr")


@contextlib.contextmanager
def scoped(device: torch.device) -> Iterator[None]:
    """Leave torch's own random numbers as they were found.

    On a CPU the memory of a step is kept for the next, to the end of the process.
    """
    if device.type == "cpu":
        keep_freed_memory()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
