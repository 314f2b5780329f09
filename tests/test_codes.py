"""The code store: packed, mapped, signed; an encode that was killed ends as an unbroken one."""

import numpy as np
import pytest

from codeprior.artifact import read_json, read_manifest, write_json
from codeprior.codes import CodeStore, count_codes, encode, unigram_entropy_nats
from codeprior.config import EncodeConfig, TrainTokenizerConfig
from codeprior.errors import InputError
from codeprior.images import open_images, view
from codeprior.pixels import to_tensor
from codeprior.tokenizers import load_tokenizer
from codeprior.tokenizers.training import train_tokenizer
from codeprior.tokenizers.vqgan import VQGAN


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TrainTokenizerConfig(data="digits", output=folder, steps=10, codebook_size=64, device="cpu"))
    return folder


def config_for(tokenizer, output, **settings):
    return EncodeConfig(
        **{"data": "digits:heldout", "tokenizer": tokenizer, "output": output, "device": "cpu", **settings}
    )


@pytest.fixture(scope="module")
def encoded(tokenizer_folder, tmp_path_factory):
    config = config_for(tokenizer_folder, tmp_path_factory.mktemp("codes"), views="flip")
    return config, encode(config)


def test_each_image_and_view_has_its_codes(encoded):
    config, results = encoded
    store = CodeStore.open(config.output)
    assert store.codes.shape == (297, 2, 16)
    assert store.codes.dtype == np.uint16
    assert (results["n_images"], results["n_views"], results["n_tokens"]) == (297, 2, 16)
    images, tokenizer = open_images(config.data), load_tokenizer(config.tokenizer)
    for number in (0, 100, 296):
        pixels = images.read(number, 16)
        both = to_tensor(np.stack([view(pixels, "flip", 0), view(pixels, "flip", 1)]))
        assert np.array_equal(store.codes[number], tokenizer.encode(both).numpy())


def test_a_store_says_what_it_was_made_from(encoded):
    config, results = encoded
    store, tokenizer = CodeStore.open(config.output), load_tokenizer(config.tokenizer)
    assert np.array_equal(store.labels, open_images(config.data).labels)
    assert store.class_names == tuple("0123456789")
    assert (store.grid, store.image_size, store.views) == ((4, 4), 16, "flip")
    assert store.tokenizer_digest == tokenizer.digest
    assert store.codebook_digest == tokenizer.codebook.digest == results["codebook_digest"]
    assert store.digest == read_manifest(config.output).digest


def test_a_store_cannot_be_written_to(encoded):
    store = CodeStore.open(encoded[0].output)
    with pytest.raises(ValueError, match="read-only"):
        store.codes[0, 0, 0] = 1


def test_usage_counts_every_view(encoded):
    config, results = encoded
    store = CodeStore.open(config.output)
    usage = store.usage()
    assert usage.dtype == np.int64
    assert usage.shape == (64,)
    assert np.array_equal(usage, [(store.codes == code).sum() for code in range(64)])
    assert results["codes_used"] == np.count_nonzero(usage)


def test_the_entropy_of_equal_use_is_the_logarithm_of_the_number_of_codes():
    assert unigram_entropy_nats(np.array([7, 7, 0, 7])) == pytest.approx(np.log(3))
    assert unigram_entropy_nats(count_codes(np.zeros((2, 1, 3), np.uint16), 5)) == 0


def test_a_killed_encode_ends_byte_for_byte_as_an_unbroken_one(tokenizer_folder, tmp_path, monkeypatch):
    settings = {"batch_size": 4, "views": "shift"}
    encode(config_for(tokenizer_folder, tmp_path / "unbroken", **settings))
    encode_batch, calls = VQGAN.encode, []

    def killed_in_the_middle(model, images):
        calls.append(len(images))
        if len(calls) == 5 * 40 + 3:
            raise KeyboardInterrupt
        return encode_batch(model, images)

    monkeypatch.setattr(VQGAN, "encode", killed_in_the_middle)
    monkeypatch.setattr("codeprior.codes._SECONDS_BETWEEN_RECORDS", 0)
    with pytest.raises(KeyboardInterrupt):
        encode(config_for(tokenizer_folder, tmp_path / "killed", **settings))
    with pytest.raises(InputError, match="is unfinished"):
        CodeStore.open(tmp_path / "killed")
    n_before = len(calls)
    encode(config_for(tokenizer_folder, tmp_path / "killed", **settings))
    assert len(calls) - n_before == 5 * (75 - 40)  # it went on after the 40th of 75 batches, of five views each
    unbroken, killed = read_manifest(tmp_path / "unbroken"), read_manifest(tmp_path / "killed")
    assert unbroken.files == killed.files
    assert not killed.path("progress.json").exists()


def test_a_finished_encode_is_not_done_again(encoded):
    config, results = encoded
    before = (config.output / "codes.npy").stat().st_mtime_ns
    assert encode(config) == results
    assert (config.output / "codes.npy").stat().st_mtime_ns == before


def test_skipped_images_are_counted_and_named(tokenizer_folder, tmp_path):
    from PIL import Image

    (tmp_path / "data" / "a").mkdir(parents=True)
    for number in range(3):
        Image.new("L", (20, 16), 80 * number).save(tmp_path / "data" / "a" / f"{number}.png")
    (tmp_path / "data" / "a" / "1.png").write_bytes(b"")
    config = config_for(tokenizer_folder, tmp_path / "codes", data=str(tmp_path / "data"), bad_images="skip")
    results = encode(config)
    assert (results["n_images"], results["n_skipped"]) == (2, 1)
    assert (tmp_path / "codes" / "skipped.txt").read_text().startswith("a/1.png")


def test_another_image_size_gives_another_grid(tokenizer_folder, tmp_path):
    encode(config_for(tokenizer_folder, tmp_path / "a", image_size=8))
    assert CodeStore.open(tmp_path / "a").grid == (2, 2)
    with pytest.raises(InputError, match="image_size must be a multiple of 4, got 10"):
        encode(config_for(tokenizer_folder, tmp_path / "b", image_size=10))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["codes.npy", "labels.npy", "meta.json"])
def test_a_truncated_store_is_refused(encoded, tmp_path, name):
    import shutil

    folder = shutil.copytree(encoded[0].output, tmp_path / "copy")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-3])
    with pytest.raises(InputError, match=f"{name} has {len(content) - 3} bytes, {len(content)} were written"):
        CodeStore.open(folder)


def test_a_store_that_is_none_is_refused(tmp_path, tokenizer_folder):
    with pytest.raises(InputError, match="there is no such folder"):
        CodeStore.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds a tokenizer, not a codes"):
        CodeStore.open(tokenizer_folder)


def test_a_store_whose_array_is_no_array_is_refused(encoded, tmp_path):
    import shutil

    from codeprior.artifact import digest_file

    folder = shutil.copytree(encoded[0].output, tmp_path / "copy")
    (folder / "codes.npy").write_bytes(b"junk")
    record = read_json(folder / "manifest.json")
    record["files"]["codes.npy"] = {"bytes": 4, "digest": digest_file(folder / "codes.npy")}
    write_json(folder / "manifest.json", record)
    with pytest.raises(InputError, match="cannot read the codes at"):
        CodeStore.open(folder)
