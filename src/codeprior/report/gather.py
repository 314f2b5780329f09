"""What a folder holds: every artifact below it by kind, the priors, how they were made from each other."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from codeprior.artifact import MANIFEST, UNFINISHED, Manifest, digest_array, read_json, read_manifest
from codeprior.errors import InputError
from codeprior.prior import CodebookPrior, is_prior_file

_TENSORS = ".safetensors"
METHOD_NAMES = {
    "dcpe": "DCPE",
    "kmeans": "k-means",
    "kmeans++": "k-means++",
    "kmeans++-weighted": "k-means++ by usage",
    "balanced-kmeans": "balanced k-means",
    "kmeans-instance": "k-means by instances",
    "centroid": "centroid linkage",
    "ward": "Ward linkage",
    "complete": "complete linkage",
}


@dataclass(frozen=True, eq=False)
class PriorFile:
    """A prior and where it lies."""

    path: Path
    prior: CodebookPrior

    @property
    def digest(self) -> str:
        """The prior's."""
        return self.prior.digest


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything below a folder that a report can tell of; what could not be read is named in `problems`."""

    folder: Path
    manifests: list[Manifest]
    priors: list[PriorFile]
    problems: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Manifest]:
        """The artifacts of a kind, by path."""
        return [manifest for manifest in self.manifests if manifest.kind == kind]

    def place(self, path: Path) -> str:
        """A path as seen from the folder."""
        return path.relative_to(self.folder).as_posix() if path != self.folder else path.name

    @cached_property
    def _by_digest(self) -> dict[str, Manifest]:
        return {manifest.digest: manifest for manifest in self.manifests}

    def source(self, manifest: Manifest | None, name: str) -> Manifest | None:
        """The artifact that another names as its input, if it lies below the folder too."""
        return self._by_digest.get(manifest.inputs.get(name, "")) if manifest else None

    @cached_property
    def model_labels(self) -> dict[str, str]:
        """What each checkpoint is called, by its digest: its objective, and its place where that is not enough."""
        models = self.of("checkpoint")
        plain = {model.digest: _model_label(model) for model in models}
        counts = Counter(plain.values())
        return {
            model.digest: label if counts[label] == 1 else f"{label} ({self.place(model.folder)})"
            for model, label in zip(models, plain.values(), strict=True)
        }

    def model_of(self, manifest: Manifest) -> Manifest | None:
        """The checkpoint that samples, or the samples of an evaluation, come from, if it lies below the folder."""
        samples = self.source(manifest, "samples") if manifest.kind == "evaluation" else manifest
        return self.source(samples, "checkpoint")

    def model_label(self, manifest: Manifest) -> str:
        """What a checkpoint, samples or an evaluation are of: the model's label, or their own place."""
        model = manifest if manifest.kind == "checkpoint" else self.model_of(manifest)
        return self.model_labels[model.digest] if model else self.place(manifest.folder)

    def method_of(self, manifest: Manifest) -> str:
        """The clustering method behind a checkpoint, samples or an evaluation; "token" for none, "" if unknown."""
        model = manifest if manifest.kind == "checkpoint" else self.model_of(manifest)
        return (model.results.get("method") or "token") if model else ""

    def by_method(self, manifests: list[Manifest], order: list[str]) -> list[Manifest]:
        """Checkpoints, samples or evaluations in the order of their methods, then of their places."""

        def rank(manifest: Manifest) -> tuple[int, str]:
            method = self.method_of(manifest)
            return (order.index(method) if method in order else len(order), self.place(manifest.folder))

        return sorted(manifests, key=rank)


def method_name(method: str | None) -> str:
    """A clustering method as people write it."""
    return METHOD_NAMES.get(method or "", method or "none")


def method_order(method: str) -> tuple[bool, str]:
    """Where a method stands among others: DCPE after what it is compared with."""
    return method == "dcpe", method


def _model_label(model: Manifest) -> str:
    method = model.results.get("method")
    return f"{method_name(method)} clusters" if method else "plain tokens"


def gather(folder: Path) -> Findings:
    """Read every manifest and every prior below a folder.

    Raises
    ------
    InputError
        If there is no such folder, or nothing of ours below it.
    """
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}; give the folder that holds the artifacts")
    manifests: list[Manifest] = []
    priors: dict[str, PriorFile] = {}
    problems: list[str] = []
    for path in _files(folder):
        try:
            if path.name == MANIFEST:
                manifests.append(read_manifest(path.parent))
            elif path.name == UNFINISHED and not path.with_name(MANIFEST).exists():
                problems.append(f"{path.parent.relative_to(folder)} is unfinished")
            elif is_prior_file(path):
                prior = CodebookPrior.load(path)
                partition = f"{prior.codebook_digest} {digest_array(prior.token_to_cluster)}"
                priors.setdefault(partition, PriorFile(path, prior))  # a checkpoint carries a copy, deeper down
        except InputError as error:
            problems.append(str(error))
    if not manifests and not priors:
        raise InputError(f"{folder} holds no artifacts of codeprior; run `codeprior demo`, or another verb, first")
    in_order = sorted(priors.values(), key=lambda file: (method_order(file.prior.method), -file.prior.n_clusters))
    return Findings(folder, manifests, in_order, problems)


def _files(folder: Path) -> list[Path]:
    """The files of ours below a folder, by their depth and path; links to folders are followed, each folder once."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        inside = [name for name in sorted(folders) if not name.startswith(".")]
        folders[:] = [name for name in inside if os.path.realpath(Path(place, name)) not in seen]
        seen.update(os.path.realpath(Path(place, name)) for name in folders)
        found += [Path(place, name) for name in names if name in (MANIFEST, UNFINISHED) or name.endswith(_TENSORS)]
    return sorted(found, key=lambda path: (len(path.parts), path))


def read_metrics(manifest: Manifest) -> list[dict[str, Any]]:
    """The lines of a checkpoint's `metrics.jsonl`, a log; none if it has no such file."""
    path = manifest.path("metrics.jsonl")
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut short by a full disk or a kill
            lines.append(json.loads(line))
    return lines


def read_meta(manifest: Manifest) -> dict[str, Any]:
    """What a code store says of its images: class_names, grid, image_size."""
    meta: dict[str, Any] = read_json(manifest.path("meta.json"))
    return meta
