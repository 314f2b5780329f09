"""The verb `demo`: a recipe over the other verbs, from photographs to a report, on data that is installed already.

Each stage leaves a checked artifact below the run's folder, so a second run redoes only what is missing or whose
settings or inputs changed, and a killed one continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeprior import config as settings
from codeprior.codes import encode
from codeprior.config import DemoConfig
from codeprior.evaluation.classifier import train_classifier
from codeprior.evaluation.judge import evaluate
from codeprior.extract import extract
from codeprior.generate import sample
from codeprior.progress import announce
from codeprior.reconstruct import reconstruct
from codeprior.report import report
from codeprior.tokenizers.training import train_tokenizer
from codeprior.train import train

VARIANTS = ("token", "kmeans", "dcpe")


@dataclass(frozen=True)
class Scale:
    """What differs between the two data sets; everything else is a verb's default or stands in `stages`."""

    image_size: int
    tokenizer: dict[str, Any]
    classifier: dict[str, Any]
    model: dict[str, Any]
    n_samples: int
    n_scored: int


SCALES = {
    "digits": Scale(
        image_size=16,
        tokenizer={"codebook_size": 256, "steps": 500},
        classifier={"steps": 250},
        model={"steps": 700, "batch_size": 64},
        n_samples=1000,
        n_scored=2000,
    ),
    "photos12": Scale(
        image_size=32,
        tokenizer={"codebook_size": 512, "steps": 700, "views": "centre"},
        classifier={"steps": 400, "batch_size": 64, "views": "centre"},
        model={"steps": 900, "batch_size": 32},
        n_samples=960,
        n_scored=1000,
    ),
}


@dataclass(frozen=True)
class Stage:
    """One call of a verb; `seconds` is what it takes on two CPU cores, for the estimate of what remains."""

    name: str
    verb: Callable[[Any], dict[str, Any]]
    config: settings.VerbConfig
    seconds: float


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run every stage that is not done yet, then write the report."""
    folder = config.output or Path("demo") / config.data
    todo = stages(config, folder)
    began = time.monotonic()
    results = {}
    for number, stage in enumerate(todo):
        announce(f"[{number + 1}/{len(todo)}] {stage.name}{_remaining(todo, number, time.monotonic() - began)}")
        results[stage.name] = stage.verb(stage.config)
    scores = [{"model": name, **_scores(results[f"score {name}"])} for name in VARIANTS]
    return {"output": results["report"]["output"], "time_s": round(time.monotonic() - began, 1), "scores": scores}


def stages(config: DemoConfig, folder: Path) -> list[Stage]:
    """The recipe: every verb with its settings, in order."""
    scale = SCALES[config.data]
    heldout = f"{config.data}:heldout"
    common: dict[str, Any] = {"seed": config.seed, "device": config.device}
    make: dict[str, Any] = {**common, "overwrite": True}
    tokenizer, codes, heldout_codes = folder / "tokenizer", folder / "codes", folder / "codes-heldout"
    classifier = folder / "classifier"
    priors = {name: folder / "priors" / f"{name}.safetensors" for name in ("kmeans", "dcpe")}
    size = scale.image_size
    views = scale.tokenizer.get("views", "shift")

    recipe = [
        Stage(
            "train the tokenizer",
            train_tokenizer,
            settings.TrainTokenizerConfig(
                data=config.data, output=tokenizer, image_size=size, **scale.tokenizer, **make
            ),
            30,
        ),
        Stage(
            "train the judge",
            train_classifier,
            settings.TrainClassifierConfig(
                data=config.data, heldout=heldout, output=classifier, image_size=size, **scale.classifier, **make
            ),
            10,
        ),
        Stage(
            "encode the images",
            encode,
            settings.EncodeConfig(data=config.data, tokenizer=tokenizer, output=codes, views=views, **make),
            5,
        ),
        Stage(
            "encode the held-out images",
            encode,
            settings.EncodeConfig(data=heldout, tokenizer=tokenizer, output=heldout_codes, views="centre", **make),
            1,
        ),
    ]
    for name, prior in priors.items():
        recipe.append(
            Stage(
                f"extract the {name} prior",
                extract,
                settings.ExtractConfig(
                    codebook=tokenizer, n_clusters=0.5, method=name, usage=codes, output=prior, **make
                ),
                2,
            )
        )
    recipe.append(
        Stage(
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
            10,
        )
    )
    for name in VARIANTS:
        recipe.append(
            Stage(
                f"train on {name}s" if name == "token" else f"train on {name} clusters",
                train,
                settings.TrainConfig(
                    codes=codes,
                    heldout_codes=heldout_codes,
                    prior=priors.get(name),
                    output=folder / "models" / name,
                    **scale.model,
                    **make,
                ),
                50,
            )
        )
    for name in VARIANTS:
        samples = folder / "samples" / name
        recipe += [
            Stage(
                f"sample {name}",
                sample,
                settings.SampleConfig(
                    checkpoint=folder / "models" / name,
                    tokenizer=tokenizer,
                    n_images=scale.n_samples,
                    output=samples,
                    **make,
                ),
                8,
            ),
            Stage(
                f"score {name}",
                evaluate,
                settings.EvaluateConfig(
                    samples=samples,
                    reference=heldout,
                    baseline=config.data,
                    features=classifier,
                    output=folder / "evaluations" / name,
                    **make,
                ),
                3,
            ),
        ]
    title = f"codeprior demo: {config.data}"
    recipe.append(Stage("report", report, settings.ReportConfig(folder=folder, title=title, **common), 4))
    return recipe


def _remaining(todo: list[Stage], number: int, elapsed_s: float) -> str:
    """How long the rest takes at the pace so far; nothing is said before there is a pace."""
    expected_s = sum(stage.seconds for stage in todo[:number])
    if expected_s == 0:
        return ""
    left_s = sum(stage.seconds for stage in todo[number:]) * elapsed_s / expected_s
    return f" (about {left_s:.0f} s left)"


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    """The scores of a generation, without the rest of its record."""
    return {name: value for name, value in result.items() if name.startswith(("FD", "IS", "class_"))}
