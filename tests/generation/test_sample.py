import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import codeprior.generation.sample
from codeprior.artifact import read_manifest, short
from codeprior.cli import main
from codeprior.codes import CodeStore
from codeprior.config import SampleConfig, TrainConfig
from codeprior.errors import InputError
from codeprior.generation.sample import Maker, sample
from codeprior.generation.tiles import in_tiles, tile_size
from codeprior.model import model_config
from codeprior.training.loop import train
from killed import run_and_die
from tiny import make_tokenizer

CPU = torch.device("cpu")


def settings(tiny, checkpoint, output, **changes) -> SampleConfig:
    given = {"checkpoint": checkpoint, "tokenizer": tiny / "tokenizer", "output": output, "device": "cpu"}
    return SampleConfig(**{**given, "n_images": 33, **changes})


@pytest.fixture(scope="module")
def samples(tiny, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("samples") / "samples"
    return output, sample(settings(tiny, checkpoint, output))


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "samples.npz") as arrays:
        return arrays["arr_0"], arrays["arr_1"]


def test_samples_are_images_with_labels_in_random_order(samples):
    output, results = samples
    images, labels = load(output)
    assert np.bincount(labels).tolist() == [4, 4, 4] + [3] * 7
    assert (np.diff(labels) < 0).sum() > 5
    assert len(np.unique(images.reshape(33, -1), axis=0)) == 33
    assert results["n_images"] == 33
    assert results["cfg_scale"] == 1.5
    with Image.open(output / "grid.png") as grid:
        assert grid.height > 10 * 16
    assert not (output / "parts").exists()


def test_the_file_is_what_adms_evaluator_reads(samples):
    """It opens the archive's arr_0.npy as a stream and reads its header, then rows, without NumPy's npz reader."""
    import zipfile

    with zipfile.ZipFile(samples[0] / "samples.npz") as archive:
        assert archive.namelist() == ["arr_0.npy", "arr_1.npy"]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        with archive.open("arr_0.npy") as file:
            assert np.lib.format.read_magic(file) == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            assert (shape, fortran, dtype) == ((33, 16, 16, 3), False, np.uint8)
            rows = np.frombuffer(file.read(), dtype).reshape(shape)
        assert archive.testzip() is None
    images, labels = load(samples[0])
    assert np.array_equal(rows, images)
    assert (labels.dtype, labels.shape) == (np.int64, (33,))


