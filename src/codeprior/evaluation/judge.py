"""Score images against real ones: verb `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeprior.artifact import Workspace, write_atomically, write_json
from codeprior.config import EvaluateConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.evaluation.adm import scores_text
from codeprior.evaluation.checks import (
    check_sizes,
    check_spaces,
    number_warnings,
    order_warnings,
    reference_warnings,
)
from codeprior.evaluation.extraction import Extraction, Judged, given_rows, probe
from codeprior.evaluation.features import FeatureNetwork
from codeprior.evaluation.networks import INCEPTION_NAME, load_network, space_of
from codeprior.evaluation.scores import Scorer, Space
from codeprior.evaluation.sources import NOTE, Images, Source, note_array, open_source
from codeprior.npz import write_npz
from codeprior.parts import waiting
from codeprior.shards import Shard

SCORES, TEXT, FEATURES = "scores.json", "scores.txt", "features.npz"


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score samples against real images, and real images against real ones beside it.

    Where RANK and WORLD_SIZE are set, as by `torchrun`, each process makes the features of its share of the images, and
    the last one to finish computes the scores. A killed run is continued, by any number of processes.

    Returns
    -------
    dict
        output; feature_network; reference, the name of its images; the scores of `scores.Scorer`, each under the name
        that it deserves (gFID, or FD[name] of another network than the published Inception), spreads as `_sd`; the same
        with `real_` for real images in the samples' place, where there are such, and real_is, which says what these
        were; n_samples, n_reference, n_real, n_real_reference; warnings, a line each.

    Raises
    ------
    InputError
        If the samples, the reference or the network cannot be read or do not fit together.
    """
    shard, run = Shard.from_environment(), _Evaluation(config)
    with Workspace(
        config.output,
        kind="evaluation",
        settings=config.settings(),
        inputs=run.inputs(),
        overwrite=config.overwrite,
        shard=shard,
    ) as workspace:
        if not workspace.complete:
            run.make(workspace)
        results = waiting(shard) if workspace.manifest is None else workspace.manifest.results
        if config.write_txt and workspace.manifest is not None:
            run.write_text(Path(f"{str(config.samples).removesuffix('.npz')}.txt"), results)
        return {"output": str(config.output), **results}


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """What an evaluation reads; making one refuses what does not fit, before anything is written."""

    config: EvaluateConfig

    def __post_init__(self) -> None:
        others = [source for name, source in self.sources.items() if name != "samples"]
        check_sizes(self.sources["samples"], others)
        check_spaces(list(self.sources.values()), self.space)
        for name in self.to_extract:
            probe(*self._seen(name))
        self._check_fit()
        _ = self.reference_warnings

    @cached_property
    def device(self) -> torch.device:
        return resolve_device(self.config.device)

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Samples, reference and, if there is one, baseline."""
        samples = open_source(str(self.config.samples))
        places = {"reference": self.config.reference, "baseline": self.config.baseline}
        opened = {
            name: open_source(place, samples.image_size, seed=self.config.seed)
            for name, place in places.items()
            if place
        }
        return {"samples": samples, **opened}

    @cached_property
    def to_extract(self) -> list[str]:
        """The sets whose features no file holds."""
        return [name for name, source in self.sources.items() if source.features is None and source.images is not None]

    @cached_property
    def network(self) -> FeatureNetwork | None:
        """None where there is nothing to extract."""
        if not self.to_extract:
            return None
        config = self.config
        weights = config.inception_weights
        return load_network(config.features, self.device, inception_weights=weights, download=config.download)

    @cached_property
    def space(self) -> Space:
        """Of the network; without one, of what the files say, or of what the features are said to be."""
        if self.network is not None:
            return space_of(self.network)
        said = [source.note["space"] for source in self.sources.values() if "space" in source.note]
        label = "given" if self.config.features == INCEPTION_NAME else self.config.features
        return Space(**said[0]) if said else Space(label, "")

    @cached_property
    def scorer(self) -> Scorer:
        config = self.config
        return Scorer(
            self.space, config.task, config.distances, config.split_size, config.n_resamples, device=self.device
        )

    @cached_property
    def reference_warnings(self) -> list[str]:
        return reference_warnings(self.sources["samples"], self.sources["reference"], self.config.task)

    def inputs(self) -> dict[str, str]:
        """Digests of all that the scores are made from."""
        return {name: source.digest for name, source in self.sources.items()} | {"features": self.space.digest}

    def _check_fit(self) -> None:
        samples, reference = self.sources["samples"], self.sources["reference"]
        n_classes = self.network.n_classes if self.network is not None else None
        if n_classes is not None and samples.labels is not None and samples.labels.max() >= n_classes:
            raise InputError(
                f"{self.space.name} knows classes 0 to {n_classes - 1}, a sample has class {samples.labels.max()}"
            )
        numbers = [source.n_images for source in self.sources.values() if source.n_images is not None]
        if self._halves_reference and reference.n_images is not None:
            numbers.append(reference.n_images // 2)
        if min(numbers, default=2) < 2:
            raise InputError(
                "a Fréchet distance needs 2 images or more on each side, and 4 to split the reference in halves"
            )

    @property
    def _halves_reference(self) -> bool:
        """Whether real images are one half of the reference against the other."""
        reference = self.sources["reference"]
        return "baseline" not in self.sources and not reference.statistics and not reference.note

    def make(self, workspace: Workspace) -> None:
        """Make this process's share of the features, and, if it is the last to finish, the scores."""
        extractions = {name: self._extraction(workspace, name) for name in self.to_extract}
        for extraction in extractions.values():
            extraction.make_share()
        with workspace.alone():
            if workspace.complete or any(extraction.is_missing for extraction in extractions.values()):
                return
            judged = {
                name: extractions[name].judged() if name in extractions else given_rows(source)
                for name, source in self.sources.items()
            }
            results = self._results(**judged)
            files = [SCORES]
            write_json(workspace.path(SCORES), results)
            if self.space.is_standard:
                self.write_text(workspace.path(TEXT), results)
                files.append(TEXT)
            if self.config.save_features:
                self._save(workspace.path(FEATURES), judged["samples"])
                files.append(FEATURES)
            workspace.finish(files, results)
            for extraction in extractions.values():
                extraction.remove()

    def _seen(self, name: str) -> tuple[FeatureNetwork, Images]:
        """The network, and the images of a set that it is to see."""
        network, images = self.network, self.sources[name].images
        assert network is not None
        assert images is not None
        return network, images

    def _extraction(self, workspace: Workspace, name: str) -> Extraction:
        network, images = self._seen(name)
        indices = None
        if name == "baseline":  # as many as there are samples: equal n, equal bias
            order = np.random.default_rng([self.config.seed, 2]).permutation(images.n_images)
            indices = np.sort(order[: self.sources["samples"].n_images])
        batch_size, source = self.config.batch_size, self.sources[name]
        return Extraction(workspace, name, source, network, batch_size=batch_size, device=self.device, indices=indices)

    def _results(self, samples: Judged, reference: Judged, baseline: Judged | None = None) -> dict[str, Any]:
        resampling = np.random.default_rng([self.config.seed, 0])
        generator = np.random.default_rng([self.config.seed, 1])  # real scores do not depend on the samples
        results: dict[str, Any] = {"feature_network": self.space.name}
        results["reference"] = reference.source.note.get("images", reference.source.name)
        results |= self.scorer.scores(samples, reference, resampling)
        n_reference = len(reference) or reference.source.note.get("n_images")
        results |= {"n_samples": len(samples) or samples.source.n_images, "n_reference": n_reference}
        if baseline is not None:
            said = f"{len(baseline):,} images of {baseline.source.name} against the same reference"
            results |= self._real_results(baseline, reference, said, generator)
        elif self._halves_reference:
            order = generator.permutation(len(reference))
            half = len(reference) // 2
            other, against = reference.take(order[:half]), reference.take(order[half:])
            said = f"{len(other):,} images of the reference against its other {len(against):,}"
            results |= self._real_results(other, against, said, generator)
        warnings = [
            *self.reference_warnings,
            *number_warnings(samples, reference, self.space),
            *order_warnings(samples, self.config.split_size, self.scorer.name("IS_shuffled")),
        ]
        return {**results, "warnings": warnings}

    def _real_results(
        self, images: Judged, reference: Judged, said: str, generator: np.random.Generator
    ) -> dict[str, Any]:
        scores = self.scorer.scores(images, reference, generator)
        numbers = {"real_is": said, "n_real": len(images), "n_real_reference": len(reference)}
        return {f"real_{name}": value for name, value in scores.items()} | numbers

    def _save(self, path: Path, samples: Judged) -> None:
        arrays = {"features": samples.features, "spatial": samples.spatial, "probabilities": samples.probabilities}
        note = {"space": self.space.note(), "n_images": len(samples), "image_size": samples.source.image_size}
        present = {name: array for name, array in arrays.items() if array is not None}
        labels = {} if samples.labels is None else {"arr_1": samples.labels}
        write_npz(path, {**present, **labels, NOTE: note_array(note)})

    def write_text(self, path: Path, results: dict[str, Any]) -> None:
        """The scores in the words of ADM's evaluator, if they are those of its network."""
        if not self.space.is_standard:
            raise InputError(f"ADM's lines are of its own network; scores of {self.space.name} are not written so")
        with write_atomically(path) as temporary:
            temporary.write_text(scores_text(self.scorer.published(results)))
