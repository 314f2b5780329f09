import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codeprior.artifact import read_manifest, short
from codeprior.config import ReconstructConfig, ReferenceConfig, TrainClassifierConfig
from codeprior.errors import InputError
from codeprior.evaluation.classifier import train_classifier
from codeprior.evaluation.metrics import psnr_db, ssim
from codeprior.evaluation.reference import reference as make_reference
from codeprior.pixels import to_pixels, to_tensor
from codeprior.prior import CodebookPrior
from codeprior.reconstruct import example_indices, reconstruct
from codeprior.tokenizers import load_tokenizer
from killed import run_and_die
from recorded import write_lpips
from tiny import CODEBOOK_SIZE, make_tokenizer


def settings(tiny: Path, output: Path, **changes) -> ReconstructConfig:
    given = {"data": str(tiny / "heldout.npz"), "tokenizer": tiny / "tokenizer", "output": output, "device": "cpu"}
    return ReconstructConfig(**{**given, "priors": (tiny / "prior.safetensors",), "n_seeds": 2, **changes})


def priors_of(tiny: Path, folder: Path) -> tuple[Path, Path]:
    """A prior of single tokens, and one whose only cluster holds them all."""
    digest = load_tokenizer(tiny / "tokenizer").codebook.digest
    for name, labels in {"singles": np.arange(CODEBOOK_SIZE), "one": np.zeros(CODEBOOK_SIZE, np.int64)}.items():
        CodebookPrior(labels, digest, name).save(folder / f"{name}.safetensors")
    return folder / "singles.safetensors", folder / "one.safetensors"


def test_without_replacement_the_scores_are_the_reconstruction_s(tiny: Path, tmp_path: Path) -> None:
    row = reconstruct(settings(tiny, tmp_path / "test", batch_size=7))["rows"][0]
    tokenizer = load_tokenizer(tiny / "tokenizer")
    with np.load(tiny / "heldout.npz") as arrays:
        images = arrays["arr_0"]
    decoded = to_pixels(tokenizer.decode(tokenizer.encode(to_tensor(images)), (4, 4)))
    assert row["prior"] == "none"
    assert row["n_images"] == 20
    assert row["psnr_db"] == pytest.approx(psnr_db(images, decoded).mean(), abs=1e-3)
    assert row["ssim"] == pytest.approx(ssim(images, decoded).mean(), abs=1e-4)


def test_clusters_of_single_tokens_change_nothing_and_one_of_all_tokens_does(tiny: Path, tmp_path: Path) -> None:
    none, singles, one = reconstruct(settings(tiny, tmp_path / "test", priors=priors_of(tiny, tmp_path)))["rows"]
    assert singles["psnr_db"] == none["psnr_db"]
    assert singles["psnr_db_sd"] == 0
    assert one["psnr_db"] != none["psnr_db"]  # worse with a tokenizer that has learned something
    assert one["psnr_db_sd"] > 0
    assert [row["n_clusters"] for row in (none, singles, one)] == [32, 32, 1]


def test_examples_are_a_row_of_images_a_variant(tiny: Path, tmp_path: Path) -> None:
    reconstruct(settings(tiny, tmp_path / "test"))
    with np.load(tmp_path / "test" / "examples.npz") as arrays:
        assert arrays["rows"].tolist() == ["original", "reconstruction", "prior"]
        assert arrays["images"].shape == (3, 10, 16, 16, 3)
        assert sorted(arrays["class_names"].tolist()) == list("0123456789")
        originals = arrays["images"][0]
    with np.load(tiny / "heldout.npz") as arrays:
        assert all((arrays["arr_0"] == image).all(axis=(1, 2, 3)).any() for image in originals)
    with Image.open(tmp_path / "test" / "examples.png") as picture:
        assert picture.width > 10 * 64