@pytest.mark.parametrize("batch_size", [1, 100])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_no_bit_depends_on_the_batch_size_or_on_threads(tiny, checkpoint, samples, tmp_path, batch_size, n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        sample(settings(tiny, checkpoint, tmp_path / "samples", batch_size=batch_size))
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    assert read_manifest(tmp_path / "samples").digest == read_manifest(samples[0]).digest


def test_an_image_depends_on_its_index_alone(tiny, checkpoint, samples, tmp_path):
    images, labels = load(samples[0])
    maker = Maker.of(settings(tiny, checkpoint, tmp_path / "none"), CPU)
    order = np.random.default_rng([0, 33]).permutation(33)
    assert np.array_equal(labels, order % 10)
    tile = np.concatenate(list(in_tiles(maker.images, range(40), 64, None, CPU)))
    assert np.array_equal(tile[order], images)


@pytest.fixture(scope="module")
def killable(tiny, checkpoint, tmp_path_factory):
    """Four tiles of 64 images, the last of 8; and what an unbroken run makes of them."""
    config = settings(tiny, checkpoint, tmp_path_factory.mktemp("killable") / "unbroken", n_images=200)
    assert tile_size(model_config("tiny", vocab_size=1, n_classes=1, grid=(1, 1)), CPU, None) == 64
    sample(config)
    return config, read_manifest(config.output).digest


def test_a_run_killed_at_any_moment_ends_bit_for_bit_as_an_unbroken_one(killable, tmp_path):
    config, unbroken = dataclasses.replace(killable[0], output=tmp_path / "killed"), killable[1]
    for n_passes, batch_size in ((0, None), (1, 7), (2, 300)):
        assert (
            run_and_die("sample", dataclasses.replace(config, batch_size=batch_size), n_passes, {}) == -signal.SIGKILL
        )
        assert not (config.output / "samples.npz").exists()
    assert run_and_die("sample", config, 4 - 1 - 2, {}) == 0  # nothing was made twice
    assert read_manifest(config.output).digest == unbroken
    assert not (config.output / "parts").exists()


def test_one_two_or_three_processes_that_die_and_change_write_what_one_writes(killable, tmp_path):
    config, unbroken = dataclasses.replace(killable[0], output=tmp_path / "ranks"), killable[1]
    ranks = {size: [{"RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)] for size in (2, 3)}
    assert run_and_die("sample", config, 1, ranks[2][0]) == -signal.SIGKILL  # of tiles 0 and 1
    assert run_and_die("sample", config, 0, ranks[3][2]) == -signal.SIGKILL  # of tiles 2 and 3
    assert run_and_die("sample", config, 2, ranks[3][2]) == 0
    assert not (config.output / "samples.npz").exists()
    assert run_and_die("sample", config, 1, {}) == 0  # alone: tile 1
    assert read_manifest(config.output).digest == unbroken


@pytest.mark.slow
def test_under_torchrun_three_processes_killed_and_run_again_write_what_one_writes(killable, tmp_path):
    config, unbroken = dataclasses.replace(killable[0], output=tmp_path / "ranks"), killable[1]
    flags = [f"--{name}={getattr(config, name)}" for name in ("checkpoint", "tokenizer", "output", "device")]
    flags += [f"--n-images={config.n_images}"]
    died = torchrun(str(Path(__file__).parent.parent / "killed.py"), "2", "1", "sample", *flags)
    assert died.returncode != 0
    done = torchrun("-m", "codeprior", "sample", *flags)
    assert done.returncode == 0, done.stderr
    assert read_manifest(config.output).digest == unbroken


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", *arguments]
    environment = {**os.environ, "CODEPRIOR_PROGRESS": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def test_a_process_that_is_not_the_last_says_so(tiny, checkpoint, tmp_path, monkeypatch):
    config = settings(tiny, checkpoint, tmp_path / "samples", n_images=100)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert sample(config)["state"] == "done; the last of 2 processes to finish writes the result"
    monkeypatch.setenv("RANK", "0")
    assert sample(config)["n_images"] == 100


def test_a_run_that_dies_as_it_joins_the_images_joins_them_again(tiny, checkpoint, samples, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    config = settings(tiny, checkpoint, tmp_path / "samples")
    monkeypatch.setattr(codeprior.generation.sample, "write_grid", full)
    with pytest.raises(OSError, match="No space"):
        sample(config)
    monkeypatch.undo()
    monkeypatch.setattr(Maker, "images", lambda *_: pytest.fail("images were made twice"))
    sample(config)
    assert read_manifest(tmp_path / "samples").digest == read_manifest(samples[0]).digest


def test_what_the_disk_cannot_hold_is_refused_at_once(tiny, checkpoint, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10**6))
    config = settings(tiny, checkpoint, tmp_path / "samples", n_images=1000)
    with pytest.raises(InputError, match=r"1000 images of 16 x 16 need 0.00154 GB, the disk of .* has 0.001 GB left"):
        sample(config)
    assert not (tmp_path / "samples").exists()


def test_a_complete_run_is_not_done_twice(tiny, checkpoint, samples):
    output, results = samples
    before = (output / "samples.npz").stat().st_mtime_ns
    assert sample(settings(tiny, checkpoint, output)) == results
    assert (output / "samples.npz").stat().st_mtime_ns == before


def test_every_setting_that_matters_gives_other_images(tiny, checkpoint, samples, tmp_path):
    digests = {read_manifest(samples[0]).digest}
    changes = [
        {"seed": 1},
        {"pick": "usage"},
        {"temperature": 0.5},
        {"cfg_schedule": "linear", "cfg_scale": 8.0},
        {"class_order": "random"},
        {"image_size_eval": 12},
    ]
    for number, change in enumerate(changes):
        sample(settings(tiny, checkpoint, tmp_path / str(number), **change))
        digests.add(read_manifest(tmp_path / str(number)).digest)
    assert len(digests) == 1 + len(changes)


def test_png_files_are_the_rows_of_the_npz_also_of_samples_made_before(
    tiny, checkpoint, samples, tmp_path, monkeypatch
):
    shutil.copytree(samples[0], tmp_path / "samples")
    monkeypatch.setattr(Maker, "images", lambda *_: pytest.fail("images were made twice"))
    sample(settings(tiny, checkpoint, tmp_path / "samples", png=True))
    images, _ = load(tmp_path / "samples")
    paths = sorted((tmp_path / "samples/png").iterdir())
    assert [path.name for path in paths] == [f"{number:06d}.png" for number in range(33)]
    assert np.array_equal([np.asarray(Image.open(path)) for path in paths], images)


def test_the_file_has_llamagens_name_too_where_that_is_wanted(tiny, checkpoint, samples, tmp_path):
    shutil.copytree(samples[0], tmp_path / "samples")
    for _ in range(2):
        sample(settings(tiny, checkpoint, tmp_path / "samples", llamagen_name=True))
    rest = "topk-0-topp-1.0-temperature-1.0-cfg-1.5-seed-0"
    name = f"tiny-{checkpoint.name}-size-16-size-16-tokenizer-{rest}.npz"
    assert (tmp_path / "samples" / name).samefile(tmp_path / "samples/samples.npz")


def test_images_are_resized_before_they_are_clamped_and_truncated_as_llamagen_does(tiny, checkpoint, tmp_path):
    maker = Maker.of(settings(tiny, checkpoint, tmp_path / "none", image_size_eval=12), CPU)
    codes = maker.tokens(np.arange(64))
    with torch.inference_mode():
        decoded = maker.tokenizer.decode(codes, (4, 4))
        resized = torch.nn.functional.interpolate(decoded, size=(12, 12), mode="bicubic")
        expected = torch.clamp(127.5 * resized + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    assert np.array_equal(maker.images(np.arange(64)), expected)


def test_the_upper_rows_of_given_images_are_kept(tiny, checkpoint, tmp_path):
    config = settings(
        tiny, checkpoint, tmp_path / "none", prefix_images=str(tiny / "heldout.npz"), prefix_rows=2, n_images=40
    )
    maker = Maker.of(config, CPU)
    heldout = CodeStore.open(tiny / "heldout")
    tokens = maker.tokens(np.arange(40)).numpy()
    assert np.array_equal(tokens[:, :8], np.concatenate([heldout.codes[:, 0, :8]] * 2))
    assert len(np.unique(tokens[:, 8:], axis=0)) == 40  # a second turn of the same image ends otherwise
    assert np.array_equal(maker.conditions.numbers(np.arange(40)), np.concatenate([heldout.labels] * 2))
    other = Maker.of(dataclasses.replace(config, classes=("3",)), CPU)
    assert other.conditions.numbers(np.arange(40)).tolist() == [3] * 40
    sample(config)
    assert "prefix_images" in read_manifest(tmp_path / "none").inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_rows": 4}, "prefix_rows must be below the 4 rows"),
        ({"prefix_images": "nowhere"}, "no images at nowhere"),
        ({"prefix_images": "twelve.npz"}, "images to continue have 12 classes, the checkpoint 10"),
    ],
)
def test_images_that_cannot_be_continued_are_refused(tiny, checkpoint, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    np.savez("twelve.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8), arr_1=[0, 11])
    given = {"prefix_images": str(tiny / "heldout.npz"), **changes}
    with pytest.raises(InputError, match=message):
        sample(settings(tiny, checkpoint, tmp_path / "samples", **given))
    assert not (tmp_path / "samples").exists()


def test_some_classes_take_turns(tiny, checkpoint, tmp_path):
    config = settings(tiny, checkpoint, tmp_path / "samples", classes=("7,3", "1"), n_images=7)
    sample(config)
    assert np.bincount(load(tmp_path / "samples")[1], minlength=10).tolist() == [0, 2, 0, 2, 0, 0, 0, 3, 0, 0]


def test_another_codebooks_tokenizer_is_refused_with_both_digests(tiny, checkpoint, tmp_path):
    other = make_tokenizer(tmp_path / "tokenizer", tiny / "digits.npz", seed=1)
    digests = [short(read_manifest(folder).results["codebook_digest"]) for folder in (tiny / "tokenizer", other)]
    with pytest.raises(InputError) as refusal:
        sample(settings(tiny, checkpoint, tmp_path / "samples", tokenizer=other))
    assert all(digest in str(refusal.value) for digest in digests)
    assert not (tmp_path / "samples").exists()


def test_guidance_without_a_null_class_is_refused(tiny, tmp_path):
    train(TrainConfig(codes=tiny / "codes", output=tmp_path / "gpt", steps=1, class_dropout=0.0, device="cpu"))
    with pytest.raises(InputError, match="--cfg-scale 1"):
        sample(settings(tiny, tmp_path / "gpt", tmp_path / "samples"))
    sample(settings(tiny, tmp_path / "gpt", tmp_path / "samples", cfg_scale=1.0))


def test_sample_through_the_real_parser(tiny, checkpoint, tmp_path, capsys):
    inputs = ["--checkpoint", str(checkpoint), "--tokenizer", str(tiny / "tokenizer")]
    flags = ["--n-images", "12", "--top-k", "5", "--top-p", "0.9", "--temperature", "0.8", "--device", "cpu", "--json"]
    guidance = ["--cfg-scale", "4", "--cfg-schedule", "step", "--cfg-window", "0.18", "1"]
    choice = ["--classes", "0,1,2", "7", "--class-order", "random", "--no-compile", "--precision", "fp32"]
    main(["sample", *inputs, *flags, *guidance, *choice, "--output", str(tmp_path / "samples")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_images"] == 12
    assert set(load(tmp_path / "samples")[1]) <= {0, 1, 2, 7}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "11"], "a class must be between 0 and 9, got 11"),
        (["--classes", "nine"], "no class 'nine' in this checkpoint; give a name or 0 to 9"),
        (["--top-p", "0"], "top_p must be above 0 and at most 1, got 0.0"),
        (["--cfg-window", "0.5", "0.2"], "cfg_window must be two shares in order, 0 to 1, got 0.5 0.2"),
        (["--cfg-scale", "inf"], "cfg_scale must be finite, got inf"),
        (["--n-images", "0"], "n_images must be positive, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(tiny, checkpoint, tmp_path, capsys, flags, message):
    inputs = ["--checkpoint", str(checkpoint), "--tokenizer", str(tiny / "tokenizer"), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main(["sample", *inputs, "--output", str(tmp_path / "samples"), *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"codeprior sample: {message}")
    assert not (tmp_path / "samples").exists()


def test_a_tokenizer_in_place_of_a_checkpoint_is_one_line_and_exit_code_2(tiny, tmp_path, capsys):
    folder = str(tiny / "tokenizer")
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--checkpoint", folder, "--tokenizer", folder, "--output", str(tmp_path / "samples")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().endswith("holds a tokenizer, not a checkpoint")
