"""The points of a sweep: which there are, what is done at each, what was found there."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from codeprior.artifact import MANIFEST, Manifest, digest_json, digest_sampled, read_json, read_manifest, write_json
from codeprior.config import EvaluateConfig, SampleConfig, SweepConfig, VerbConfig
from codeprior.config.arguments import parse_settings
from codeprior.errors import InputError
from codeprior.evaluation.judge import evaluate
from codeprior.generation.sample import sample
from codeprior.shards import working_alone
from codeprior.sweep import POINT, POINTS
from codeprior.sweep.summary import Row

# Settings of sample and evaluate that say where and how, not what.
_NO_MATTER = {"samples", "output", "overwrite", "json", "dry_run", "config", "device", "batch_size", "compile"}
_NO_MATTER |= {"download", "write_txt", "save_features"}
_OURS = ("samples", "output", "overwrite", "json", "dry-run")

Settings = TypeVar("Settings", bound=VerbConfig)
ManifestOf = Callable[[Path | str], Manifest]


@dataclass(frozen=True)
class Point:
    """One combination of what varies: its values by name, and what to do there."""

    folder: Path
    values: Row
    """What varies; where checkpoints do, how each was trained too."""
    sample: SampleConfig
    evaluate: EvaluateConfig
    made_from: Row
    """All that decides the scores, as JSON values."""

    def results(self) -> Row | None:
        """What was found here, if this point is done: scores, and warnings."""
        path = self.folder / POINT
        record = read_json(path) if path.exists() else {}
        return record["results"] if record.get("digest") == digest_json(self.made_from) else None

    def work(self, *, discard: bool) -> None:
        """Sample and score, and say so in the point's folder."""
        with working_alone():
            sample(self.sample)
            results = evaluate(self.evaluate)
        record = {"digest": digest_json(self.made_from), **self.made_from, "results": results}
        write_json(self.folder / POINT, record)
        if discard:
            shutil.rmtree(self.sample.output)


@contextlib.contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process is the one that works in a folder, while it does; if not, it may wait until it is."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        yield mine


def plan(config: SweepConfig) -> list[Point]:
    """Every point, in order: the last named setting varies fastest.

    Raises
    ------
    InputError
        If a setting is unknown or not allowed, or two points are the same.
    """
    over = {name: values.split(",") for name, values in map(_pair, config.over)}
    fixed, judged = dict(map(_pair, config.sample)), dict(map(_pair, config.evaluate))
    if len(over) < len(config.over):
        raise InputError("a setting stands in --over twice; give all of its values together: cfg-scale=1,1.5,2")
    if twice := sorted(over.keys() & fixed.keys()):
        raise InputError(f"{twice[0]} stands in --over and in --sample; leave it out of one")
    common = {"seed": str(config.seed), "device": config.device}
    manifest_of = cache(read_manifest)  # reading one compares its files with their digests
    points = []
    for values in itertools.product(*over.values()):
        chosen = dict(zip(over, values, strict=True))
        folder = config.output / POINTS / ("_".join(f"{name}-{_word(value)}" for name, value in chosen.items()))
        places = {"samples": str(folder / "samples"), "output": str(folder / "scores")}
        sampled = {**common, **fixed, **chosen, "output": places["samples"]}
        sample_config = _parse(SampleConfig, "sample", sampled, config.overwrite)
        evaluate_config = _parse(EvaluateConfig, "evaluate", {**common, **judged, **places}, config.overwrite)
        typed = {name: _plain(getattr(sample_config, name.replace("-", "_"))) for name in chosen}
        if "checkpoint" in chosen:
            typed |= _training(manifest_of(sample_config.checkpoint))
        made_from = _made_from(sample_config, evaluate_config, manifest_of)
        points.append(Point(folder, typed, sample_config, evaluate_config, made_from))
    if len({point.folder for point in points}) < len(points):
        raise InputError("two points of --over are the same; give each value once, and folders with different names")
    return points


def _training(manifest: Manifest) -> Row:
    """How a checkpoint was trained: by what, and for how long."""
    method = manifest.results.get("method") or manifest.results.get("objective")
    return {"method": method, "steps": manifest.settings.get("steps")}


def _made_from(sampled: SampleConfig, judged: EvaluateConfig, manifest_of: ManifestOf) -> Row:
    return {
        verb: {name: _identity(value, manifest_of) for name, value in asdict(config).items() if name not in _NO_MATTER}
        for verb, config in (("sample", sampled), ("evaluate", judged))
    }


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name = name.removeprefix("--").replace("_", "-")
    if not (name and equals and value):
        raise InputError(f"settings of a sweep are given as name=value, got {text!r}")
    if name in _OURS:
        raise InputError(f"a sweep sees to {name} itself; leave it out")
    return name, value


def _parse(config_class: type[Settings], verb: str, settings: dict[str, str], overwrite: bool) -> Settings:
    """The settings of a verb by the parser of its command line."""
    hints = typing.get_type_hints(config_class)
    flags = ["--overwrite"] if overwrite else []
    for name, value in settings.items():
        hint = hints.get(name.replace("-", "_"))
        if value.lower() in ("true", "false") and bool in (hint, *typing.get_args(hint)):
            flags.append(f"--{'' if value.lower() == 'true' else 'no-'}{name}")
        else:
            flags += [f"--{name}", *(value.split() if typing.get_origin(hint) is tuple else [value])]
    try:
        return parse_settings(config_class, verb, flags)
    except InputError as error:
        raise InputError(f"of {verb}: {error}") from None


def _identity(value: Any, manifest_of: ManifestOf) -> Any:
    """A setting as it stands, or the digest of the artifact or of the file that it names."""
    if isinstance(value, str | Path) and str(value):
        if (Path(value) / MANIFEST).exists():
            return manifest_of(value).digest
        if Path(value).is_file():
            return digest_sampled(Path(value))
    return _plain(value)


def _word(value: str) -> str:
    return re.sub(r"[^\w.+]+", "-", value).strip("-.") or "none"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, Path) else value