def test_scores_repeat_and_do_not_depend_on_the_batch(tiny: Path, tmp_path: Path) -> None:
    a = reconstruct(settings(tiny, tmp_path / "a"))
    assert reconstruct(settings(tiny, tmp_path / "a")) == a
    b = reconstruct(settings(tiny, tmp_path / "b"))
    assert read_manifest(tmp_path / "a").digest == read_manifest(tmp_path / "b").digest
    c = reconstruct(settings(tiny, tmp_path / "c", batch_size=6))
    for row, other in zip(b["rows"], c["rows"], strict=True):
        assert row["psnr_db"] == pytest.approx(other["psnr_db"], abs=1e-3)


def test_some_of_the_images_are_chosen_by_seed(tiny: Path, tmp_path: Path) -> None:
    rows = [
        reconstruct(settings(tiny, tmp_path / f"{seed}", n_images=8, seed=seed, priors=()))["rows"] for seed in (0, 1)
    ]
    assert [len(test) for test in rows] == [1, 1]
    assert rows[0][0]["n_images"] == 8
    assert rows[0][0]["psnr_db"] != rows[1][0]["psnr_db"]


def test_a_feature_network_adds_its_distance_by_name(tiny: Path, tmp_path: Path) -> None:
    train_classifier(
        TrainClassifierConfig(data=str(tiny / "digits.npz"), output=tmp_path / "cnn", steps=2, width=4, device="cpu")
    )
    none, half = reconstruct(settings(tiny, tmp_path / "test", features=str(tmp_path / "cnn")))["rows"]
    assert none["FD[digits-cnn]"] > 0
    assert half["FD[digits-cnn]_sd"] > 0


def test_a_prior_of_another_codebook_is_refused_with_both_digests(tiny: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "other", tiny / "digits.npz", seed=1)
    with pytest.raises(InputError) as refusal:
        reconstruct(settings(tiny, tmp_path / "test", tokenizer=tmp_path / "other"))
    for digest in (
        CodebookPrior.load(tiny / "prior.safetensors").codebook_digest,
        load_tokenizer(tmp_path / "other").codebook.digest,
    ):
        assert short(digest) in str(refusal.value)
    assert not (tmp_path / "test").exists()


def test_priors_of_one_name_are_told_apart_by_their_paths(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "prior.safetensors"
    copy.write_bytes((tiny / "prior.safetensors").read_bytes())
    priors = (tiny / "prior.safetensors", copy)
    rows = reconstruct(settings(tiny, tmp_path / "test", priors=priors))["rows"]
    assert [row["prior"] for row in rows] == ["none", str(priors[0]), str(priors[1])]
    assert rows[1]["psnr_db"] == rows[2]["psnr_db"]
    with pytest.raises(InputError, match="names of their own"):
        reconstruct(settings(tiny, tmp_path / "twice", priors=(copy, copy)))


def test_what_cannot_be_scored_is_refused_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    small = TrainClassifierConfig(
        data=str(tiny / "digits.npz"), output=tmp_path / "cnn", image_size=8, steps=1, width=4
    )
    train_classifier(small)
    for changes, message in (
        ({"image_size": 18}, "multiple of 4"),
        ({"image_size": 4}, "at least 7"),
        ({"features": str(tmp_path / "cnn")}, "judges uint8 images of 8 x 8"),
        ({"features": str(tmp_path / "cnn"), "image_size": 8, "n_images": 1}, "2 images or more"),
        ({"data": str(tmp_path / "nowhere")}, "no images at"),
    ):
        with pytest.raises(InputError, match=message):
            reconstruct(settings(tiny, tmp_path / "test", **changes))
    assert not (tmp_path / "test").exists()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0, 0, 1, 2, 1], [1, 3, 0]),  # a class each
        ([0, 1, 0, 1], [0, 2, 1]),  # then second images
        ([4, 3, 2, 1, 0], [4, 2, 0]),  # evenly spaced classes
        ([7], [0]),
    ],
)
def test_examples_are_of_as_many_classes_as_possible(labels: list[int], expected: list[int]) -> None:
    assert example_indices(np.array(labels), 3).tolist() == expected


