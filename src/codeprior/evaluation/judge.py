"""Score generated images against real ones: verb `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import Manifest, Workspace, digest_file, read_manifest, write_json
from codeprior.config import EvaluateConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.evaluation.features import FeatureNetwork, extract_features
from codeprior.evaluation.manifold import precision_and_recall
from codeprior.evaluation.metrics import class_consistency, inception_score
from codeprior.evaluation.small_cnn import load_features
from codeprior.evaluation.statistics import bootstrap_sd, frechet_distance, kernel_distance
from codeprior.images import ImageSet, open_images

NEIGHBOURS = 3  # of precision and recall, as the papers
SAMPLES, SCORES = "samples.npz", "scores.json"


@dataclass(frozen=True, eq=False)
class Judged:
    """Images as a feature network sees them: features (N, F), probabilities (N, C), labels (N,) or None."""

    features: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.features)

    def take(self, indices: np.ndarray) -> Judged:
        """Some of the images."""
        labels = None if self.labels is None else self.labels[indices]
        return Judged(self.features[indices], self.probabilities[indices], labels)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score samples against real images, and real images against real ones beside it.

    Returns
    -------
    dict
        output; feature_network; of the samples: `FD[name]` (Fréchet distance to the reference) with its bootstrap
        `_sd`, `KD[name]` (kernel distance) with its `_sd` over subsets, `precision[name]`, `recall[name]`, `IS[name]`,
        class_consistency (None where the samples have no labels); the same with `real_` for real images in the
        samples' place, and real_is, which says what these were; n_samples, n_reference, n_real, n_real_reference.

    Raises
    ------
    InputError
        If the samples, the images or the classifier cannot be read or do not fit together.
    """
    network = load_features(config.features, resolve_device(config.device))
    pixels, labels, digest = _open_samples(config.samples)
    reference = open_images(config.reference, seed=config.seed)
    baseline = open_images(config.baseline, seed=config.seed) if config.baseline else None
    _check_fit(network, pixels, labels, reference, baseline)
    inputs = {"samples": digest, "reference": reference.digest, "features": network.digest}
    if baseline:
        inputs["baseline"] = baseline.digest
    with Workspace(
        config.output, kind="evaluation", settings=config.settings(), inputs=inputs, overwrite=config.overwrite
    ) as workspace:
        manifest = workspace.manifest or _score(workspace, config, network, pixels, labels, reference, baseline)
        return {"output": str(manifest.folder), **manifest.results}


