"""Comparisons that would be wrong: refused where a file says so, warned of where it looks so, one line each."""

from __future__ import annotations

import re

import numpy as np

from codeprior.errors import InputError
from codeprior.evaluation.extraction import Judged
from codeprior.evaluation.scores import Space, Task
from codeprior.evaluation.sources import Source

PUBLISHED_SAMPLES = 50_000  # of published FIDs
PUBLISHED_REFERENCE = 10_000  # images of ADM's reference batches, for precision and recall
_VALIDATION_IMAGES = 50_000  # of ImageNet
_VALIDATION_NAME = re.compile(r"(^|[^a-z])val(idation)?([^a-z]|$)", re.IGNORECASE)
_CLEAR = 6.0  # standard deviations from chance

_GENERATION = "ADM's VIRTUAL_imagenet256_labeled.npz, or a reference made with --purpose generation"
_RECONSTRUCTION = "the images that were reconstructed, as a folder or a reference made with --purpose reconstruction"


def check_sizes(samples: Source, others: list[Source]) -> None:
    """Refuse images of other sizes than the samples': what was scaled differs from what was not, whatever it shows."""
    for other in others:
        size, wanted = other.image_size, samples.image_size
        if wanted is not None and size is not None and size != wanted:
            raise InputError(
                f"the samples are {wanted} pixels a side, {other.name} {size}: scaling one of them would "
                "change its score; sample at that size (LlamaGen scales 384 to 256 on decoding), or give its images"
            )


def check_spaces(sources: list[Source], space: Space) -> None:
    """Refuse features and statistics of another network."""
    for source in sources:
        said = source.note.get("space")
        if said is not None and said["digest"] != space.digest:
            raise InputError(f"{source.name} holds features of {said['name']}, not of {space.name} as asked for")


def reference_warnings(samples: Source, reference: Source, task: Task) -> list[str]:
    """What speaks against judging these samples by that reference.

    Raises
    ------
    InputError
        If the reference says that it is for the other task.
    """
    purpose = reference.note.get("purpose", task)
    if purpose != task:
        wanted = _GENERATION if task == "generation" else _RECONSTRUCTION
        raise InputError(f"{reference.name} was made to judge {purpose}s by; for a {task} give {wanted}")
    found = [_looks_like_validation(reference) if task == "generation" else _looks_like_training(samples, reference)]
    if samples.digest == reference.digest:
        found.append("the samples and the reference are the same images")
    if reference.images is not None and reference.images.is_scaled:
        found.append(
            f"the images of {reference.name} are cut to squares (ADM's centre crop) and scaled to the samples'"
        )
    if samples.images is not None and samples.images.is_jpeg:
        found.append(f"{samples.name} holds JPEG files, whose compression changes scores; write PNG or .npz")
    return [warning for warning in found if warning is not None]


def _looks_like_validation(reference: Source) -> str | None:
    is_bare = not reference.statistics and not reference.note
    if not _VALIDATION_NAME.search(reference.name) and not (is_bare and reference.n_images == _VALIDATION_IMAGES):
        return None
    return (
        f"{reference.name} looks like validation images, the reference of reconstructions (rFID); generated images are "
        f"judged by {_GENERATION}"
    )


def _looks_like_training(samples: Source, reference: Source) -> str | None:
    n_reference = reference.note.get("n_images", reference.n_images)
    if not reference.note and {"features", "spatial"} <= reference.statistics.keys():
        looks = f"{reference.name} looks like a reference batch of ADM, by which generated images are judged (gFID)"
    elif n_reference is not None and samples.n_images is not None and n_reference != samples.n_images:
        looks = f"there are {samples.n_images} reconstructions, but {n_reference} images in {reference.name}"
    else:
        return None
    return f"{looks}; reconstructions are judged by {_RECONSTRUCTION}"


def number_warnings(images: Judged, reference: Judged, space: Space) -> list[str]:
    """What other numbers of images than published do to the scores, and which scores statistics alone cannot give."""
    found = frechet_warnings(images.source.n_images, len(reference.gaussian.mean), space)
    for source in (images.source, reference.source):
        if source.n_images is None:
            found.append(f"{source.name} holds statistics alone: precision, recall and the kernel distance need images")
    if space.is_standard and len(reference) and len(reference) != PUBLISHED_REFERENCE:
        found.append(
            f"published precision and recall are those of {PUBLISHED_REFERENCE:,} reference images; here are "
            f"{len(reference):,} (ADM's batch at 512 pixels has 1,000)"
        )
    return found


def frechet_warnings(n_images: int | None, n_features: int, space: Space) -> list[str]:
    """What too few images do to a Fréchet distance; their number is None where it is not known."""
    if n_images is not None and n_images <= n_features:
        return [
            f"{n_images} images have no covariance of full rank in {n_features} features: a Fréchet distance of so few "
            "is mostly bias"
        ]
    if n_images is not None and space.is_standard and n_images != PUBLISHED_SAMPLES:
        return [
            f"FID falls with the number of images, and published ones are of {PUBLISHED_SAMPLES:,}; this is of "
            f"{n_images:,}, and compares with such alone"
        ]
    return []


def order_warnings(images: Judged, split_size: int, shuffled_name: str) -> list[str]:
    """Whether the images stand in the order of their classes, which makes an Inception Score over runs wrong."""
    if images.probabilities is None or len(images) <= split_size:
        return []
    known = images.labels is not None
    classes = images.labels if images.labels is not None else images.probabilities.argmax(axis=1)
    if not in_class_order(classes):
        return []
    by = "their labels" if known else "the classes that the network takes them for"
    return [
        f"the samples stand in the order of their classes (by {by}): each run of {split_size} then holds few classes, "
        f"and IS is far too low; {shuffled_name} is that of the same samples shuffled"
    ]


def in_class_order(classes: np.ndarray) -> bool:
    """Whether neighbours are of one class clearly more often than in a random order; classes (N,) integer."""
    shares = np.bincount(classes) / len(classes)
    chance = float((shares**2).sum())
    sd = np.sqrt(chance * (1 - chance) / (len(classes) - 1))
    return bool((classes[1:] == classes[:-1]).mean() - chance > _CLEAR * sd)