def test_torch_is_left_as_it_was(tiny: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    reconstruct(settings(tiny, tmp_path / "test"))
    assert torch.equal(torch.get_rng_state(), before)


def test_llamagen_s_ssim_stands_beside_the_right_one(tiny: Path, tmp_path: Path) -> None:
    row = reconstruct(settings(tiny, tmp_path / "test", priors=()))["rows"][0]
    tokenizer = load_tokenizer(tiny / "tokenizer")
    with np.load(tiny / "heldout.npz") as arrays:
        images = arrays["arr_0"]
    decoded = to_pixels(tokenizer.decode(tokenizer.encode(to_tensor(images)), (4, 4)))
    assert row["ssim_llamagen"] == pytest.approx(ssim(images, decoded, 510).mean(), abs=1e-4)
    assert row["ssim_llamagen"] > row["ssim"]


def test_lpips_is_measured_where_it_is_wanted(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    changes = {"data": str(tiny / "digits.npz"), "image_size": 64, "n_images": 3, "lpips": "alex"}
    with pytest.raises(InputError, match=r"AlexNet, by which LPIPS\[alex\] is defined, is not at hand"):
        reconstruct(settings(tiny, tmp_path / "test", **changes))
    write_lpips(tmp_path / "weights", "alex")
    monkeypatch.setenv("CODEPRIOR_WEIGHTS", str(tmp_path / "weights"))
    rows = reconstruct(settings(tiny, tmp_path / "test", **changes))["rows"]
    assert all(row["lpips_alex[other weights]"] > 0 for row in rows)


@pytest.fixture(scope="module")
def judge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("judge") / "cnn"
    train_classifier(
        TrainClassifierConfig(data=str(tiny / "digits.npz"), output=folder, steps=2, width=4, device="cpu")
    )
    return str(folder)


def test_a_reference_made_of_the_originals_gives_the_same_distance(tiny: Path, tmp_path: Path, judge: str) -> None:
    made = {"data": str(tiny / "heldout.npz"), "features": judge, "device": "cpu"}
    for purpose in ("reconstruction", "generation"):
        make_reference(ReferenceConfig(**made, purpose=purpose, output=tmp_path / purpose))
    own = reconstruct(settings(tiny, tmp_path / "own", features=judge))
    given = reconstruct(settings(tiny, tmp_path / "given", features=judge, reference=str(tmp_path / "reconstruction")))
    assert given["warnings"] == []
    for row, other in zip(own["rows"], given["rows"], strict=True):
        assert row["FD[digits-cnn]"] == pytest.approx(other["FD[digits-cnn]"], rel=1e-5)
    few = {"features": judge, "reference": str(tmp_path / "reconstruction"), "n_images": 10}
    too_few, others = reconstruct(settings(tiny, tmp_path / "few", **few))["warnings"]
    assert too_few.startswith("10 images have no covariance of full rank in 16 features")
    assert others.startswith("there are 10 reconstructions, but 20 images")
    for reference, message in (
        (tmp_path / "generation", "was made to judge generations by"),
        (tiny / "heldout.npz", "make a reference of them"),
    ):
        with pytest.raises(InputError, match=message):
            reconstruct(settings(tiny, tmp_path / "test", features=judge, reference=str(reference)))
    with pytest.raises(InputError, match="a reference needs --features"):
        reconstruct(settings(tiny, tmp_path / "test", reference=str(tmp_path / "reconstruction")))


def test_a_test_killed_and_continued_by_two_processes_is_an_unbroken_one(
    tiny: Path, tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"features": judge, "batch_size": 3}
    unbroken = reconstruct(settings(tiny, tmp_path / "unbroken", **changes))
    config = settings(tiny, tmp_path / "killed", **changes)
    assert run_and_die("reconstruct", config, 12, {}) == -signal.SIGKILL
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert reconstruct(config)["state"].startswith("done; the last of 2")
    monkeypatch.setenv("RANK", "0")
    assert {**reconstruct(config), "output": ""} == {**unbroken, "output": ""}
    assert read_manifest(tmp_path / "killed").digest == read_manifest(tmp_path / "unbroken").digest
