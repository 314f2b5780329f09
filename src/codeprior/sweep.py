"""The verb `sweep`: sample and score at every point of a grid of settings (the papers' scores over guidance scales and
epochs, and over seeds).

Each point has a folder of its own, with what it was made from and how it scored; one that is done is not done again, so
a sweep may be continued, and widened. Several processes share the points out among them.
"""

from __future__ import annotations

import fcntl
import itertools
import re
import shutil
import typing
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from codeprior.artifact import MANIFEST, Workspace, digest_json, read_json, read_manifest, write_json
from codeprior.config import EvaluateConfig, SampleConfig, SweepConfig, VerbConfig
from codeprior.config.arguments import parse_settings
from codeprior.errors import InputError
from codeprior.evaluation.judge import evaluate
from codeprior.generation.sample import sample
from codeprior.parts import waiting
from codeprior.plots import score_curves
from codeprior.progress import announce
from codeprior.shards import Shard, working_alone

POINTS, POINT = "points", "point.json"
SUMMARY, SCORES, PICTURE = "summary", "scores.json", "scores.png"

# Settings of sample and evaluate that say where and how, not what.
_NO_MATTER = {"samples", "output", "overwrite", "json", "dry_run", "config", "device", "batch_size", "compile"}
_NO_MATTER |= {"download", "write_txt", "save_features"}
_MOST_LINES = 7  # colours that people with any colour vision tell apart

