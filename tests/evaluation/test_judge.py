import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeprior.artifact import read_manifest
from codeprior.config import EvaluateConfig, ReferenceConfig
from codeprior.errors import InputError
from codeprior.evaluation.judge import evaluate
from codeprior.evaluation.manifold import precision_and_recall
from codeprior.evaluation.metrics import class_consistency, inception_score
from codeprior.evaluation.reference import reference as make_reference
from codeprior.evaluation.small_cnn import load_features
from codeprior.evaluation.statistics import frechet_distance
from killed import run_and_die

NAME = "digits-cnn"


def settings(tiny: Path, classifier: Path, output: Path, **changes) -> EvaluateConfig:
    given = {"samples": tiny / "digits.npz", "reference": str(tiny / "heldout.npz"), "features": str(classifier)}
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


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": picture(4, 16, 12, 3)}, "square uint8 RGB images"),
        ({"arr_0": picture(4, 3, 16, 16)}, "channels must come last"),
        ({"arr_0": picture(4, 16, 16, 3) / 255}, "as uint8"),
        ({"arr_0": picture(4, 16, 16, 3) // 200}, "scale images in \\[0, 1\\] by 255"),
        ({"arr_0": picture(4, 32, 32, 3)}, "the samples are 32 pixels a side, heldout 16"),
        ({"arr_0": picture(4, 16, 16, 3), "arr_1": np.zeros(3, np.int64)}, "must be 4 labels"),
        ({"arr_0": picture(4, 16, 16, 3), "arr_1": np.arange(4) + 7}, "knows classes 0 to 9"),
        ({"images": picture(4, 16, 16, 3)}, "must hold arr_0"),
        ({"mu": np.zeros(3), "sigma": np.zeros((4, 4))}, "do not fit"),
        ({"features": picture(4, 3)}, "matrix of floats"),
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


def test_a_folder_of_images_of_one_size_is_judged_as_the_same_npz(tiny: Path, classifier: Path, tmp_path: Path) -> None:
    images, _ = arrays(tiny / "digits.npz")
    np.savez(tmp_path / "samples.npz", arr_0=images)
    (tmp_path / "samples").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "samples" / f"{number}.png")
    found = [
        evaluate(settings(tiny, classifier, tmp_path / f"scores{i}", samples=tmp_path / name))
        for i, name in enumerate(("samples.npz", "samples"))
    ]
    assert {**found[0], "output": ""} == {**found[1], "output": ""}
    Image.fromarray(images[0].repeat(2, 0).repeat(2, 1)).save(tmp_path / "samples" / "7.png")
    with pytest.raises(InputError, match=r"7\.png is 32 x 32 pixels, 0\.png 16 x 16 pixels: images of several sizes"):
        evaluate(settings(tiny, classifier, tmp_path / "scores2", samples=tmp_path / "samples"))


def test_features_that_were_kept_give_the_same_scores_without_the_network(
    tiny: Path, classifier: Path, tmp_path: Path
) -> None:
    first = evaluate(settings(tiny, classifier, tmp_path / "a", save_features=True))
    reference = ReferenceConfig(
        data=str(tiny / "heldout.npz"), features=str(classifier), output=tmp_path / "reference", device="cpu"
    )
    make_reference(reference)
    config = EvaluateConfig(
        samples=tmp_path / "a" / "features.npz",
        reference=str(tmp_path / "reference"),
        features="no network is loaded",
        output=tmp_path / "b",
        device="cpu",
    )
    again = evaluate(config)
    for kind in ("FD", "precision", "recall", "IS"):
        assert again[f"{kind}[{NAME}]"] == pytest.approx(first[f"{kind}[{NAME}]"], rel=1e-6)


def test_bare_features_of_any_network_are_judged_under_the_name_given(tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 50, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "b.npz", features=b)
    config = EvaluateConfig(
        samples=tmp_path / "a.npy",
        reference=str(tmp_path / "b.npz"),
        features="dino",
        output=tmp_path / "scores",
        device="cpu",
    )
    result = evaluate(config)
    assert result["FD[dino]"] == frechet_distance(a, b)
    assert result["precision[dino]"] == precision_and_recall(b, a)[0]
    assert not any("FID" in name or name.startswith("IS") for name in result)


OWN = """
import numpy as np, torch

class Means:
    name = "means"
    def features(self, images):
        return images.mean(axis=(1, 2)).astype(float)

class Module(torch.nn.Module):
    def forward(self, images):
        assert images.dtype == torch.uint8
        return images.float().mean(dim=(2, 3))
"""


def test_a_network_of_one_s_own_is_named_by_its_python_entry(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    found = {}
    for entry, name in (("Means", "means"), ("Module", "Module")):
        entry = f"{tmp_path / 'own.py'}:{entry}"
        config = EvaluateConfig(
            samples=tiny / "digits.npz",
            reference=str(tiny / "heldout.npz"),
            features=entry,
            output=tmp_path / name,
            device="cpu",
        )
        found[name] = evaluate(config)[f"FD[{name}]"]
    means = [arrays(tiny / f"{name}.npz")[0].mean(axis=(1, 2)) for name in ("digits", "heldout")]
    assert found["means"] == pytest.approx(frechet_distance(*means), rel=1e-4)
    assert found["Module"] == pytest.approx(found["means"], rel=1e-4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("own.py:Means", "no such file: own.py"),
        ("no.such.module:network", "no module no.such.module"),
        ("json:nothing", "json has no function nothing"),
        ("collections:OrderedDict", "gave a OrderedDict, which is neither callable nor features"),
        ("nowhere", "no feature network at nowhere"),
    ],
)
def test_networks_that_are_none_are_refused(tiny: Path, tmp_path: Path, entry: str, message: str) -> None:
    config = EvaluateConfig(
        samples=tiny / "digits.npz", reference=str(tiny / "heldout.npz"), features=entry, output=tmp_path / "scores"
    )
    with pytest.raises(InputError, match=message):
        evaluate(config)


def test_an_evaluation_killed_and_continued_by_two_processes_ends_as_an_unbroken_one(
    tiny: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = evaluate(settings(tiny, classifier, tmp_path / "unbroken", batch_size=4))
    config = settings(tiny, classifier, tmp_path / "killed", batch_size=4)
    assert run_and_die("evaluate", config, 9, {}) == -signal.SIGKILL
    assert run_and_die("evaluate", config, 9, {"RANK": "1", "WORLD_SIZE": "2"}) == -signal.SIGKILL
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate(config)["state"].startswith("done; the last of 2 processes")
    monkeypatch.setenv("RANK", "0")
    assert {**evaluate(config), "output": ""} == {**unbroken, "output": ""}
    assert digests(tmp_path / "killed") == digests(tmp_path / "unbroken")
    assert not list((tmp_path / "killed").glob("*parts*"))


def digests(folder: Path) -> dict[str, str]:
    return {name: entry["digest"] for name, entry in read_manifest(folder).files.items()}
