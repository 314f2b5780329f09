"""The verb `demo`: a recipe over the other verbs, from photographs to a report, on data that is installed already.

Each stage leaves a checked artifact below the run's folder, so a second run redoes only what is missing or whose
settings or inputs changed, and a killed one continues.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

from codeprior import config as settings
from codeprior.codes import encode
from codeprior.config import DemoConfig, Views
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.evaluation.classifier import train_classifier
from codeprior.evaluation.judge import evaluate
from codeprior.extract import extract
from codeprior.generation.sample import sample
from codeprior.machine import available_threads
from codeprior.progress import announce
from codeprior.reconstruct import reconstruct
from codeprior.report import report
from codeprior.tokenizers.training import train_tokenizer
from codeprior.training.loop import train

VARIANTS = ("token", "kmeans", "dcpe")
FULL = ("iar", "factorised")  # on DCPE's clusters; and the samples of "dcpe" refined
REFINED = "dcpe-refined"


@dataclass(frozen=True)
class Scale:
    """What differs between the two data sets; everything else is a verb's default or stands in `recipe`."""

    image_size: int
    views: Views
    tokenizer: dict[str, Any]
    classifier: dict[str, Any]
    model: dict[str, Any]
    n_samples: int
    n_scored: int
    seconds: dict[str, float]


SCALES = {
    "digits": Scale(
        image_size=16,
        views="shift",
        tokenizer={"codebook_size": 256, "steps": 500, "views": "shift"},
        classifier={"steps": 250, "views": "shift"},
        model={"steps": 1200, "batch_size": 64, "lr": 4e-3, "warmup": 50},
        n_samples=1000,
        n_scored=2000,
        seconds={
            "tokenizer": 30,
            "classifier": 10,
            "encode": 3,
            "reconstruct": 4,
            "train": 60,
            "sample": 4,
            "evaluate": 4,
        },
    ),
    "photos12": Scale(
        image_size=32,
        views="centre",
        tokenizer={"codebook_size": 512, "steps": 700, "views": "centre", "unquantized": 0.06},
        classifier={"steps": 400, "batch_size": 64, "views": "centre"},
        model={"steps": 1400, "batch_size": 32, "lr": 4e-3, "warmup": 50},
        n_samples=960,
        n_scored=1000,
        seconds={
            "tokenizer": 150,
            "classifier": 20,
            "encode": 15,
            "reconstruct": 15,
            "train": 150,
            "sample": 15,
            "evaluate": 8,
        },
    ),
}


@dataclass(frozen=True)
class Stage:
    """One call of a verb; `seconds` is what it takes on one CPU core, for the estimate of what remains."""

    name: str
    verb: Callable[[Any], dict[str, Any]]
    config: settings.VerbConfig
    seconds: float


