"""The scores of a set of images against a reference, under the names that they deserve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from codeprior.evaluation.adm import precision_and_recall_float16
from codeprior.evaluation.extraction import Judged
from codeprior.evaluation.manifold import NEIGHBOURS, precision_and_recall
from codeprior.evaluation.metrics import class_consistency, inception_score
from codeprior.evaluation.statistics import bootstrap_sd, kernel_distance

Task = Literal["generation", "reconstruction"]
Distances = Literal["exact", "float16"]
BOOTSTRAP_WIDTH = 512  # features up to which a bootstrap takes no longer than the rest
N_RESAMPLES = 20
_PUBLISHED_NAMES = {
    "generation": {"FD": "gFID", "sFD": "sFID", "KD": "KID"},
    "reconstruction": {"FD": "rFID", "sFD": "rsFID", "KD": "rKID"},
}

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Space:
    """Whose features they are; only those of the published Inception give scores their published names."""

    name: str
    digest: str
    is_standard: bool = False

    def note(self) -> dict[str, Any]:
        """What a file of these features says of them."""
        return {"name": self.name, "digest": self.digest, "is_standard": self.is_standard}


@dataclass(frozen=True)
class Scorer:
    """Computes the scores of sets of images in one feature space; `names` says what each is called.

    `distances` are those of precision and recall; `n_resamples` is None for as many as are quickly done.
    """

    space: Space
    task: Task = "generation"
    distances: Distances = "exact"
    split_size: int = 5000
    n_resamples: int | None = None
    device: torch.device | str = "cpu"

    def name(self, kind: str) -> str:
        """What a kind of score is called: FD as gFID or rFID, or as FD[network]."""
        if self.space.is_standard:
            return _PUBLISHED_NAMES[self.task].get(kind, kind)
        return f"{kind}[{self.space.name}]"

    def scores(self, images: Judged, reference: Judged, generator: np.random.Generator) -> Scores:
        """All scores that can be had; spreads as `_sd`. None where there are too few images for one.

        FD and sFD (Fréchet distances to the reference), KD (kernel distance), precision, recall, IS, and the share of
        images taken for the class they were made for.
        """
        return {
            **self._frechet(images, reference, generator),
            **self._of_pairs(images, reference, generator),
            **self._inception(images, generator),
            "class_consistency": _consistency(images),
        }

    def _frechet(self, images: Judged, reference: Judged, generator: np.random.Generator) -> Scores:
        found: Scores = {self.name("FD"): images.gaussian.distance(reference.gaussian)}
        spatial = images.spatial_gaussian, reference.spatial_gaussian
        if spatial[0] is not None and spatial[1] is not None:
            found[self.name("sFD")] = spatial[0].distance(spatial[1])
        n_resamples = self.n_resamples
        if n_resamples is None:
            n_resamples = N_RESAMPLES if len(reference.gaussian.mean) <= BOOTSTRAP_WIDTH else 0
        if n_resamples and images.features is not None:
            whole = reference.features if not reference.source.statistics else None
            other = reference.gaussian if whole is None else whole
            found[f"{self.name('FD')}_sd"] = bootstrap_sd(images.features, other, generator, n_resamples)
        return found

    def _of_pairs(self, images: Judged, reference: Judged, generator: np.random.Generator) -> Scores:
        """Scores that need the features of single images on both sides."""
        a, b = images.features, reference.features
        if a is None or b is None:
            return {}
        kernel, kernel_sd = kernel_distance(a, b, generator)
        suffix = "" if self.distances == "exact" else f"_{self.distances}"
        measure = precision_and_recall if self.distances == "exact" else precision_and_recall_float16
        enough = min(len(a), len(b)) > NEIGHBOURS
        precision, recall = measure(b, a, device=self.device) if enough else (None, None)
        return {
            self.name("KD"): kernel,
            f"{self.name('KD')}_sd": kernel_sd,
            self.name(f"precision{suffix}"): precision,
            self.name(f"recall{suffix}"): recall,
        }

    def _inception(self, images: Judged, generator: np.random.Generator) -> Scores:
        """IS over consecutive runs as ADM's evaluator; where there are several, also after a shuffle and over all."""
        p = images.probabilities
        if p is None:
            return {}
        found: Scores = {self.name("IS"): inception_score(p, self.split_size)}
        if len(p) > self.split_size:
            found[self.name("IS_shuffled")] = inception_score(p[generator.permutation(len(p))], self.split_size)
            found[self.name("IS_one_split")] = inception_score(p)
        return found

    def published(self, scores: Mapping[str, float | None]) -> dict[str, float | None]:
        """The scores that ADM's evaluator prints, under `adm.scores_text`'s keys."""
        kinds = {"IS": "IS", "FID": "FD", "sFID": "sFD"}
        found = {key: scores.get(self.name(kind)) for key, kind in kinds.items()}
        suffix = "" if self.distances == "exact" else f"_{self.distances}"
        return found | {kind: scores.get(self.name(f"{kind}{suffix}")) for kind in ("precision", "recall")}


def _consistency(images: Judged) -> float | None:
    if images.labels is None or images.probabilities is None or not images.knows_labels:
        return None
    return class_consistency(images.probabilities, images.labels)
