"""What a folder holds: every artifact below it by kind, the priors, how they were made from each other."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from codeprior.artifact import MANIFEST, UNFINISHED, Manifest, digest_array, read_json, read_manifest
from codeprior.errors import InputError
from codeprior.prior import CodebookPrior, is_prior_file
from codeprior.runlog import METRICS, SNAPSHOTS
from codeprior.sweep import POINT

_TENSORS = ".safetensors"


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
        return {manifest.digest: manifest for manifest in reversed(self.manifests)}  # of equal ones the first

    def source(self, manifest: Manifest | None, name: str) -> Manifest | None:
        """The artifact that another names as its input, if it lies below the folder too."""
        return self._by_digest.get(manifest.inputs.get(name, "")) if manifest else None

    def samples_of(self, manifest: Manifest) -> Manifest | None:
        """Samples themselves, or those that scores are of; None of a checkpoint or if they lie elsewhere."""
        if manifest.kind == "evaluation":
            return self.source(manifest, "samples")
        return manifest if manifest.kind == "samples" else None

    def model_of(self, manifest: Manifest) -> Manifest | None:
        """A checkpoint itself, or the one that samples, scores or likelihoods are of, if it lies below the folder."""
        if manifest.kind == "checkpoint":
            return manifest
        made_from = manifest if manifest.kind == "likelihood" else self.samples_of(manifest)
        return self.source(made_from, "checkpoint")


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
    return Findings(folder, manifests, list(priors.values()), problems)


def _files(folder: Path) -> list[Path]:
    """The files of ours below a folder, by their depth and path; links to folders are followed, each folder once.

    The points of a sweep that are done are left out, since the sweep's summary tells of them, and snapshots of a run.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if POINT in names:
            folders.clear()
            continue
        inside = [name for name in sorted(folders) if not name.startswith(".")]
        if METRICS in names and SNAPSHOTS in inside:
            inside.remove(SNAPSHOTS)
        folders[:] = [name for name in inside if os.path.realpath(Path(place, name)) not in seen]
        seen.update(os.path.realpath(Path(place, name)) for name in folders)
        found += [Path(place, name) for name in names if name in (MANIFEST, UNFINISHED) or name.endswith(_TENSORS)]
    return sorted(found, key=lambda path: (len(path.parts), path))


def read_metrics(manifest: Manifest) -> list[dict[str, Any]]:
    """The lines of a checkpoint's `metrics.jsonl`, a log; none if it has no such file."""
    path = manifest.path(METRICS)
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