def _score(
    workspace: Workspace,
    config: EvaluateConfig,
    network: FeatureNetwork,
    pixels: np.ndarray,
    labels: np.ndarray | None,
    reference: ImageSet,
    baseline: ImageSet | None,
) -> Manifest:
    size, resampling = pixels.shape[1], np.random.default_rng([config.seed, 0])
    generator = np.random.default_rng([config.seed, 1])  # of its own: real scores do not depend on the samples
    features = extract_features(
        network, pixels.__getitem__, np.arange(len(pixels)), config.batch_size, "judging samples"
    )
    samples = Judged(features, network.probabilities(features), labels)
    real = _judge_set(network, reference, np.arange(len(reference)), size, config.batch_size)
    results = {"feature_network": network.name, **scores(network.name, samples, real, resampling)}
    if baseline is not None:
        chosen = np.sort(generator.permutation(len(baseline))[: len(samples)])  # equal n, equal bias
        other = _judge_set(network, baseline, chosen, size, config.batch_size)
        against, real_is = real, f"{len(other)} images of {baseline.name} against the same reference"
    else:
        order = generator.permutation(len(real))
        other, against = real.take(order[: len(real) // 2]), real.take(order[len(real) // 2 :])
        real_is = f"{len(other)} images of the reference against its other {len(against)}"
    results |= {f"real_{name}": value for name, value in scores(network.name, other, against, generator).items()}
    results |= {"real_is": real_is, "n_samples": len(samples), "n_reference": len(real)}
    results |= {"n_real": len(other), "n_real_reference": len(against)}
    write_json(workspace.path(SCORES), results)
    return workspace.finish([SCORES], results)


def scores(name: str, images: Judged, reference: Judged, generator: np.random.Generator) -> dict[str, float | None]:
    """`FD[name]` to a reference, `KD[name]`, precision, recall, `IS[name]`, class consistency; spreads as `_sd`."""
    consistency = None if images.labels is None else class_consistency(images.probabilities, images.labels)
    return {
        f"FD[{name}]": frechet_distance(images.features, reference.features),
        f"FD[{name}]_sd": bootstrap_sd(images.features, reference.features, generator),
        **_manifold_scores(name, images.features, reference.features, generator),
        f"IS[{name}]": inception_score(images.probabilities),
        "class_consistency": consistency,
    }


def _manifold_scores(
    name: str, features: np.ndarray, reference: np.ndarray, generator: np.random.Generator
) -> dict[str, float | None]:
    """Kernel distance, precision and recall; the latter are None for sets too small to have neighbours."""
    kernel, kernel_sd = kernel_distance(features, reference, generator)
    enough = min(len(features), len(reference)) > NEIGHBOURS
    precision, recall = precision_and_recall(reference, features, NEIGHBOURS) if enough else (None, None)
    return {
        f"KD[{name}]": kernel,
        f"KD[{name}]_sd": kernel_sd,
        f"precision[{name}]": precision,
        f"recall[{name}]": recall,
    }


def _open_samples(path: Path) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Images uint8 (N, S, S, 3), labels (N,) or None, digest: from a samples folder or an npz file."""
    if path.is_dir():
        manifest = read_manifest(path, "samples")
        path, digest = manifest.path(SAMPLES), manifest.digest
    elif path.is_file():
        digest = digest_file(path)
    else:
        raise InputError(f"no samples at {path}; give a folder from `codeprior sample`, or an .npz with arr_0")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels, labels = arrays["arr_0"], arrays["arr_1"] if "arr_1" in arrays.files else None
    except Exception as error:  # zip, header and key errors of a damaged or foreign file
        raise InputError(f"cannot read {path}: {error}; it must hold arr_0 (uint8 NHWC)") from error
    square = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] and pixels.shape[3] == 3
    if pixels.dtype != np.uint8 or not square or not len(pixels):
        raise InputError(f"arr_0 of {path} must be square uint8 RGB images, got {pixels.dtype} {pixels.shape}")
    if labels is not None and labels.shape != (len(pixels),):
        raise InputError(f"arr_1 of {path} must be {len(pixels)} labels, got {labels.shape}")
    return pixels, labels, digest


def _check_fit(
    network: FeatureNetwork,
    pixels: np.ndarray,
    labels: np.ndarray | None,
    reference: ImageSet,
    baseline: ImageSet | None,
) -> None:
    """Refuse what cannot be judged before anything is written."""
    n_classes = network.probabilities(network.features(pixels[:1])).shape[1]
    if labels is not None and not 0 <= labels.min() <= labels.max() < n_classes:
        raise InputError(f"{network.name} knows classes 0 to {n_classes - 1}, a sample has class {labels.max()}")
    fewest = min(len(pixels), len(baseline) if baseline else len(reference) // 2, len(reference))
    if fewest < 2:
        raise InputError(
            "a Fréchet distance needs 2 images or more on each side, and 4 to split the reference in halves"
        )


def _judge_set(network: FeatureNetwork, images: ImageSet, indices: np.ndarray, size: int, batch_size: int) -> Judged:
    def read(rows: np.ndarray) -> np.ndarray:
        return images.read_many(rows, size)

    features = extract_features(network, read, indices, batch_size, f"judging {images.name}")
    return Judged(features, network.probabilities(features), images.labels[indices])
