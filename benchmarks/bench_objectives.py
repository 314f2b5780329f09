"""Every objective on the demo's data, over several seeds: likelihood, scores of samples, speed of training.

    python benchmarks/bench_objectives.py    # digits; an hour on two cores; if killed, run it again to continue
    python benchmarks/bench_objectives.py --data photos12 --seeds 0 1 2    # some hours

Tokenizer, judge, codes and priors are made once, by the demo's recipe; every seed trains, samples and scores every
objective. So the spread is that over training and sampling, with one tokenizer and one set of clusters.
table_docs.py puts the results into docs/objectives.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import in_a_process, interleaved, median, write_results

from codeprior.artifact import read_manifest
from codeprior.codes import CodeStore
from codeprior.config import TrainConfig
from codeprior.demo import SCALES, Recipe
from codeprior.objectives import build
from codeprior.prior import CodebookPrior
from codeprior.stages import Chain, run

FEW = 1 / 16  # clusters a code: the papers' IAR has 1/32 (DCPE) to 1/128 (IAR) of 16,384

PRIORS: dict[str, dict[str, Any]] = {
    "kmeans": {"method": "kmeans"},
    "dcpe": {"method": "dcpe"},
    "few": {"method": "dcpe", "n_clusters": FEW},
    "few-capped": {"method": "dcpe", "n_clusters": FEW, "max_cluster_size": round(1 / FEW)},
    "few-balanced": {"method": "balanced-kmeans", "n_clusters": FEW},
}


@dataclass(frozen=True)
class Model:
    """What is trained."""

    prior: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "token": Model(),
    "kmeans": Model("kmeans"),
    "dcpe": Model("dcpe"),
    "iar": Model("few", {"objective": "iar"}),
    "iar-balanced": Model("few-balanced", {"objective": "iar"}),
    "iar-mean": Model("few", {"objective": "iar", "iar_form": "mean"}),
    "iar-mean-capped": Model("few-capped", {"objective": "iar", "iar_form": "mean"}),
    "factorised": Model("dcpe", {"objective": "factorised"}),
    "factorised-few": Model("few", {"objective": "factorised"}),
    "refine": Model("dcpe", {"objective": "refine", "n_layers": 1}),
    "refine-vocabulary": Model("dcpe", {"objective": "refine", "n_layers": 1, "refine_over": "vocabulary"}),
}


@dataclass(frozen=True)
class Row:
    """A way to make images: a line of the table."""

    title: str
    model: str
    sample: dict[str, Any] = field(default_factory=dict)
    refiner: str | None = None


ROWS = {
    "token": Row("`token`", "token"),
    "kmeans": Row("`cluster`, k-means", "kmeans"),
    "dcpe": Row("`cluster`, DCPE", "dcpe"),
    "dcpe-usage": Row("the same, `--pick usage`", "dcpe", {"pick": "usage"}),
    "iar": Row("`iar`, log-sum-exp, DCPE", "iar"),
    "iar-balanced": Row("`iar`, log-sum-exp, balanced k-means (IAR's own)", "iar-balanced"),
    "iar-mean": Row("`iar`, mean, DCPE", "iar-mean"),
    "iar-mean-capped": Row("`iar`, mean, DCPE with its size rule", "iar-mean-capped"),
    "factorised": Row("`factorised`, DCPE", "factorised"),
    "factorised-few": Row("`factorised`, DCPE, fewer clusters", "factorised-few"),
    "refine": Row("`cluster`, DCPE, then `refine`", "dcpe", refiner="refine"),
    "refine-likeliest": Row("the same, likeliest token", "dcpe", {"refine_temperature": 0.0}, "refine"),
    "refine-vocabulary": Row(
        "`cluster`, DCPE, then `refine --refine-over vocabulary`", "dcpe", refiner="refine-vocabulary"
    ),
    "refine-vocabulary-likeliest": Row(
        "the same, likeliest token", "dcpe", {"refine_temperature": 0.0}, "refine-vocabulary"
    ),
}


def train_and_judge(recipe: Recipe, seeds: list[int]) -> None:
    """Every artifact that is missing."""
    extractions: list[Chain] = [[recipe.extract(name, **changes)] for name, changes in PRIORS.items()]
    phases = [*recipe.preparation(), extractions]
    for seed in seeds:
        chains = []
        for name, model in MODELS.items():
            prior = {} if model.prior is None else {"prior": recipe.prior(model.prior)}
            chains.append([recipe.train(f"{name}-{seed}", seed=seed, **prior, **model.settings)])
        judged = [judge(recipe, name, row, seed) for name, row in ROWS.items()]
        phases += [chains, judged]
    run(phases, "cpu", "benchmark")


def judge(recipe: Recipe, name: str, row: Row, seed: int) -> Chain:
    refine = {} if row.refiner is None else {"refine": recipe.model(f"{row.refiner}-{seed}")}
    return recipe.judge(f"{name}-{seed}", f"{row.model}-{seed}", seed=seed, **refine, **row.sample)


def heldout_nats(recipe: Recipe, row: Row, seed: int) -> float:
    """-log p(token) of held-out images, mean in nats, as the images of this row are made."""

    def result_of(model: str) -> dict[str, Any]:
        return read_manifest(recipe.model(f"{model}-{seed}")).results

    nats: float = result_of(row.model)["heldout_nats_per_token"]
    usage = row.sample.get("pick") == "usage"
    if row.refiner is None and not usage:
        return nats
    store = CodeStore.open(recipe.heldout_codes)
    tokens = store.codes[:, 0].astype(np.int64)
    prior = CodebookPrior.load(recipe.prior(str(MODELS[row.model].prior)))
    labels, counts = prior.token_to_cluster, np.asarray(prior.usage)
    cluster_nats = nats - np.log(np.bincount(labels, weights=prior.live))[labels[tokens]].mean()
    if usage:
        with np.errstate(divide="ignore"):  # a token that training never held has no chance
            return float(cluster_nats - np.log(counts / np.bincount(labels, weights=counts)[labels])[tokens].mean())
    return float(cluster_nats + result_of(str(row.refiner))["heldout_nats_per_token_given_clusters"])


def gather(recipe: Recipe, seeds: list[int], speeds: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of the table, from what the runs left."""
    rows: list[dict[str, Any]] = []
    scores: dict[str, Any] = {}
    for name, row in ROWS.items():
        parts = [row.model, *([] if row.refiner is None else [row.refiner])]
        manifests = [read_manifest(recipe.model(f"{part}-{seeds[0]}")) for part in parts]
        given = [read_manifest(recipe.folder / "evaluations" / f"{name}-{seed}").results for seed in seeds]
        scores = given[-1]
        measured = {score: spread([one[score] for one in given]) for score in score_names(scores)}
        if row.sample.get("refine_temperature") != 0:  # the likeliest token is no distribution
            measured["heldout_nats_per_token"] = spread([heldout_nats(recipe, row, seed) for seed in seeds])
        rows.append(
            {
                "name": f"{recipe.data}, {name}",
                "title": row.title,
                "n_clusters": n_clusters(recipe, MODELS[row.model]),
                "n_parameters": sum(manifest.results["n_parameters"] for manifest in manifests),
                "seeds": seeds,
                **measured,
                "training_tokens_per_s": round(1 / sum(1 / speeds[part] for part in parts)),
            }
        )
    real = {name: {"mean": scores[f"real_{name}"]} for name in score_names(scores)}
    rows.append({"name": f"{recipe.data}, real", "title": "real images in the samples' place", **real})
    return rows


