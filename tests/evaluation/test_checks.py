import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeprior.errors import InputError
from codeprior.evaluation.checks import (
    check_sizes,
    check_spaces,
    in_class_order,
    number_warnings,
    order_warnings,
    reference_warnings,
)
from codeprior.evaluation.extraction import Judged
from codeprior.evaluation.scores import Space
from codeprior.evaluation.sources import Images, Source, open_source
from codeprior.evaluation.statistics import Gaussian

STANDARD, OTHER = Space("inception", "a", is_standard=True), Space("cnn", "b")


def source(name: str = "batch", n_images: int | None = None, *, size: int = 256, **fields) -> Source:
    images = None if n_images is None else Images(n_images, size, lambda rows: rows)
    return Source(name, fields.pop("digest", name), images, **fields)


def statistics(*names: str, width: int = 2) -> dict[str, Gaussian]:
    return {name: Gaussian(np.zeros(width), np.eye(width)) for name in names}


SAMPLES = source("samples", 50_000)
VIRTUAL = source("VIRTUAL_imagenet256_labeled", 10_000, statistics=statistics("features", "spatial"))


def test_the_standard_references_of_both_tasks_are_not_warned_of() -> None:
    ours = source("val", note={"purpose": "reconstruction", "n_images": 50_000})
    assert reference_warnings(SAMPLES, VIRTUAL, "generation") == []
    assert reference_warnings(SAMPLES, source("adm_in256_stats", statistics=statistics("features")), "generation") == []
    assert reference_warnings(SAMPLES, ours, "reconstruction") == []
    assert reference_warnings(SAMPLES, source("originals", 50_000), "reconstruction") == []


@pytest.mark.parametrize("reference", [source("val_imagenet", 50_000), source("images", 50_000), source("val", 5000)])
def test_generated_images_against_validation_images_are_warned_of(reference: Source) -> None:
    (warning,) = reference_warnings(SAMPLES, reference, "generation")
    assert "looks like validation images, the reference of reconstructions (rFID)" in warning


def test_reconstructions_against_adm_s_batch_are_warned_of() -> None:
    (warning,) = reference_warnings(SAMPLES, VIRTUAL, "reconstruction")
    assert "by which generated images are judged (gFID)" in warning
    (warning,) = reference_warnings(SAMPLES, source("originals", 5000), "reconstruction")
    assert "there are 50000 reconstructions, but 5000 images in originals" in warning


@pytest.mark.parametrize("task", ["generation", "reconstruction"])
def test_a_reference_made_for_the_other_task_is_refused(task: str) -> None:
    other = "reconstruction" if task == "generation" else "generation"
    with pytest.raises(InputError, match=f"was made to judge {other}s by; for a {task} give"):
        reference_warnings(SAMPLES, source(note={"purpose": other}), task)


def test_equal_files_and_scaled_images_are_warned_of() -> None:
    (warning,) = reference_warnings(SAMPLES, source("copy", 10, digest="samples"), "generation")
    assert "are the same images" in warning
    scaled = Source("folder", "folder", Images(10, 256, lambda rows: rows, is_scaled=True))
    (warning,) = reference_warnings(SAMPLES, scaled, "generation")
    assert "are cut to squares (ADM's centre crop) and scaled" in warning


@pytest.mark.parametrize(("suffix", "is_told_of"), [("JPEG", True), ("jpg", True), ("png", False)])
def test_samples_that_were_compressed_are_warned_of(suffix: str, is_told_of: bool, tmp_path: Path) -> None:
    for name in ("0.png", f"1.{suffix}"):
        Image.new("RGB", (256, 256)).save(tmp_path / name)
    warnings = reference_warnings(open_source(str(tmp_path)), VIRTUAL, "generation")
    assert [warning.partition(",")[0] for warning in warnings] == [f"{tmp_path.name} holds JPEG files"] * is_told_of


def test_images_of_another_size_are_refused() -> None:
    check_sizes(SAMPLES, [VIRTUAL, source(statistics=statistics("features"))])
    for other in (source("small", 10, size=64), source("noted", note={"image_size": 64})):
        with pytest.raises(InputError, match=f"the samples are 256 pixels a side, {other.name} 64"):
            check_sizes(SAMPLES, [other])


def test_features_of_another_network_are_refused() -> None:
    check_spaces([SAMPLES, source(note={"space": OTHER.note()})], OTHER)
    with pytest.raises(InputError, match="holds features of cnn, not of inception"):
        check_spaces([source(note=json.loads(json.dumps({"space": OTHER.note()})))], STANDARD)


def judged(n_images: int, width: int, name: str = "samples") -> Judged:
    features = np.zeros((n_images, width), np.float32)
    return Judged(Source(name, name, features=features, statistics=statistics("features", width=width)), features)


def test_other_numbers_of_images_than_published_are_warned_of() -> None:
    reference = judged(10_000, 8, "reference")
    assert number_warnings(judged(50_000, 8), reference, STANDARD) == []
    assert number_warnings(judged(900, 8), reference, OTHER) == []
    (warning,) = number_warnings(judged(8, 8), reference, OTHER)
    assert "8 images have no covariance of full rank in 8 features" in warning
    (warning,) = number_warnings(judged(5000, 8), reference, STANDARD)
    assert "published ones are of 50,000; this is of 5,000" in warning
    (warning,) = number_warnings(judged(50_176, 8), reference, STANDARD)
    assert "published ones are of 50,000; this is of 50,176" in warning
    (warning,) = number_warnings(judged(50_000, 8), judged(1000, 8, "reference"), STANDARD)
    assert "of 10,000 reference images; here are 1,000" in warning


def test_statistics_alone_are_told_of_since_they_give_fewer_scores() -> None:
    bare = Judged(Source("adm_in256_stats", "d", statistics=statistics("features", width=8)))
    (warning,) = number_warnings(judged(50_000, 8), bare, OTHER)
    assert warning.startswith("adm_in256_stats holds statistics alone: precision, recall and the kernel distance need")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_classes", [2, 100])
def test_class_order_is_told_from_a_shuffle(seed: int, n_classes: int) -> None:
    generator = np.random.default_rng(seed)
    ordered = np.repeat(np.arange(n_classes), 1000 // n_classes)
    assert in_class_order(ordered)
    assert not in_class_order(generator.permutation(ordered))
    assert not in_class_order(np.arange(1000) % n_classes)  # one of each class in turn: every run holds all
    mistaken = np.where(generator.random(1000) < 0.3, generator.integers(n_classes, size=1000), ordered)
    assert in_class_order(mistaken)  # as a network sees it
    assert not in_class_order(np.zeros(1000, dtype=int))  # one class alone has no order


def test_samples_in_the_order_of_their_classes_are_warned_of_by_labels_or_by_what_they_look_like() -> None:
    classes = np.repeat(np.arange(10), 10)
    probabilities = np.eye(10)[classes]
    labelled = Judged(SAMPLES, probabilities, None, probabilities, classes)
    seen = Judged(SAMPLES, probabilities, None, probabilities)
    for images, by in ((labelled, "by their labels"), (seen, "by the classes that the network takes them for")):
        (warning,) = order_warnings(images, 50, "IS_shuffled")
        assert by in warning
        assert "IS_shuffled is that of the same samples shuffled" in warning
        assert order_warnings(images, 100, "IS_shuffled") == []  # one run holds them all
    mixed = np.random.default_rng(0).permutation(classes)
    assert order_warnings(Judged(SAMPLES, probabilities, None, probabilities, mixed), 50, "IS_shuffled") == []