Settings = TypeVar("Settings", bound=VerbConfig)
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One combination of what varies: its values by name, and what to do there."""

    folder: Path
    values: Row
    sample: SampleConfig
    evaluate: EvaluateConfig

    @property
    def made_from(self) -> Row:
        """All that decides the scores, as JSON values."""
        return {
            verb: {name: _identity(value) for name, value in asdict(config).items() if name not in _NO_MATTER}
            for verb, config in (("sample", self.sample), ("evaluate", self.evaluate))
        }

    @property
    def facts(self) -> Row:
        """What varies, and where checkpoints do, how each was trained."""
        if "checkpoint" not in self.values:
            return self.values
        manifest = read_manifest(self.sample.checkpoint)
        method = manifest.results.get("method") or manifest.results.get("objective")
        return {**self.values, "method": method, "steps": manifest.settings.get("steps")}

    def results(self) -> Row | None:
        """What was found here, if this point is done: scores, and warnings."""
        path = self.folder / POINT
        record = read_json(path) if path.exists() else {}
        return record["results"] if record.get("digest") == digest_json(self.made_from) else None

    def work(self, *, discard: bool) -> None:
        """Sample and score, and say so in the point's folder."""
        sample(self.sample)
        results = evaluate(self.evaluate)
        made_from = self.made_from
        write_json(self.folder / POINT, {"digest": digest_json(made_from), **made_from, "results": results})
        if discard:
            shutil.rmtree(self.sample.output)


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Sample and score at every point; an interrupted sweep is continued, another one's points are kept.

    Where RANK and WORLD_SIZE are set, as by `torchrun`, each process takes its share of the points; the last one to
    finish writes the summary.

    Returns
    -------
    dict
        output; points: a row each, what varies and its scores; over_seeds, where several seeds were tried: mean and
        standard deviation of each score.

    Raises
    ------
    InputError
        If a setting is unknown or not allowed, before anything is done.
    """
    points, shard = plan(config), Shard.from_environment()
    missing = [point for point in points if point.results() is None]
    for number, point in enumerate(missing):
        if number % shard.size == shard.rank:
            announce(f"[{number + 1}/{len(missing)}] {point.folder.name}")
            with working_alone():
                point.work(discard=config.discard)
    with _alone(config.output):
        found = [results for point in points if (results := point.results()) is not None]
        if len(found) < len(points):
            return waiting(shard)
        return {"output": str(config.output), **_summarise(config, points, found)}


def plan(config: SweepConfig) -> list[Point]:
    """Every point, in order: the last named setting varies fastest.

    Raises
    ------
    InputError
        If a setting is unknown or not allowed, or two points are the same.
    """
    over = {name: values.split(",") for name, values in map(_pair, config.over)}
    given = {"seed": str(config.seed), "device": config.device, **dict(map(_pair, config.sample))}
    if twice := sorted(over.keys() & dict(map(_pair, config.sample)).keys()):
        raise InputError(f"{twice[0]} stands in --over and in --sample; leave it out of one")
    judged = {"seed": str(config.seed), "device": config.device, **dict(map(_pair, config.evaluate))}
    points = []
    for values in itertools.product(*over.values()):
        chosen = dict(zip(over, values, strict=True))
        folder = config.output / POINTS / ("_".join(f"{name}-{_word(value)}" for name, value in chosen.items()))
        sampled = {**given, **chosen, "output": str(folder / "samples")}
        scored = {**judged, "samples": sampled["output"], "output": str(folder / "scores")}
        sample_config = _parse(SampleConfig, "sample", sampled, config.overwrite)
        evaluate_config = _parse(EvaluateConfig, "evaluate", scored, config.overwrite)
        typed = {name: _plain(getattr(sample_config, name.replace("-", "_"))) for name in chosen}
        points.append(Point(folder, typed, sample_config, evaluate_config))
    if len({point.folder for point in points}) < len(points):
        raise InputError("two points of --over are the same; give each value once, and folders with different names")
    return points


def over_seeds(rows: Sequence[Row], varied: Sequence[str], scores: Sequence[str]) -> list[Row]:
    """Mean and standard deviation of each score over the rows that differ in their seed alone."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    others = [name for name in varied if name != "seed"]
    for row in rows:
        groups[tuple(row[name] for name in others)].append(row)
    found = []
    for key, group in groups.items():
        made: Row = {**dict(zip(others, key, strict=True)), "n_seeds": len(group)}
        for name in scores:
            values = np.array([row[name] for row in group if row.get(name) is not None], dtype=np.float64)
            made[name] = float(values.mean()) if len(values) else None
            made[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
        found.append(made)
    return found


def score_names(rows: Sequence[Row], varied: Sequence[str]) -> list[str]:
    """What of the rows is a score of samples: neither a setting, nor a spread, nor of real images."""
    names = dict.fromkeys(name for row in rows for name in row if name not in (*varied, "method", "steps"))
    return [name for name in names if not name.startswith("real_") and not name.endswith("_sd")]


def curves(rows: Sequence[Row], varied: Sequence[str], scores: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What a picture of the rows shows: the setting along its axis, and for each score its lines.

    Along the axis goes the number that took most values: that of a checkpoint is its steps. Without any it is the
    checkpoint itself, or the seed.
    """
    others = [name for name in varied if name != "seed"]
    numeric = [name for name in [*others, "steps"] if all(isinstance(row.get(name), int | float) for row in rows)]
    n_values = {name: len({row[name] for row in rows}) for name in numeric}
    axis = max(n_values, key=n_values.__getitem__, default="")
    if n_values.get(axis, 0) < 2:
        axis = next((name for name in others if len({row[name] for row in rows}) > 1), "seed")
    same = {axis, "seed", *(["checkpoint"] if axis == "steps" else [])}
    by = [name for name in [*others, *(["method"] if axis == "steps" else [])] if name not in same]
    averaged = rows if axis == "seed" else over_seeds(rows, [axis, *by], scores)
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in averaged:
        lines[", ".join(str(row[name]) if name == "method" else f"{name} {row[name]}" for name in by)].append(row)
    return axis, {
        score: {
            name: (
                [row[axis] if isinstance(row[axis], int | float) else str(row[axis]) for row in line],
                np.array([row[score] for row in line], dtype=np.float64),
                np.array([row.get(f"{score}_sd") for row in line], dtype=np.float64),
            )
            for name, line in list(lines.items())[:_MOST_LINES]
        }
        for score in scores
    }


def _summarise(config: SweepConfig, points: Sequence[Point], found: Sequence[Row]) -> Row:
    rows = [
        {**point.facts, **{name: value for name, value in results.items() if isinstance(value, float)}}
        for point, results in zip(points, found, strict=True)
    ]
    warnings = list(dict.fromkeys(warning for results in found for warning in results.get("warnings", ())))
    varied = list(points[0].values)
    scores = score_names(rows, varied)
    groups = over_seeds(rows, varied, scores)
    brief = [{name: row.get(name) for name in [*varied, *scores]} for row in rows]
    results: Row = {"varied": varied, "scores": scores, "points": brief}
    if len(groups) < len(rows):
        results["over_seeds"] = groups
    if warnings:
        results["warnings"] = warnings
    settings = {name: value for name, value in config.settings().items() if name != "over"}
    inputs = {point.folder.name: digest_json([point.made_from, row]) for point, row in zip(points, rows, strict=True)}
    folder = config.output / SUMMARY
    with Workspace(folder, kind="sweep", settings=settings, inputs=inputs, overwrite=True) as workspace:
        if not workspace.complete:
            write_json(workspace.path(SCORES), {**results, "points": rows})
            axis, panels = curves(rows, varied, scores)
            score_curves(panels, workspace.path(PICTURE), xlabel=axis)
            workspace.finish([SCORES, PICTURE], results)
    return {name: results[name] for name in ("points", "over_seeds", "warnings") if name in results}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"settings of a sweep are given as name=value, got {text!r}")
    return name.removeprefix("--").replace("_", "-"), value


def _parse(config_class: type[Settings], verb: str, settings: dict[str, str], overwrite: bool) -> Settings:
    """The settings of a verb by the parser of its command line."""
    hints = typing.get_type_hints(config_class)
    flags = ["--overwrite"] if overwrite else []
    for name, value in settings.items():
        hint = hints.get(name.replace("-", "_"))
        if hint is bool:
            flags.append(f"--{'' if value.lower() == 'true' else 'no-'}{name}")
        else:
            flags += [f"--{name}", *(value.split() if typing.get_origin(hint) is tuple else [value])]
    try:
        return parse_settings(config_class, verb, flags)
    except InputError as error:
        raise InputError(f"of {verb}: {error}") from None


def _identity(value: Any) -> Any:
    """A setting as it stands, or the digest of the artifact that it names."""
    named = isinstance(value, str | Path) and str(value) and (Path(value) / MANIFEST).exists()
    return read_manifest(value).digest if named else _plain(value)


def _word(value: str) -> str:
    return re.sub(r"[^\w.+]+", "-", value).strip("-.") or "none"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, Path) else value


class _alone:  # noqa: N801 - used as a function
    """Wait until no other process is inside of here, in that folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(folder / ".lock", "w")  # noqa: SIM115

    def __enter__(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._lock.close()
