"""The replacement test: each token becomes a random one of its cluster; what does the image lose? Verb `reconstruct`.

DCPE (Tang et al., 2025), Table VI. A prior is good if this changes little: then a generator that predicts clusters may
leave the choice of the token to chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeprior.artifact import Manifest, Workspace, write_atomically, write_json
from codeprior.config import ReconstructConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.evaluation.features import FeatureNetwork, extract_features
from codeprior.evaluation.metrics import SSIM_WINDOW, psnr_db, ssim
from codeprior.evaluation.small_cnn import load_features
from codeprior.evaluation.statistics import frechet_distance
from codeprior.images import ImageSet, open_images
from codeprior.pixels import to_pixels, to_tensor
from codeprior.plots import image_grid
from codeprior.prior import CodebookPrior
from codeprior.progress import track
from codeprior.tokenizers import Tokenizer, load_tokenizer

ROWS, EXAMPLES, PICTURE = "rows.json", "examples.npz", "examples.png"
N_EXAMPLES = 10


@dataclass(frozen=True, eq=False)
class Encoded:
    """The images of the test, their labels, and their codes: uint8 (N, S, S, 3), int64 (N,) and (N, T)."""

    pixels: np.ndarray
    labels: np.ndarray
    codes: np.ndarray
    grid: tuple[int, int]


def reconstruct(config: ReconstructConfig) -> dict[str, Any]:
    """Score reconstructions without replacement, and with each prior's.

    Returns
    -------
    dict
        output; rows, one without replacement (prior "none") and one a prior, each of prior, method, n_clusters,
        psnr_db and ssim (means over images), `FD[name]` to the originals where there is a feature network, their `_sd`
        over the seeds, n_images, n_seeds.

    Raises
    ------
    InputError
        If something cannot be read, or a prior was made from another tokenizer's codebook (both digests are named).
    """
    device = resolve_device(config.device)
    tokenizer = load_tokenizer(config.tokenizer, device)
    priors = name_priors(config.priors)
    for name, prior in priors.items():
        prior.verify(tokenizer.codebook.digest, f"{config.tokenizer} (beside {name})")
    network = load_features(config.features, device) if config.features else None
    images = open_images(config.data, bad_images=config.bad_images, seed=config.seed)
    _check_fit(config, tokenizer, network, len(images))
    inputs = {"images": images.digest, "tokenizer": tokenizer.digest}
    inputs |= {f"prior {name}": prior.digest for name, prior in priors.items()}
    inputs |= {"features": network.digest} if network else {}
    with Workspace(
        config.output, kind="replacement", settings=config.settings(), inputs=inputs, overwrite=config.overwrite
    ) as workspace:
        manifest = workspace.manifest or _test(workspace, config, tokenizer, priors, network, images, device)
        return {"output": str(manifest.folder), **manifest.results}


def name_priors(paths: tuple[Path, ...]) -> dict[str, CodebookPrior]:
    """Load priors, each by its file's name, or by its path where two names are equal."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in paths]
    reserved = {"none", "original", "reconstruction"}
    if len(set(names)) < len(names) or reserved & set(names):
        raise InputError(f"the priors of a test need names of their own, got {', '.join(names)}")
    return {name: CodebookPrior.load(path) for name, path in zip(names, paths, strict=True)}


def _check_fit(config: ReconstructConfig, tokenizer: Tokenizer, network: FeatureNetwork | None, n_images: int) -> None:
    """Refuse what cannot be scored before anything is written."""
    size = config.image_size or tokenizer.image_size
    tokenizer.grid(size)
    if size < SSIM_WINDOW:
        raise InputError(f"image_size must be at least {SSIM_WINDOW}, got {size}")
    if network:
        network.features(np.zeros((1, size, size, 3), dtype=np.uint8))
        if min(config.n_images, n_images) < 2:
            raise InputError(f"a Fréchet distance needs 2 images or more, got {min(config.n_images, n_images)}")


