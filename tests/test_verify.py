"""verify-codes: right codes pass; wrong tokenizer, crops, order or classes are called what they are."""

import contextlib
import re
import shutil

import numpy as np
import pytest

from codeprior.artifact import digest_file, read_json, write_json
from codeprior.cli import main
from codeprior.codes import CodeStore
from codeprior.config import EncodeConfig, VerifyCodesConfig
from codeprior.encoding import encode
from codeprior.errors import InputError
from codeprior.verify import verify_codes
from tiny import make_tokenizer


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("verify") / "codes"
    encode(config_of(EncodeConfig, tiny, output=output, views="ten-crop-1.1"))
    return output


def config_of(kind, tiny, **settings):
    return kind(**{"data": str(tiny / "digits.npz"), "tokenizer": tiny / "tokenizer", "device": "cpu", **settings})


def verify(tiny, store, **settings):
    return verify_codes(config_of(VerifyCodesConfig, tiny, codes=store, **settings))


def spoiled(store, folder, change):
    """A copy of a store with other codes or labels, signed as if nothing had happened."""
    shutil.copytree(store, folder)
    codes, labels = np.load(folder / "codes.npy"), np.load(folder / "labels.npy")
    codes, labels = change(codes, labels)
    np.save(folder / "codes.npy", codes)
    np.save(folder / "labels.npy", labels)
    record = read_json(folder / "manifest.json")
    for name in ("codes.npy", "labels.npy"):
        record["files"][name] = {"bytes": (folder / name).stat().st_size, "digest": digest_file(folder / name)}
    write_json(folder / "manifest.json", record)
    return folder


def test_the_codes_that_encode_wrote_agree(tiny, store):
    results = verify(tiny, store, n_images=20)
    assert results["agreement"] > 0.999
    assert results["passed"]
    assert results["verdict"] == "these are the codes of these images"
    assert results["n_images"] == 20
    assert len(results["views"]) == 10
    codes = CodeStore.open(store).codes
    shares = np.bincount(codes.ravel(), minlength=32) / codes.size
    used = shares[shares > 0]
    assert results["chance"] == pytest.approx((shares**2).sum())
    assert results["unigram_perplexity"] == pytest.approx(np.prod(used**-used))
    assert results["dead_codes"] == 32 - len(used)


def test_the_sample_follows_the_seed_and_has_no_image_twice(tiny, store, tmp_path):
    wrong = spoiled(
        store, tmp_path / "a", lambda codes, labels: (np.where(labels[:, None, None] < 5, 0, codes), labels)
    )
    seen = [verify(tiny, wrong, n_images=10, seed=seed)["agreement"] for seed in (0, 0, 1, 2)]
    assert seen[0] == seen[1]
    assert len(set(seen)) > 1
    assert verify(tiny, store, n_images=1000)["n_images"] == 60


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda codes, labels: (codes[::-1], labels[::-1]), "only .* of the codes agree: look at the tokenizer"),
        (lambda codes, labels: (codes[::-1], labels[::-1]), "sampled images have another class than the store says"),
        (lambda codes, labels: (codes[:, [0, 1, 2, 3, 4, 6, 5, 7, 8, 9]], labels), "views 5, 6 do not agree while"),
        (lambda codes, labels: (np.where(np.arange(16) == 3, 0, codes), labels), "rounding does not explain"),
    ],
)
def test_wrong_codes_are_called_wrong(tiny, store, tmp_path, change, warning):
    results = verify(tiny, spoiled(store, tmp_path / "a", change))
    assert any(re.search(warning, line) for line in results["warnings"]), results["warnings"]
    assert results["verdict"] != "these are the codes of these images"


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda codes, labels: (np.where(np.arange(16) == 3, 0, codes), labels), True),
        (lambda codes, labels: (np.where(np.arange(10)[:, None] == 9, 0, codes), labels), False),
        (lambda codes, labels: (codes, np.roll(labels, 1)), False),
    ],
    ids=["a few codes", "one view", "classes"],
)
def test_what_should_not_be_trained_on_ends_with_exit_code_1(tiny, store, tmp_path, change, passes):
    wrong = spoiled(store, tmp_path / "a", change)
    arguments = ["--data", str(tiny / "digits.npz"), "--tokenizer", str(tiny / "tokenizer"), "--device", "cpu"]
    with contextlib.nullcontext() if passes else pytest.raises(SystemExit, match=r"^1$"):
        main(["verify-codes", str(wrong), *arguments])


def test_another_tokenizer_is_found_out(tiny, store, tmp_path):
    other = make_tokenizer(tmp_path / "other", tiny / "digits.npz", seed=1)
    results = verify(tiny, store, tokenizer=other)
    assert results["verdict"].startswith("NOT the codes")
    assert "the store is signed for another tokenizer than this one" in results["warnings"]


def test_too_few_images_are_refused_and_more_are_mentioned(tiny, store):
    with pytest.raises(InputError, match=r"is of 60 images or more, .* holds 20"):
        verify(tiny, store, data=str(tiny / "heldout.npz"))
    results = verify(tiny, tiny / "heldout", data=str(tiny / "digits.npz"))
    assert "the store is of 20 images, the set has 60" in results["warnings"]
