import json
from pathlib import Path

import numpy as np
import pytest

from codeprior.artifact import digest_file, read_manifest
from codeprior.config import TrainClassifierConfig
from codeprior.errors import InputError
from codeprior.evaluation.classifier import train_classifier
from codeprior.evaluation.features import FeatureNetwork, extract_features
from codeprior.evaluation.small_cnn import load_features


def settings(tiny: Path, output: Path, **changes) -> TrainClassifierConfig:
    given = {"data": str(tiny / "digits.npz"), "output": output, "steps": 4, "width": 4, "device": "cpu"}
    return TrainClassifierConfig(**{**given, **changes})


def test_digits_are_told_apart(tmp_path: Path) -> None:
    config = settings(tmp_path, tmp_path / "cnn", data="digits", heldout="digits:heldout", steps=60, width=16)
    result = train_classifier(config)
    assert result["name"] == "digits-cnn"
    assert result["heldout_accuracy"] > 0.4  # chance is 0.1; five times the steps reach 0.99
    assert train_classifier(config) == result


def test_training_repeats_by_seed(tiny: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_classifier(settings(tiny, tmp_path / name, seed=seed))
    a, b, c = (read_manifest(tmp_path / name).digest for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("image_size", [4, 10, 32])
def test_images_of_any_size_have_features(tiny: Path, tmp_path: Path, image_size: int) -> None:
    train_classifier(settings(tiny, tmp_path / "cnn", image_size=image_size, steps=1))
    network: FeatureNetwork = load_features(tmp_path / "cnn")
    images = np.random.default_rng(0).integers(0, 256, (3, image_size, image_size, 3), dtype=np.uint8)
    features = network.features(images)
    assert features.dtype == np.float32
    assert len(features) == 3
    np.testing.assert_allclose(network.probabilities(features).sum(axis=1), 1, rtol=1e-6)


def test_features_of_an_image_do_not_depend_on_its_batch(tiny: Path, classifier: Path) -> None:
    network = load_features(classifier)
    with np.load(tiny / "digits.npz") as arrays:
        images = arrays["arr_0"]
    whole = network.features(images)
    pieces = extract_features(network, images.__getitem__, np.arange(len(images)), 7)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)  # float32 sums in another order


def test_images_of_another_size_are_refused_not_resized(classifier: Path) -> None:
    with pytest.raises(InputError, match="judges uint8 images of 16 x 16"):
        load_features(classifier).features(np.zeros((2, 32, 32, 3), dtype=np.uint8))


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8), arr_1=np.zeros(4, np.int64))
    with pytest.raises(InputError, match="two or more"):
        train_classifier(settings(tmp_path, tmp_path / "cnn", data=str(tmp_path / "one.npz")))
    assert not (tmp_path / "cnn").exists()


def test_weights_that_do_not_fit_the_config_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cnn"
    train_classifier(settings(tiny, folder))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"width": 4', '"width": 8'))
    with pytest.raises(InputError, match="changed after it was written"):
        load_features(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["config.json"]["digest"] = digest_file(config)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="does not fit its model"):
        load_features(folder)