def n_clusters(recipe: Recipe, model: Model) -> int | None:
    return None if model.prior is None else CodebookPrior.load(recipe.prior(model.prior)).n_clusters


def score_names(scores: dict[str, Any]) -> list[str]:
    """Of the samples' scores, those that the table shows."""
    shown = ("class_consistency", "FD[", "KD[", "precision[", "recall[", "IS[")
    return [name for name in scores if name.startswith(shown) and not name.endswith("_sd")]


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and what they are made of."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "each": [round(value, 5) for value in values]}


def speeds(recipe: Recipe, repeats: int) -> dict[str, float]:
    """Tokens a second that each model trains on, one thread, steps of all models in turn."""
    torch.set_num_threads(1)
    codes = CodeStore.open(recipe.codes)
    size = recipe.scale.model["batch_size"]
    batch = torch.from_numpy(codes.labels[:size]), torch.from_numpy(codes.codes[:size, 0].astype(np.int64))
    steps = {name: partial(step_of(recipe, codes, model), *batch) for name, model in MODELS.items()}
    interleaved(steps, 3)
    times = interleaved(steps, repeats)
    n_tokens = batch[1].numel()
    return {name: n_tokens / median(times[f"{name} cpu"]) for name in steps}


def step_of(recipe: Recipe, codes: CodeStore, model: Model) -> Callable[[torch.Tensor, torch.Tensor], None]:
    prior = None if model.prior is None else CodebookPrior.load(recipe.prior(model.prior))
    given = {"prior": None if model.prior is None else recipe.prior(model.prior), **model.settings}
    config = TrainConfig(codes=recipe.codes, output=recipe.folder, device="cpu", **recipe.scale.model, **given)
    objective = build(config, codes, prior)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=config.lr, fused=True)

    def step(classes: torch.Tensor, tokens: torch.Tensor) -> None:
        optimizer.zero_grad()
        objective(classes, tokens).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), config.grad_clip)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(SCALES), default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, help="folder of the runs; default: runs/objectives-<data>")
    parser.add_argument("--repeats", type=int, default=20, help="steps that are timed of each model")
    parser.add_argument("--speeds", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    recipe = Recipe(args.data, args.output or Path("runs") / f"objectives-{args.data}", device="cpu")
    if args.speeds:
        print(json.dumps(speeds(recipe, args.repeats)))
        return
    train_and_judge(recipe, args.seeds)
    timing = ["--speeds", "--data", args.data, "--output", str(recipe.folder), "--repeats", str(args.repeats)]
    rows = gather(recipe, args.seeds, in_a_process(__file__, *timing))
    command = f"python benchmarks/bench_objectives.py --data {args.data} --seeds {' '.join(map(str, args.seeds))}"
    print(write_results(f"objectives on {args.data}", command, rows))


if __name__ == "__main__":
    main()
