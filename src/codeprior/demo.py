"""The verb `demo`: a recipe over the other verbs, from photographs to a report, on data that is installed already.

Each stage leaves a checked artifact below the run's folder; see `stages`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from codeprior import config as settings
from codeprior.config import DemoConfig, Views
from codeprior.encoding import encode
from codeprior.evaluation.classifier import train_classifier
from codeprior.evaluation.judge import evaluate
from codeprior.extract import extract
from codeprior.generation.sample import sample
from codeprior.likelihood import likelihood
from codeprior.reconstruct import reconstruct
from codeprior.report import report
from codeprior.stages import Chain, Phase, Stage, run
from codeprior.sweep.sweep import sweep
from codeprior.tokenizers.training import train_tokenizer
from codeprior.training.loop import train

VARIANTS = ("token", "kmeans", "dcpe")
FULL = ("iar", "factorised")  # on DCPE's clusters; and the samples of "dcpe" refined
REFINED = "dcpe-refined"


@dataclass(frozen=True)
class Scale:
    """What differs between the two data sets; everything else is a verb's default or stands in `Recipe`."""

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


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run every stage that is not done yet, then write the report."""
    began = time.monotonic()
    recipe = Recipe(config.data, config.output or Path("demo") / config.data, config.seed, config.device)
    results = run(recipe.phases(full=config.full), config.device, "demo")
    scored = [name.removeprefix("score ") for name in results if name.startswith("score ")]
    scores = [{"model": name, **_scores(results[f"score {name}"])} for name in scored]
    return {"output": results["report"]["output"], "time_s": round(time.monotonic() - began, 1), "scores": scores}


@dataclass(frozen=True)
class Recipe:
    """Every verb with its settings: the stages of a demo, and of whoever compares on its data."""

    data: str
    """A name of `SCALES`."""
    folder: Path
    seed: int = 0
    device: str = "auto"

    @cached_property
    def scale(self) -> Scale:
        return SCALES[self.data]

    @property
    def heldout(self) -> str:
        return f"{self.data}:heldout"

    @property
    def common(self) -> dict[str, Any]:
        return {"seed": self.seed, "device": self.device, "overwrite": True}

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def codes(self) -> Path:
        return self.folder / "codes"

    @property
    def heldout_codes(self) -> Path:
        return self.folder / "codes-heldout"

    @property
    def classifier(self) -> Path:
        return self.folder / "classifier"

    def prior(self, name: str) -> Path:
        return self.folder / "priors" / f"{name}.safetensors"

    def model(self, name: str) -> Path:
        return self.folder / "models" / name

    def phases(self, *, full: bool) -> list[Phase]:
        """Everything, in order; with `full`, every objective, and scores over guidance scales."""
        priors: dict[str, Any] = {name: {"prior": self.prior(name)} for name in ("kmeans", "dcpe")}
        generators = [self.generator(name, **priors.get(name, {})) for name in VARIANTS]
        second_stage: list[Phase] = []
        if full:
            dcpe = priors["dcpe"]
            generators += [self.generator(name, objective=name, **dcpe) for name in FULL]
            generators.append([self.train("refine", objective="refine", n_layers=1, **dcpe)])
            refined: dict[str, Any] = {"refine": self.model("refine")}
            second_stage = [
                [
                    self.judge(REFINED, "dcpe", **refined),
                    [self.likelihood(REFINED, "dcpe", **refined)],
                    [self.guidance("token", "dcpe")],
                ]
            ]
        extractions = [[self.extract(name, method=name)] for name in priors]
        return [
            *self.preparation(),
            extractions,
            [*generators, [self.replace_tokens(*map(self.prior, priors))]],
            *second_stage,
            [[self.report()]],
        ]

    def generator(self, name: str, **changes: Any) -> Chain:
        """A transformer, how likely held-out images are to it, its samples and their scores."""
        return [self.train(name, **changes), self.likelihood(name, name), *self.judge(name, name)]

    def preparation(self) -> list[Phase]:
        """A tokenizer, a judge, and the codes of both halves of the data."""
        scale = self.scale
        images: dict[str, Any] = {"data": self.data, "image_size": scale.image_size}
        tokenizer = settings.TrainTokenizerConfig(output=self.tokenizer, **images, **scale.tokenizer, **self.common)
        classifier = settings.TrainClassifierConfig(
            output=self.classifier, heldout=self.heldout, **images, **scale.classifier, **self.common
        )
        return [
            [
                [Stage("train the tokenizer", train_tokenizer, tokenizer, scale.seconds["tokenizer"])],
                [Stage("train the judge", train_classifier, classifier, scale.seconds["classifier"])],
            ],
            [
                [self._encode(self.data, self.codes, scale.views)],
                [self._encode(self.heldout, self.heldout_codes, "centre")],
            ],
        ]

    def _encode(self, data: str, output: Path, views: Views) -> Stage:
        config = settings.EncodeConfig(data=data, tokenizer=self.tokenizer, output=output, views=views, **self.common)
        return Stage(f"encode {data}", encode, config, self.scale.seconds["encode"])

    def extract(self, name: str, **changes: Any) -> Stage:
        """A prior at half of the codes, unless changed."""
        given: dict[str, Any] = {"n_clusters": 0.5, "usage": self.codes, **self.common, **changes}
        config = settings.ExtractConfig(codebook=self.tokenizer, output=self.prior(name), **given)
        return Stage(f"extract the {name} prior", extract, config, 5)

    def train(self, name: str, **changes: Any) -> Stage:
        """A transformer on the codes."""
        given: dict[str, Any] = {**self.common, **self.scale.model, **changes}
        inputs: dict[str, Any] = {"codes": self.codes, "heldout_codes": self.heldout_codes}
        config = settings.TrainConfig(output=self.model(name), **inputs, **given)
        return Stage(f"train {name}", train, config, self.scale.seconds["train"])

    def likelihood(self, name: str, model: str, **changes: Any) -> Stage:
        """How likely held-out codes are to a model."""
        inputs: dict[str, Any] = {"checkpoint": self.model(model), "codes": self.heldout_codes}
        output = self.folder / "likelihoods" / name
        config = settings.LikelihoodConfig(output=output, **inputs, **self.common, **changes)
        return Stage(f"measure {name}", likelihood, config, self.scale.seconds["evaluate"])

    def judge(self, name: str, model: str, **changes: Any) -> Chain:
        """Samples of a model, and their scores."""
        scale, samples, scores = self.scale, self.folder / "samples" / name, self.folder / "evaluations" / name
        given: dict[str, Any] = {"cfg_scale": 2.0, "n_images": scale.n_samples, **self.common, **changes}
        inputs: dict[str, Any] = {"checkpoint": self.model(model), "tokenizer": self.tokenizer}
        making = settings.SampleConfig(output=samples, **inputs, **given)
        judges: dict[str, Any] = {"reference": self.heldout, "baseline": self.data, "features": str(self.classifier)}
        judging = settings.EvaluateConfig(samples=samples, output=scores, **judges, **self.common)
        return [
            Stage(f"sample {name}", sample, making, scale.seconds["sample"]),
            Stage(f"score {name}", evaluate, judging, scale.seconds["evaluate"]),
        ]

    def guidance(self, *models: str) -> Stage:
        """Scores of models over guidance scales."""
        scale, checkpoints = self.scale, ",".join(str(self.model(name)) for name in models)
        config = settings.SweepConfig(
            over=("cfg-scale=1,1.5,2,3", f"checkpoint={checkpoints}"),
            sample=(f"tokenizer={self.tokenizer}", f"n-images={scale.n_samples // 2}"),
            evaluate=(f"reference={self.heldout}", f"features={self.classifier}"),
            discard=True,
            output=self.folder / "guidance",
            **self.common,
        )
        seconds = 4 * len(models) * (scale.seconds["sample"] + scale.seconds["evaluate"]) / 2
        return Stage("sweep guidance", sweep, config, seconds)

    def replace_tokens(self, *priors: Path) -> Stage:
        """The token replacement test."""
        config = settings.ReconstructConfig(
            data=self.heldout,
            tokenizer=self.tokenizer,
            priors=priors,
            features=str(self.classifier),
            n_images=self.scale.n_scored,
            output=self.folder / "replacement",
            **self.common,
        )
        return Stage("replace tokens within their clusters", reconstruct, config, self.scale.seconds["reconstruct"])

    def report(self) -> Stage:
        """The page on all of it."""
        title = f"codeprior demo: {self.data}"
        config = settings.ReportConfig(folder=self.folder, title=title, seed=self.seed, device=self.device)
        return Stage("report", report, config, 5)


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    """The scores of a generation, without the rest of its record."""
    return {name: value for name, value in result.items() if name.startswith(("FD", "IS", "class_"))}
