"""The code store: packed, mapped, signed; an encode that was killed ends as an unbroken one."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.artifact import read_json, read_manifest, write_json
from codeprior.codes import CodeStore, count_codes, unigram_entropy_nats
from codeprior.config import EncodeConfig, TrainTokenizerConfig
from codeprior.crops import view
from codeprior.encoding import encode
from codeprior.errors import InputError
from codeprior.images import open_images
from codeprior.pixels import to_tensor
from codeprior.tokenizers import load_tokenizer
from codeprior.tokenizers.training import train_tokenizer
from codeprior.tokenizers.vqgan import PRESETS, VQGAN, VQGANTokenizer
from killed import encode_and_die
from recorded import rebuild


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


def content(folder):
    """Bytes of what a store consists of."""
    return {name: (folder / name).read_bytes() for name in ("codes.npy", "labels.npy", "meta.json")}


@pytest.fixture(scope="module")
def killable(tokenizer_folder, tmp_path_factory):
    """What takes 15 forward passes of two images each, the last of one; and what an unbroken run makes of it."""
    folder = tmp_path_factory.mktemp("killable")
    pixels = np.random.default_rng(0).integers(0, 256, (29, 18, 16, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=pixels, arr_1=np.arange(29))
    settings = {"data": str(folder / "images.npz"), "batch_size": 20, "views": "ten-crop-1.1"}
    config = config_for(tokenizer_folder, folder / "unbroken", **settings)
    encode(config)
    return config, content(config.output)


def test_an_encode_killed_three_times_ends_byte_for_byte_as_an_unbroken_one(killable, tmp_path):
    config, unbroken = dataclasses.replace(killable[0], output=tmp_path / "killed"), killable[1]
    for n_passes in (0, 4, 6):
        assert encode_and_die(config, n_passes, {}) == -signal.SIGKILL
        with pytest.raises(InputError, match="is unfinished"):
            CodeStore.open(config.output)
    assert encode_and_die(config, 15 - 4 - 6, {}) == 0  # nothing was encoded twice
    assert content(config.output) == unbroken
    assert not (config.output / "parts").exists()


def test_ranks_that_die_and_change_in_number_write_what_one_process_writes(killable, tmp_path):
    config, unbroken = dataclasses.replace(killable[0], output=tmp_path / "ranks"), killable[1]
    ranks = {size: [{"RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)] for size in (2, 3)}
    assert encode_and_die(config, 3, ranks[2][0]) == -signal.SIGKILL
    assert encode_and_die(config, 8, ranks[2][1]) == 0
    with pytest.raises(InputError, match="is unfinished"):
        CodeStore.open(config.output)
    # Done are passes 0 to 2 and 7 to 14. Of three ranks the first has 0 to 4, the second 5 to 9, the third the rest.
    assert encode_and_die(config, 0, ranks[3][2]) == 0
    assert encode_and_die(config, 2, ranks[3][1]) == 0
    assert encode_and_die(config, 2, ranks[3][0]) == 0
    assert content(config.output) == unbroken


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "CODEPRIOR_PROGRESS": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def test_under_torchrun_two_processes_killed_and_run_again_write_what_one_writes(killable, tmp_path):
    config, unbroken = dataclasses.replace(killable[0], output=tmp_path / "ranks"), killable[1]
    flags = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in config.settings()]
    flags += [f"--{name}={getattr(config, name)}" for name in ("data", "tokenizer", "output", "device")]
    flags += [f"--batch-size={config.batch_size}"]
    died = torchrun(str(Path(__file__).with_name("killed.py")), "1", "3", "encode", *flags)
    assert died.returncode != 0
    assert list((config.output / "parts").glob("*.json"))  # what was recorded before
    done = torchrun("-m", "codeprior", "encode", *flags)
    assert done.returncode == 0, done.stderr
    assert content(config.output) == unbroken


def test_a_rank_that_is_not_the_last_says_so(tokenizer_folder, tmp_path, monkeypatch):
    config = config_for(tokenizer_folder, tmp_path / "codes", batch_size=64)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert encode(config)["state"] == "done; the last of 2 processes to finish writes the result"
    monkeypatch.setenv("RANK", "0")
    assert encode(config)["n_images"] == 297


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
    store = CodeStore.open(config.output)
    assert (store.missing, store.labels.tolist(), store.image_numbers().tolist()) == ((1,), [0, 0], [0, 2])
    (tmp_path / "data" / "a" / "1.png").unlink()
    encode(dataclasses.replace(config, output=tmp_path / "without"))
    assert np.array_equal(store.codes, CodeStore.open(tmp_path / "without").codes)


def test_a_bad_image_is_refused_when_it_is_met(tokenizer_folder, tmp_path):
    from PIL import Image

    (tmp_path / "data" / "a").mkdir(parents=True)
    Image.new("L", (20, 16)).save(tmp_path / "data" / "a" / "0.png")
    (tmp_path / "data" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a/1\.png is not a readable image .* use --bad-images skip"):
        encode(config_for(tokenizer_folder, tmp_path / "codes", data=str(tmp_path / "data")))
    assert not (tmp_path / "codes").exists()
    (tmp_path / "data" / "a" / "0.png").write_bytes(b"")
    config = config_for(tokenizer_folder, tmp_path / "none", data=str(tmp_path / "data"), bad_images="skip")
    with pytest.raises(InputError, match="none of the 2 images can be read"):
        encode(config)


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
    (tmp_path / "vq.pt").touch()
    with pytest.raises(InputError, match=r"vq.pt is a file, not a folder of ours; .* `codeprior convert`"):
        CodeStore.open(tmp_path / "vq.pt")
    with pytest.raises(InputError, match="holds a tokenizer, not codes"):
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


@pytest.mark.slow
def test_photographs_at_ten_crops_killed_three_times_are_those_of_an_unbroken_run(tmp_path):
    """Two hundred photographs, VQ-16 with random weights; small crops, as a processor takes a second for one of 256."""
    if "CODEPRIOR_TEST_DATA" not in os.environ:
        pytest.skip("CODEPRIOR_TEST_DATA names no folder with imagenet-sample/")
    with torch.device("meta"):
        model = VQGAN(PRESETS["VQ-16"])
    VQGANTokenizer(rebuild(model), 32).save_pretrained(tmp_path / "tokenizer")
    settings = {"data": f"{os.environ['CODEPRIOR_TEST_DATA']}/imagenet-sample", "views": "ten-crop-1.1"}
    config = config_for(tmp_path / "tokenizer", tmp_path / "killed", batch_size=10, **settings)
    for n_passes in (0, 70, 90):
        assert encode_and_die(config, n_passes, {}) == -signal.SIGKILL
    assert encode_and_die(config, 200 - 70 - 90, {}) == 0
    encode(dataclasses.replace(config, output=tmp_path / "unbroken"))
    assert content(tmp_path / "killed") == content(tmp_path / "unbroken")
    assert CodeStore.open(tmp_path / "killed").codes.shape == (200, 10, 4)


def test_on_several_threads_the_codes_are_those_of_one(killable, tmp_path):
    config, unbroken = dataclasses.replace(killable[0], output=tmp_path / "threads"), killable[1]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        encode(config)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(n_threads)
    assert content(config.output) == unbroken
