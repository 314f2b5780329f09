"""Reconstructions and what they lose, as they are and with each token replaced by a random one of its cluster.

DCPE (Tang et al., 2025), Table VI: the replacement test. A prior is good if this changes little: then a generator that
predicts clusters may leave the choice of the token to chance. Verb `reconstruct`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from codeprior.artifact import Workspace, write_atomically, write_json
from codeprior.config import ReconstructConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.evaluation.checks import check_sizes, check_spaces, frechet_warnings, reference_warnings
from codeprior.evaluation.features import FeatureNetwork
from codeprior.evaluation.lpips import Lpips
from codeprior.evaluation.metrics import LLAMAGEN_RANGE, SSIM_WINDOW, psnr_db, ssim
from codeprior.evaluation.networks import load_network, space_of
from codeprior.evaluation.scores import Scorer
from codeprior.evaluation.sources import Source, open_source, set_source
from codeprior.evaluation.statistics import Gaussian
from codeprior.images import ImageSet, open_images
from codeprior.parts import Parts, Rows, read_ahead, waiting
from codeprior.pixels import to_pixels, to_tensor
from codeprior.plots import image_grid
from codeprior.prior import CodebookPrior
from codeprior.replacement import Variant, name_priors
from codeprior.shards import Shard
from codeprior.tokenizers import Tokenizer, load_tokenizer

ROWS, EXAMPLES, PICTURE = "rows.json", "examples.npz", "examples.png"
N_EXAMPLES = 10


def reconstruct(config: ReconstructConfig) -> dict[str, Any]:
    """Score reconstructions without replacement, and with each prior's.

    Images pass through a batch at a time. Where RANK and WORLD_SIZE are set, as by `torchrun`, the processes share
    them; a killed run is continued.

    Returns
    -------
    dict
        output; rows, one without replacement (prior "none") and one a prior, each of prior, method, n_clusters,
        psnr_db, ssim, ssim_llamagen (see `metrics.ssim`) and, if wanted, lpips (means over images); where there is a
        feature network, rFID, or FD[name] of another than the published Inception, to the originals or to the
        reference given; their `_sd` over the seeds, n_images, n_seeds; warnings.

    Raises
    ------
    InputError
        If something cannot be read, or a prior was made from another tokenizer's codebook (both digests are named).
    """
    shard, test = Shard.from_environment(), _Test(config)
    with Workspace(
        config.output,
        kind="replacement",
        settings=config.settings(),
        inputs=test.inputs,
        overwrite=config.overwrite,
        shard=shard,
    ) as workspace:
        if not workspace.complete:
            test.make(workspace)
        results = waiting(shard) if workspace.manifest is None else workspace.manifest.results
        return {"output": str(config.output), **results}


@dataclass(frozen=True, eq=False)
class _Test:
    """What is scored, and how; making one refuses what does not fit, before anything is written.

    The row of an image: the measures of each variant, then the features of the original and of each variant.
    """

    config: ReconstructConfig

    def __post_init__(self) -> None:
        config = self.config
        for name, prior in self.priors.items():
            prior.verify(self.tokenizer.codebook.digest, f"{config.tokenizer} (beside {name})")
        self.tokenizer.grid(self.size)
        if self.size < SSIM_WINDOW:
            raise InputError(f"image_size must be at least {SSIM_WINDOW}, got {self.size}")
        if self.network is None:
            if config.reference is not None:
                raise InputError("a reference needs --features, whose statistics it holds")
            return
        if len(self.numbers) < 2:
            raise InputError(f"a Fréchet distance needs 2 images or more, got {len(self.numbers)}")
        _ = self.warnings

    # -- what is read --

    @cached_property
    def device(self) -> torch.device:
        return resolve_device(self.config.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.config.tokenizer, self.device)

    @cached_property
    def priors(self) -> dict[str, CodebookPrior]:
        return name_priors(self.config.priors)

    @cached_property
    def images(self) -> ImageSet:
        return open_images(self.config.data, bad_images=self.config.bad_images, seed=self.config.seed)

    @cached_property
    def network(self) -> FeatureNetwork | None:
        config = self.config
        if config.features is None:
            return None
        weights = config.inception_weights
        return load_network(config.features, self.device, inception_weights=weights, download=config.download)

    @cached_property
    def lpips(self) -> Lpips | None:
        wanted = self.config.lpips
        return None if wanted is None else Lpips(wanted, self.device, download=self.config.download)

    @cached_property
    def reference(self) -> Source | None:
        place = self.config.reference
        return None if place is None else open_source(place, self.size)

    @property
    def size(self) -> int:
        return self.config.image_size or self.tokenizer.image_size

    @cached_property
    def numbers(self) -> np.ndarray:
        """Which images, ascending: all, or random ones."""
        order = np.random.default_rng(self.config.seed).permutation(len(self.images))
        return np.sort(order[: self.config.n_images])

    @cached_property
    def warnings(self) -> list[str]:
        """What speaks against comparing the Fréchet distances."""
        if self.network is None:
            return []
        space = space_of(self.network)
        found = frechet_warnings(len(self.numbers), self.n_features, space)
        if self.reference is None:
            return found
        originals = set_source(self.images, self.size, self.numbers)
        check_sizes(originals, [self.reference])
        check_spaces([self.reference], space)
        if "features" not in self.reference.statistics and self.reference.features is None:
            raise InputError(
                f"{self.config.reference} holds images alone; make a reference of them: codeprior reference "
                "--purpose reconstruction"
            )
        return found + reference_warnings(originals, self.reference, "reconstruction")

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of all that the scores are made from."""
        inputs = {"images": self.images.digest, "tokenizer": self.tokenizer.digest}
        inputs |= {f"prior {name}": prior.digest for name, prior in self.priors.items()}
        inputs |= {"features": self.network.digest} if self.network else {}
        inputs |= {"reference": self.reference.digest} if self.reference else {}
        return inputs | (self.lpips.digests if self.lpips else {})

    # -- rows --

    @cached_property
    def variants(self) -> list[Variant]:
        """No replacement, then each prior's with each seed."""
        seeds = [(self.config.seed, index) for index in range(self.config.n_seeds)]
        return [Variant("none"), *(Variant(name, prior, seed) for name, prior in self.priors.items() for seed in seeds)]

    @cached_property
    def measures(self) -> list[str]:
        """What is measured of each image and variant."""
        return ["psnr_db", "ssim", "ssim_llamagen", *([self.lpips.name] if self.lpips else [])]

    @cached_property
    def n_features(self) -> int:
        """Features of an image that are kept; 0 without a network."""
        if self.network is None:
            return 0
        row = self.network.features(np.zeros((1, self.size, self.size, 3), dtype=np.uint8))
        return self.network.n_features or row.shape[1]

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Originals (B, S, S, 3), uint8."""
        return self.images.read_many(numbers, self.size)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Codes (B, T)."""
        return self.tokenizer.encode(to_tensor(pixels, self.device)).cpu().numpy()

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Images (B, S, S, 3), uint8, of codes (B, T)."""
        return to_pixels(self.tokenizer.decode(torch.from_numpy(codes).to(self.device), self.tokenizer.grid(self.size)))

    def rows(self, numbers: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """Rows (B, W), float32, of the images with these numbers."""
        codes = self.encode(originals)
        decoded = [self.decode(variant.codes(codes, numbers)) for variant in self.variants]
        measured = [np.stack([self._measure(originals, images)[name] for name in self.measures]) for images in decoded]
        features = [self._features(images) for images in [originals, *decoded]] if self.network else []
        return np.concatenate([np.concatenate(measured).T, *features], axis=1, dtype=np.float32, casting="same_kind")

    def _measure(self, originals: np.ndarray, images: np.ndarray) -> dict[str, np.ndarray]:
        found = {
            "psnr_db": psnr_db(originals, images),
            "ssim": ssim(originals, images),
            "ssim_llamagen": ssim(originals, images, LLAMAGEN_RANGE),
        }
        return found | ({self.lpips.name: self.lpips.distances(originals, images)} if self.lpips else {})

    def _features(self, images: np.ndarray) -> np.ndarray:
        assert self.network is not None
        return self.network.features(images)[:, : self.n_features]

    # -- results --

    def make(self, workspace: Workspace) -> None:
        """Make this process's share of the rows and, if it is the last to finish, the results."""
        n_columns = len(self.variants) * len(self.measures)
        n_columns += (len(self.variants) + 1) * self.n_features
        parts = Parts(workspace.path("parts"), len(self.numbers), (n_columns,), np.dtype(np.float32))

        def numbered(run: range) -> tuple[np.ndarray, np.ndarray]:
            numbers = self.numbers[run.start : run.stop]
            return numbers, self.read(numbers)

        def batches(run: range) -> Iterator[Rows]:
            for numbers, originals in read_ahead(numbered, run, self.config.batch_size):
                yield self.rows(numbers, originals), {}

        parts.make_share(workspace, self.config.batch_size, batches, "reconstruct")
        with workspace.alone():
            if workspace.complete or parts.missing(range(len(self.numbers))):
                return
            path = workspace.path(".rows.npy")
            results = {"rows": self._results(parts.assemble(path)), "warnings": self.warnings}
            write_json(workspace.path(ROWS), results["rows"])
            self._write_examples(workspace)
            workspace.finish([ROWS, EXAMPLES], results)
            parts.remove()
            path.unlink()

    def _results(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """A row of the table without replacement, and one a prior: means over the seeds, and their spread."""
        scores = self._scores(rows)
        by_name: dict[str, list[dict[str, float]]] = {}
        for variant, of_variant in zip(self.variants, scores, strict=True):
            by_name.setdefault(variant.name, []).append(of_variant)
        return [
            _row(name, self.priors.get(name), found, len(self.tokenizer.codebook), len(rows))
            for name, found in by_name.items()
        ]

    def _scores(self, rows: np.ndarray) -> list[dict[str, float]]:
        """Of each variant."""
        n_measures, n_features = len(self.measures), self.n_features
        n_measured = len(self.variants) * n_measures
        means = rows[:, :n_measured].mean(axis=0, dtype=np.float64).reshape(-1, n_measures)
        scores = [dict(zip(self.measures, map(float, of_variant), strict=True)) for of_variant in means]
        if self.network is None:
            return scores

        def gaussian(place: int) -> Gaussian:
            start = n_measured + place * n_features
            return Gaussian.of(rows[:, start : start + n_features])

        name = Scorer(space_of(self.network), "reconstruction").name("FD")
        reference = self._reference_gaussian() or gaussian(0)
        for place, found in enumerate(scores, 1):
            found[name] = gaussian(place).distance(reference)
        return scores

    def _reference_gaussian(self) -> Gaussian | None:
        if self.reference is None:
            return None
        given = self.reference.statistics.get("features")
        if given is None and self.reference.features is not None:
            return Gaussian.of(self.reference.features)
        return given

    def _write_examples(self, workspace: Workspace) -> None:
        """Some images and what becomes of them, as arrays, one a row of the picture, and the picture."""
        labels = self.images.labels[self.numbers]
        chosen = example_indices(labels)
        numbers = self.numbers[chosen]
        originals = self.read(numbers)
        codes = self.encode(originals)
        rows = {"original": originals}
        for variant in self.variants:  # of each prior the first seed
            name = "reconstruction" if variant.prior is None else variant.name
            rows.setdefault(name, self.decode(variant.codes(codes, numbers)))
        names = np.array([self.images.class_names[label] for label in labels[chosen]])
        images = np.stack(list(rows.values()))
        with write_atomically(workspace.path(EXAMPLES)) as temporary, open(temporary, "wb") as file:
            np.savez(file, rows=np.array(list(rows)), class_names=names, images=images)
        image_grid(images, list(rows), workspace.path(PICTURE), column_labels=[str(name) for name in names])


def _row(
    name: str, prior: CodebookPrior | None, scores: list[dict[str, float]], codebook_size: int, n_images: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"prior": name, "method": prior and prior.method}
    row["n_clusters"] = codebook_size if prior is None else prior.n_clusters
    for key in scores[0]:
        values = [score[key] for score in scores]
        row[key] = float(np.mean(values))
        row[f"{key}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return row | {"n_images": n_images, "n_seeds": len(scores)}


def example_indices(labels: np.ndarray, n_examples: int = N_EXAMPLES) -> np.ndarray:
    """Images to show, of as many classes as possible: the first of each class, then the second, ...; by class."""
    occurrence = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = labels == label
        occurrence[members] = np.arange(members.sum())
    order = np.lexsort((labels, occurrence))
    firsts = order[occurrence[order] == 0]
    if len(firsts) > n_examples:
        order = firsts[np.linspace(0, len(firsts) - 1, n_examples).round().astype(int)]
    chosen = order[:n_examples]
    return chosen[np.lexsort((occurrence[chosen], labels[chosen]))]