def _test(
    workspace: Workspace,
    config: ReconstructConfig,
    tokenizer: Tokenizer,
    priors: dict[str, CodebookPrior],
    network: FeatureNetwork | None,
    images: ImageSet,
    device: torch.device,
) -> Manifest:
    encoded = _encode(images, tokenizer, config, device)
    features = _features(network, encoded.pixels, config.batch_size) if network else None
    scorer = Scorer(tokenizer, network, features, encoded, example_indices(encoded.labels), config.batch_size, device)
    scores, reconstruction = scorer.score(encoded.codes, "decoding")
    rows = [_row("none", None, [scores], len(tokenizer.codebook), len(encoded.codes))]
    examples = {"original": encoded.pixels[scorer.examples], "reconstruction": reconstruction}
    for name, prior in priors.items():
        clusters, seeds = prior.token_to_cluster[encoded.codes], range(config.n_seeds)
        picks = [prior.pick_tokens(clusters, np.random.default_rng([config.seed, index])) for index in seeds]
        tests = [scorer.score(codes, f"decoding {name}") for codes in picks]
        rows.append(_row(name, prior, [scores for scores, _ in tests], prior.n_clusters, len(encoded.codes)))
        examples[name] = tests[0][1]
    write_json(workspace.path(ROWS), rows)
    _write_examples(workspace, examples, encoded.labels[scorer.examples], images.class_names)
    return workspace.finish([ROWS, EXAMPLES], {"rows": rows})


@dataclass(frozen=True, eq=False)
class Scorer:
    """Decodes codes and scores the images against the originals, a batch at a time; keeps some as examples."""

    tokenizer: Tokenizer
    network: FeatureNetwork | None
    original_features: np.ndarray | None
    encoded: Encoded
    examples: np.ndarray
    batch_size: int
    device: torch.device

    def score(self, codes: np.ndarray, label: str) -> tuple[dict[str, float], np.ndarray]:
        """Scores of the images that the codes (N, T) stand for, and the examples among them, uint8."""
        per_image: dict[str, list[np.ndarray]] = {"psnr_db": [], "ssim": []}
        features, kept = [], np.empty_like(self.encoded.pixels[self.examples])
        for start in track(range(0, len(codes), self.batch_size), label):
            rows = slice(start, start + self.batch_size)
            decoded = self.decode(codes[rows])
            per_image["psnr_db"].append(psnr_db(self.encoded.pixels[rows], decoded))
            per_image["ssim"].append(ssim(self.encoded.pixels[rows], decoded))
            if self.network:
                features.append(self.network.features(decoded))
            here = (self.examples >= start) & (self.examples < start + self.batch_size)
            kept[here] = decoded[self.examples[here] - start]
        scores = {name: float(np.concatenate(values).mean()) for name, values in per_image.items()}
        if self.network and self.original_features is not None:
            scores[f"FD[{self.network.name}]"] = frechet_distance(np.concatenate(features), self.original_features)
        return scores, kept

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, T) -> uint8 (B, S, S, 3)."""
        decoded = self.tokenizer.decode(torch.from_numpy(codes).to(self.device), self.encoded.grid)
        return to_pixels(decoded, self.tokenizer.pixel_range)


def _encode(images: ImageSet, tokenizer: Tokenizer, config: ReconstructConfig, device: torch.device) -> Encoded:
    """Read and encode the images, or `n_images` random ones of them."""
    size = config.image_size or tokenizer.image_size
    order = np.random.default_rng(config.seed).permutation(len(images))
    chosen = np.sort(order[: config.n_images])
    pixels = images.read_many(chosen, size)
    batches = [
        tokenizer.encode(to_tensor(pixels[start : start + config.batch_size], device, tokenizer.pixel_range))
        .cpu()
        .numpy()
        for start in track(range(0, len(pixels), config.batch_size), "encoding")
    ]
    return Encoded(pixels, images.labels[chosen], np.concatenate(batches), tokenizer.grid(size))


def _features(network: FeatureNetwork, pixels: np.ndarray, batch_size: int) -> np.ndarray:
    return extract_features(network, pixels.__getitem__, np.arange(len(pixels)), batch_size)


def _row(
    name: str, prior: CodebookPrior | None, scores: list[dict[str, float]], n_clusters: int, n_images: int
) -> dict[str, Any]:
    """A row of the table: means over the seeds, and their spread where there are several."""
    row: dict[str, Any] = {"prior": name, "method": prior and prior.method, "n_clusters": n_clusters}
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


def _write_examples(
    workspace: Workspace, examples: dict[str, np.ndarray], labels: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """The examples as arrays, one a row of the picture, and the picture."""
    names = np.array([class_names[label] for label in labels])
    with write_atomically(workspace.path(EXAMPLES)) as temporary, open(temporary, "wb") as file:
        np.savez(file, rows=np.array(list(examples)), class_names=names, images=np.stack(list(examples.values())))
    rows = np.stack(list(examples.values()))
    image_grid(rows, list(examples), workspace.path(PICTURE), column_labels=[str(name) for name in names])
