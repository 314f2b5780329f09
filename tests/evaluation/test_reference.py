import json
import signal
from pathlib import Path

import numpy as np
import pytest

from codeprior.artifact import read_manifest
from codeprior.config import EvaluateConfig, ReferenceConfig
from codeprior.errors import InputError
from codeprior.evaluation.judge import evaluate
from codeprior.evaluation.reference import reference
from codeprior.evaluation.small_cnn import load_features
from codeprior.evaluation.statistics import mean_and_covariance
from killed import run_and_die

NAME = "digits-cnn"


def settings(tiny: Path, classifier: Path, output: Path, **changes) -> ReferenceConfig:
    given = {"data": str(tiny / "heldout.npz"), "features": str(classifier), "device": "cpu", **changes}
    return ReferenceConfig(**given, output=output)


def scores(samples: Path, against: str, classifier: Path, output: Path, **changes) -> dict:
    given = {"features": str(classifier), "device": "cpu", **changes}
    return evaluate(EvaluateConfig(samples=samples, reference=against, output=output, **given))


def test_the_file_has_the_keys_of_adm_s_batches_and_says_what_it_is(
    tiny: Path, classifier: Path, tmp_path: Path
) -> None:
    result = reference(settings(tiny, classifier, tmp_path / "reference", n_kept=12))
    assert result == {
        "output": str(tmp_path / "reference"),
        "feature_network": NAME,
        "purpose": "generation",
        "n_images": 20,
        "n_kept": 12,
        "image_size": 16,
    }
    with np.load(tmp_path / "reference" / "reference.npz") as arrays, np.load(tiny / "heldout.npz") as images:
        network = load_features(classifier)
        mean, covariance = mean_and_covariance(network.features(images["arr_0"]))
        np.testing.assert_allclose(arrays["mu"], mean, rtol=1e-5)
        np.testing.assert_allclose(arrays["sigma"], covariance, rtol=1e-4, atol=1e-6)
        assert arrays["arr_0"].shape == (12, 16, 16, 3)
        np.testing.assert_allclose(arrays["features"], network.features(arrays["arr_0"]), rtol=1e-4, atol=1e-6)
        note = json.loads(str(arrays["codeprior"]))
    assert (note["purpose"], note["n_images"], note["space"]["name"]) == ("generation", 20, NAME)


def test_scores_against_a_reference_are_those_against_its_images(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    reference(settings(tiny, classifier, tmp_path / "reference"))
    direct = scores(tiny / "digits.npz", str(tiny / "heldout.npz"), classifier, tmp_path / "direct")
    stored = scores(tiny / "digits.npz", str(tmp_path / "reference"), classifier, tmp_path / "stored")
    for kind in ("FD", "precision", "recall", "IS"):
        assert stored[f"{kind}[{NAME}]"] == pytest.approx(direct[f"{kind}[{NAME}]"], rel=1e-6)
    assert stored["n_reference"] == 20


def test_statistics_that_a_batch_comes_with_are_kept(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    """As those of ADM's batches, which are of all images, where the batch holds 10,000."""
    with np.load(tiny / "heldout.npz") as images:
        width = load_features(classifier).features(images["arr_0"][:1]).shape[1]
        batch = {"arr_0": images["arr_0"], "mu": np.ones(width), "sigma": np.eye(width)}
    np.savez(tmp_path / "batch.npz", **batch)
    result = reference(settings(tiny, classifier, tmp_path / "reference", data=str(tmp_path / "batch.npz")))
    assert result["n_images"] is None
    with np.load(tmp_path / "reference" / "reference.npz") as arrays:
        np.testing.assert_array_equal(arrays["mu"], np.ones(width))
    found = [
        scores(tiny / "digits.npz", str(place), classifier, tmp_path / f"scores{number}")
        for number, place in enumerate((tmp_path / "batch.npz", tmp_path / "reference"))
    ]
    assert found[0][f"FD[{NAME}]"] == pytest.approx(found[1][f"FD[{NAME}]"], rel=1e-9)
    assert found[0][f"FD[{NAME}]"] > width


def test_images_of_a_folder_are_cut_to_squares_of_the_size_asked_for(classifier: Path, tmp_path: Path) -> None:
    result = reference(
        ReferenceConfig(
            data="photos12:heldout", image_size=16, n_kept=5, features=str(classifier), output=tmp_path / "reference"
        )
    )
    assert (result["image_size"], result["n_kept"]) == (16, 5)


def test_a_reference_of_another_network_or_for_another_task_is_refused(
    tiny: Path, classifier: Path, tmp_path: Path
) -> None:
    reference(settings(tiny, classifier, tmp_path / "reference", purpose="reconstruction"))
    with pytest.raises(InputError, match="was made to judge reconstructions by"):
        scores(tiny / "digits.npz", str(tmp_path / "reference"), classifier, tmp_path / "scores")
    scores(tiny / "digits.npz", str(tmp_path / "reference"), classifier, tmp_path / "scores", task="reconstruction")
    (tmp_path / "own.py").write_text("import torch\nnetwork = torch.nn.Flatten\n")
    with pytest.raises(InputError, match=f"reference holds features of {NAME}, not of network as asked for"):
        scores(
            tiny / "digits.npz",
            str(tmp_path / "reference"),
            classifier,
            tmp_path / "other",
            task="reconstruction",
            features=f"{tmp_path / 'own.py'}:network",
        )
    np.save(tmp_path / "features.npy", np.zeros((5, 3)))
    with pytest.raises(InputError, match="holds no images"):
        reference(settings(tiny, classifier, tmp_path / "none", data=str(tmp_path / "features.npy")))


def test_a_killed_reference_is_continued(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    config = settings(tiny, classifier, tmp_path / "killed", batch_size=4)
    assert run_and_die("reference", config, 3, {}) == -signal.SIGKILL
    reference(config)
    reference(settings(tiny, classifier, tmp_path / "unbroken", batch_size=4))
    assert read_manifest(tmp_path / "killed").digest == read_manifest(tmp_path / "unbroken").digest