Chain = list[Stage]
"""Stages of which each needs the one before."""
Phase = list[Chain]
"""Chains that do not need each other, worked off side by side; each phase needs the one before."""


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run every stage that is not done yet, then write the report."""
    folder = config.output or Path("demo") / config.data
    phases = recipe(config, folder)
    # Small models gain nothing from a second thread, so each process has one; a GPU serves one process at a time.
    n_workers = 1 if resolve_device(config.device).type != "cpu" else min(available_threads(), 4)
    began = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    with _workers(n_workers) as pool:
        for number, phase in enumerate(phases):
            names = "; ".join(stage.name for chain in phase for stage in chain)
            remaining = _remaining(phases, number, n_workers, time.monotonic() - began)
            announce(f"[{number + 1}/{len(phases)}] {names}{remaining}")
            try:
                for done in pool.map(_run_chain, phase):
                    results |= done
            except BrokenProcessPool:
                message = "a process of the demo was killed, perhaps for want of memory; run it again to continue"
                raise InputError(message) from None
    scored = [name.removeprefix("score ") for name in results if name.startswith("score ")]
    scores = [{"model": name, **_scores(results[f"score {name}"])} for name in scored]
    return {"output": results["report"]["output"], "time_s": round(time.monotonic() - began, 1), "scores": scores}


def recipe(config: DemoConfig, folder: Path) -> list[Phase]:
    """Every verb with its settings, in order."""
    scale = SCALES[config.data]
    heldout = f"{config.data}:heldout"
    common: dict[str, Any] = {"seed": config.seed, "device": config.device}
    make: dict[str, Any] = {**common, "overwrite": True}
    images: dict[str, Any] = {"data": config.data, "image_size": scale.image_size}
    tokenizer, codes, heldout_codes = folder / "tokenizer", folder / "codes", folder / "codes-heldout"
    classifier = folder / "classifier"
    priors = {name: folder / "priors" / f"{name}.safetensors" for name in ("kmeans", "dcpe")}

    train_both = [
        Stage(
            "train the tokenizer",
            train_tokenizer,
            settings.TrainTokenizerConfig(output=tokenizer, **images, **scale.tokenizer, **make),
            scale.seconds["tokenizer"],
        ),
        Stage(
            "train the judge",
            train_classifier,
            settings.TrainClassifierConfig(output=classifier, heldout=heldout, **images, **scale.classifier, **make),
            scale.seconds["classifier"],
        ),
    ]
    both_sources: list[tuple[str, Path, Views]] = [
        (config.data, codes, scale.views),
        (heldout, heldout_codes, "centre"),
    ]
    encode_both = [
        Stage(
            f"encode {source}",
            encode,
            settings.EncodeConfig(data=source, tokenizer=tokenizer, output=output, views=views, **make),
            scale.seconds["encode"],
        )
        for source, output, views in both_sources
    ]
    extract_both = [
        Stage(
            f"extract the {name} prior",
            extract,
            settings.ExtractConfig(codebook=tokenizer, n_clusters=0.5, method=name, usage=codes, output=prior, **make),
            5,
        )
        for name, prior in priors.items()
    ]
    replace_tokens = Stage(
        "replace tokens within their clusters",
        reconstruct,
        settings.ReconstructConfig(
            data=heldout,
            tokenizer=tokenizer,
            priors=tuple(priors.values()),
            features=classifier,
            n_images=scale.n_scored,
            output=folder / "replacement",
            **make,
        ),
        scale.seconds["reconstruct"],
    )

    def train_model(name: str, **changes: Any) -> Stage:
        given: dict[str, Any] = {**scale.model, **changes}
        return Stage(
            f"train {name}",
            train,
            settings.TrainConfig(
                codes=codes, heldout_codes=heldout_codes, output=folder / "models" / name, **given, **make
            ),
            scale.seconds["train"],
        )

    def judge_samples(name: str, model: str, refine: Path | None = None) -> Chain:
        samples = folder / "samples" / name
        return [
            Stage(
                f"sample {name}",
                sample,
                settings.SampleConfig(
                    checkpoint=folder / "models" / model,
                    refine=refine,
                    tokenizer=tokenizer,
                    cfg_scale=2.0,
                    n_images=scale.n_samples,
                    output=samples,
                    **make,
                ),
                scale.seconds["sample"],
            ),
            Stage(
                f"score {name}",
                evaluate,
                settings.EvaluateConfig(
                    samples=samples,
                    reference=heldout,
                    baseline=config.data,
                    features=str(classifier),
                    output=folder / "evaluations" / name,
                    **make,
                ),
                scale.seconds["evaluate"],
            ),
        ]

    generators = [[train_model(name, prior=priors.get(name)), *judge_samples(name, name)] for name in VARIANTS]
    second_stage: list[Phase] = []
    if config.full:
        dcpe: dict[str, Any] = {"prior": priors["dcpe"]}
        generators += [[train_model(name, objective=name, **dcpe), *judge_samples(name, name)] for name in FULL]
        generators.append([train_model("refine", objective="refine", n_layers=1, **dcpe)])
        second_stage = [[judge_samples(REFINED, "dcpe", folder / "models" / "refine")]]

    title = f"codeprior demo: {config.data}"
    write = Stage("report", report, settings.ReportConfig(folder=folder, title=title, **common), 5)
    return [
        [[stage] for stage in train_both],
        [[stage] for stage in encode_both],
        [[stage] for stage in extract_both],
        [*generators, [replace_tokens]],
        *second_stage,
        [[write]],
    ]


def _run_chain(chain: Chain) -> dict[str, dict[str, Any]]:
    """Results of a chain's stages by their names."""
    return {stage.name: stage.verb(stage.config) for stage in chain}


def _workers(n_workers: int) -> ProcessPoolExecutor:
    """Processes of one thread each, which end with this one."""
    return ProcessPoolExecutor(n_workers, get_context("spawn"), _begin_worker, (os.getpid(),))


def _begin_worker(parent: int) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # ends at once and in silence: the first process says what there is to say
    os.environ["CODEPRIOR_PROGRESS"] = "lines"  # bars of several processes would overwrite each other

    def end_with_parent() -> None:  # so that nobody works on in a folder whose run was killed
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


def _remaining(phases: list[Phase], number: int, n_workers: int, elapsed_s: float) -> str:
    """How long the rest takes at the pace so far; nothing is said before there is a pace."""

    def expected_s(phase: Phase) -> float:
        chains = [sum(stage.seconds for stage in chain) for chain in phase]
        return max(max(chains), sum(chains) / n_workers)

    past_s = sum(map(expected_s, phases[:number]))
    left_s = sum(map(expected_s, phases[number:]))
    return f" (about {left_s * elapsed_s / past_s:.0f} s left)" if past_s else ""


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    """The scores of a generation, without the rest of its record."""
    return {name: value for name, value in result.items() if name.startswith(("FD", "IS", "class_"))}
