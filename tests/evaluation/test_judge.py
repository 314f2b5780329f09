from pathlib import Path

import numpy as np
import pytest

from codeprior.artifact import read_manifest
from codeprior.config import EvaluateConfig
from codeprior.errors import InputError
from codeprior.evaluation.judge import evaluate
from codeprior.evaluation.metrics import class_consistency, inception_score
from codeprior.evaluation.small_cnn import load_features
from codeprior.evaluation.statistics import frechet_distance

NAME = "digits-cnn"


def settings(tiny: Path, classifier: Path, output: Path, **changes) -> EvaluateConfig:
    given = {"samples": tiny / "digits.npz", "reference": str(tiny / "heldout.npz"), "features": classifier}
    return EvaluateConfig(**{**given, "output": output, "device": "cpu", **changes})


def arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        return file["arr_0"], file["arr_1"]


def test_scores_are_those_of_the_features(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    result = evaluate(settings(tiny, classifier, tmp_path / "scores", batch_size=9))
    network = load_features(classifier)
    (images, labels), (reference, _) = arrays(tiny / "digits.npz"), arrays(tiny / "heldout.npz")
    features = network.features(images)
    probabilities = network.probabilities(features)
    assert result["feature_network"] == NAME
    assert result[f"FD[{NAME}]"] == pytest.approx(frechet_distance(features, network.features(reference)), rel=1e-3)
    assert result[f"IS[{NAME}]"] == pytest.approx(inception_score(probabilities), rel=1e-4)
    assert result["class_consistency"] == class_consistency(probabilities, labels)
    assert result[f"FD[{NAME}]_sd"] > 0
    assert (result["n_samples"], result["n_reference"]) == (60, 20)


def test_real_images_in_the_place_of_the_samples_are_scored_like_them(
    tiny: Path, classifier: Path, tmp_path: Path
) -> None:
    """With the samples themselves as the baseline, both scores are the same."""
    result = evaluate(settings(tiny, classifier, tmp_path / "scores", baseline=str(tiny / "digits.npz")))
    for score in (f"FD[{NAME}]", f"IS[{NAME}]", "class_consistency"):
        assert result[f"real_{score}"] == pytest.approx(result[score], rel=1e-6)
    assert result["n_real"] == 60


def test_the_baseline_has_as_many_images_as_there_are_samples(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    images, labels = arrays(tiny / "digits.npz")
    np.savez(tmp_path / "few.npz", arr_0=images[:24], arr_1=labels[:24])
    changes = {"samples": tmp_path / "few.npz", "baseline": str(tiny / "digits.npz")}
    result = evaluate(settings(tiny, classifier, tmp_path / "scores", **changes))
    assert result["n_real"] == 24
    assert result["real_is"] == "24 images of digits against the same reference"


def test_without_a_baseline_one_half_of_the_reference_is_scored_against_the_other(
    tiny: Path, classifier: Path, tmp_path: Path
) -> None:
    result = evaluate(settings(tiny, classifier, tmp_path / "scores"))
    assert (result["n_real"], result["n_real_reference"]) == (10, 10)
    assert result["real_is"] == "10 images of the reference against its other 10"


def test_samples_without_labels_have_no_consistency(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", arr_0=arrays(tiny / "digits.npz")[0])
    result = evaluate(settings(tiny, classifier, tmp_path / "scores", samples=tmp_path / "plain.npz"))
    assert result["class_consistency"] is None
    assert result["real_class_consistency"] is not None


def test_scores_repeat_and_are_done_once(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    first = evaluate(settings(tiny, classifier, tmp_path / "a"))
    again = evaluate(settings(tiny, classifier, tmp_path / "a"))
    other = evaluate(settings(tiny, classifier, tmp_path / "b"))
    assert first == again
    assert read_manifest(tmp_path / "a").digest == read_manifest(tmp_path / "b").digest
    assert {**first, "output": ""} == {**other, "output": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((4, 16, 12, 3), np.uint8)}, "square uint8 RGB images"),
        ({"arr_0": np.zeros((4, 16, 16, 3))}, "square uint8 RGB images"),
        ({"arr_0": np.zeros((4, 32, 32, 3), np.uint8)}, "judges uint8 images of 16 x 16"),
        ({"arr_0": np.zeros((4, 16, 16, 3), np.uint8), "arr_1": np.zeros(3, np.int64)}, "must be 4 labels"),
        ({"arr_0": np.zeros((4, 16, 16, 3), np.uint8), "arr_1": np.arange(4) + 7}, "knows classes 0 to 9"),
        ({"images": np.zeros((4, 16, 16, 3), np.uint8)}, "must hold arr_0"),
        ({}, "no samples at"),
    ],
)
def test_samples_that_cannot_be_judged_are_refused(
    tiny: Path, classifier: Path, tmp_path: Path, content: dict[str, np.ndarray], message: str
) -> None:
    if content:
        np.savez(tmp_path / "samples.npz", **content)
    with pytest.raises(InputError, match=message):
        evaluate(settings(tiny, classifier, tmp_path / "scores", samples=tmp_path / "samples.npz"))
    assert not (tmp_path / "scores").exists()


def test_too_few_images_are_refused(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    images, labels = arrays(tiny / "digits.npz")
    for n_images, part in ((1, "samples"), (3, "reference"), (1, "baseline")):
        path = tmp_path / f"{n_images}.npz"
        np.savez(path, arr_0=images[:n_images], arr_1=labels[:n_images])
        with pytest.raises(InputError, match="needs 2 images or more"):
            evaluate(
                settings(tiny, classifier, tmp_path / "scores", **{part: path if part == "samples" else str(path)})
            )
