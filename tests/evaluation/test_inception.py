from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.artifact import digest_file
from codeprior.config import EvaluateConfig
from codeprior.errors import InputError
from codeprior.evaluation import networks
from codeprior.evaluation.inception import InceptionFeatures, load_inception
from codeprior.evaluation.judge import evaluate
from codeprior.evaluation.metrics import inception_score
from codeprior.evaluation.statistics import frechet_distance
from recorded import inception_images, save_legacy, save_zip, write_inception

GOLDEN = Path(__file__).parent.parent / "golden" / "inception_io.npz"


@pytest.fixture(scope="session")
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random-inception.pth"
    write_inception(path)
    return path


@pytest.fixture(scope="session")
def network(weights: Path) -> InceptionFeatures:
    return InceptionFeatures(weights, torch.device("cpu"), is_standard=False)


@pytest.mark.parametrize("size", [32, 75, 256, 299, 384])
def test_features_and_logits_are_those_of_torch_fidelity(
    network: InceptionFeatures, recorded: dict[str, np.ndarray], size: int
) -> None:
    rows = network.features(inception_images(size))
    np.testing.assert_allclose(rows[:, :2048], recorded[f"pool_{size}"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows[:, 2048:], recorded[f"spatial_{size}"], rtol=1e-4, atol=1e-4)
    expected = torch.from_numpy(recorded[f"logits_{size}"]).softmax(dim=1).numpy()
    np.testing.assert_allclose(network.probabilities(rows[:, :2048]), expected, rtol=1e-3, atol=1e-6)


def test_features_do_not_depend_on_the_batch(network: InceptionFeatures) -> None:
    images = inception_images(64, 5)
    whole = network.features(images)
    np.testing.assert_allclose(
        np.concatenate([network.features(images[i : i + 1]) for i in range(5)]), whole, atol=1e-4
    )


def test_files_of_both_formats_of_torch_and_without_counts_of_batches_are_read(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    expected = load_inception(weights).state_dict()
    for number, (save, kept) in enumerate(((save_legacy, ""), (save_zip, "num_batches_tracked"))):
        path = tmp_path / f"{number}.pth"
        save({name: tensor for name, tensor in state.items() if not kept or kept not in name}, path)
        found = load_inception(path).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_networks_files_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    save_zip({**state, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    save_zip({name: state[name] for name in list(state)[:300]}, tmp_path / "half.pth")
    (tmp_path / "inception-2015-12-05.pt").write_bytes(weights.read_bytes())
    for name, message in {
        "torchvision.pth": "size mismatch for fc.weight",
        "half.pth": "is not the Inception of FID",
        "inception-2015-12-05.pt": "is a program for TensorFlow or TorchScript",
    }.items():
        with pytest.raises(InputError, match=message):
            load_inception(tmp_path / name)


@pytest.fixture(scope="session")
def batches(tmp_path_factory: pytest.TempPathFactory, network: InceptionFeatures) -> dict[str, Path]:
    """Samples, and a reference batch as ADM's: images with the statistics of others, under the same keys."""
    folder = tmp_path_factory.mktemp("batches")
    images = np.concatenate([inception_images(32, 6), inception_images(32, 6)[::-1, ::-1]])
    rows = network.features(images)
    statistics = {}
    for suffix, features in (("", rows[:, :2048]), ("_s", rows[:, 2048:])):
        statistics |= {f"mu{suffix}": features.mean(axis=0), f"sigma{suffix}": np.cov(features, rowvar=False)}
    np.savez(folder / "samples.npz", arr_0=images[3:11])
    np.savez(folder / "VIRTUAL_imagenet32_labeled.npz", arr_0=images[:6], **statistics)
    return {path.stem.partition("_")[0]: path for path in folder.iterdir()}


def settings(batches: dict[str, Path], weights: Path, output: Path, **changes) -> EvaluateConfig:
    given = {"samples": batches["samples"], "reference": str(batches["VIRTUAL"]), "inception_weights": weights}
    return EvaluateConfig(**{**given, "device": "cpu", **changes}, output=output)


def test_scores_against_a_batch_of_adm_are_those_of_its_statistics_and_its_images(
    batches: dict[str, Path], weights: Path, network: InceptionFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights that pass for the published ones, scores have published names, and ADM's lines are written."""
    published = networks.INCEPTION
    digest = digest_file(weights).removeprefix("sha256:")
    monkeypatch.setattr(networks, "INCEPTION", type(published)(**{**vars(published), "sha256": digest}))
    result = evaluate(settings(batches, weights, tmp_path / "scores", write_txt=True))
    with np.load(batches["samples"]) as samples, np.load(batches["VIRTUAL"]) as reference:
        rows = network.features(samples["arr_0"])
        all_images = np.concatenate([reference["arr_0"], samples["arr_0"][3:], inception_images(32, 6)[:1, ::-1]])
        theirs = network.features(all_images)
    assert result["feature_network"] == "inception-2015-12-05"
    assert result["gFID"] == pytest.approx(frechet_distance(rows[:, :2048], theirs[:, :2048]), rel=1e-3)
    assert result["sFID"] == pytest.approx(frechet_distance(rows[:, 2048:], theirs[:, 2048:]), rel=1e-3)
    assert result["IS"] == pytest.approx(inception_score(network.probabilities(rows[:, :2048])), rel=1e-4)
    assert result["class_consistency"] is None
    assert (result["n_samples"], result["n_reference"]) == (8, 6)
    assert "real_is" not in result
    lines = (tmp_path / "scores" / "scores.txt").read_text().splitlines()
    assert lines == batches["samples"].with_suffix(".txt").read_text().splitlines()
    expected = {"Inception Score": "IS", "FID": "gFID", "sFID": "sFID", "Precision": "precision", "Recall": "recall"}
    assert lines == [f"{line}: {result[key]}" for line, key in expected.items()]


def test_with_other_weights_nothing_is_called_fid(batches: dict[str, Path], weights: Path, tmp_path: Path) -> None:
    result = evaluate(settings(batches, weights, tmp_path / "scores", distances="float16", n_resamples=0))
    names = {name.partition("[")[0] for name in result if name.endswith("[random-inception]")}
    assert names == {"FD", "sFD", "KD", "IS", "precision_float16", "recall_float16"}
    assert not any("FID" in name for name in result)
    assert not (tmp_path / "scores" / "scores.txt").exists()
    with pytest.raises(InputError, match="ADM's lines are of its own network"):
        evaluate(settings(batches, weights, tmp_path / "scores", distances="float16", n_resamples=0, write_txt=True))


def test_without_weights_there_is_no_score_but_what_to_do(
    batches: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="is not at hand: put weights-inception-2015-12-05-6726825d"):
        evaluate(settings(batches, None, tmp_path / "scores"))
    assert not (tmp_path / "scores").exists()
