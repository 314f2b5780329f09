"""Training a tokenizer: it learns, it keeps its codes alive, and a killed run ends as an unbroken one."""

import json
import math

import numpy as np
import pytest
import torch

from codeprior.artifact import read_manifest
from codeprior.codebook import Codebook
from codeprior.config import TrainTokenizerConfig
from codeprior.errors import InputError
from codeprior.images import open_images
from codeprior.pixels import to_pixels, to_tensor
from codeprior.tokenizers import load_tokenizer
from codeprior.tokenizers.training import (
    Batches,
    Trainer,
    edge_loss,
    learning_rate,
    psnr_db,
    straight_through,
    train_tokenizer,
)
from codeprior.tokenizers.vqgan import preset


def config_for(output, **settings):
    return TrainTokenizerConfig(**{"data": "digits:heldout", "output": output, "device": "cpu", **settings})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = config_for(
        tmp_path_factory.mktemp("tokenizer"), steps=60, codebook_size=64, batch_size=32, restart_every=10
    )
    return config, train_tokenizer(config)


def test_sixty_steps_on_digits_are_better_than_the_mean_image(trained):
    _, results = trained
    pixels = open_images("digits:heldout").read_many(range(297), 16)
    mean_image = np.broadcast_to(pixels.mean(axis=0).astype(np.uint8), pixels.shape)
    assert results["train_psnr_db"] > psnr_db(pixels, mean_image).mean() + 1
    assert results["codes_used"] > 32


def test_the_folder_is_all_that_a_tokenizer_needs(trained):
    config, results = trained
    tokenizer = load_tokenizer(config.output)
    assert tokenizer.image_size == 16
    assert tokenizer.grid(16) == (4, 4)
    assert tokenizer.digest == read_manifest(config.output).digest
    assert tokenizer.codebook.digest == results["codebook_digest"] == Codebook.load(config.output).digest
    assert tokenizer.codebook.normalize
    pixels = open_images("digits:heldout").read_many(range(64), 16)
    codes = tokenizer.encode(to_tensor(pixels))
    assert codes.shape == (64, 16)
    assert codes.dtype == torch.int64
    decoded = to_pixels(tokenizer.decode(codes, (4, 4)))
    assert decoded.shape == pixels.shape
    assert psnr_db(pixels, decoded).mean() == pytest.approx(results["train_psnr_db"], abs=1.5)


def test_a_finished_run_is_not_done_again(trained):
    config, results = trained
    before = (config.output / "model.safetensors").stat().st_mtime_ns
    assert train_tokenizer(config) == results
    assert (config.output / "model.safetensors").stat().st_mtime_ns == before
    assert not (config.output / "checkpoint.safetensors").exists()


def test_other_settings_are_refused_in_the_same_folder(trained):
    config, _ = trained
    with pytest.raises(InputError, match=r"made with other settings .*steps: 60, now 61"):
        train_tokenizer(config_for(config.output, steps=61, codebook_size=64, batch_size=32, restart_every=10))


def without_times(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time_s", "images_per_s")} for line in lines]


def test_five_steps_a_kill_and_five_more_equal_ten_bit_for_bit(tmp_path, monkeypatch):
    settings = {"steps": 10, "codebook_size": 64, "batch_size": 8, "restart_every": 3, "checkpoint_every": 5}
    train_tokenizer(config_for(tmp_path / "unbroken", **settings))
    advance = Trainer.advance

    def killed_after_seven(trainer, images):
        if trainer.step == 7:
            raise KeyboardInterrupt
        return advance(trainer, images)

    monkeypatch.setattr(Trainer, "advance", killed_after_seven)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(config_for(tmp_path / "killed", **settings))
    with pytest.raises(InputError, match="is unfinished"):
        load_tokenizer(tmp_path / "killed")
    monkeypatch.setattr(Trainer, "advance", advance)
    train_tokenizer(config_for(tmp_path / "killed", **settings))
    unbroken, killed = read_manifest(tmp_path / "unbroken"), read_manifest(tmp_path / "killed")
    assert unbroken.files == killed.files
    assert without_times(unbroken.path("metrics.jsonl")) == without_times(killed.path("metrics.jsonl"))


def test_a_line_logged_after_the_last_checkpoint_is_logged_once(tmp_path, monkeypatch):
    settings = {"steps": 50, "codebook_size": 16, "batch_size": 2, "checkpoint_every": 30}
    advance = Trainer.advance

    def killed_after_forty_one(trainer, images):
        if trainer.step == 41:
            raise KeyboardInterrupt
        return advance(trainer, images)

    monkeypatch.setattr(Trainer, "advance", killed_after_forty_one)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(config_for(tmp_path / "a", **settings))
    monkeypatch.setattr(Trainer, "advance", advance)
    train_tokenizer(config_for(tmp_path / "a", **settings))
    assert [line["step"] for line in without_times(tmp_path / "a" / "metrics.jsonl")] == [20, 40, 50]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of 4, got 18"),
        ({"tokenizer": "VQ-5"}, "must be one of VQ-16, VQ-8, VQ-4-tiny"),
        ({"data": "nowhere"}, "no images at nowhere"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        train_tokenizer(config_for(tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_dead_codes_move_to_encoder_outputs_and_live_ones_stay(tmp_path):
    config = config_for(tmp_path, codebook_size=64, batch_size=8)
    trainer = Trainer(config, preset("VQ-4-tiny", 64, 8), torch.device("cpu"))
    images = to_tensor(Batches(config, open_images("digits:heldout"))[0])
    trainer.advance(images)  # gives the optimizer its moments
    weight = trainer.model.quantize.embedding.weight
    before = weight.detach().clone()
    dead = torch.arange(64) % 3 == 0
    trainer.uses.copy_(~dead)
    features = torch.nn.functional.normalize(torch.randn(8, 8, 4, 4), dim=1)
    trainer._restart_dead_codes(features)
    assert torch.equal(weight[~dead], before[~dead])
    flat = features.permute(0, 2, 3, 1).reshape(-1, 8)
    assert (torch.cdist(weight[dead].detach(), flat).min(dim=1).values < 1e-3).all()
    assert not trainer.uses.any()
    assert not trainer.optimizer.state[weight]["exp_avg"][dead].any()


def test_the_first_codes_are_outputs_of_the_autoencoder_trained_before(tmp_path):
    config = config_for(tmp_path, codebook_size=16, batch_size=8, steps=20, unquantized=0.1)
    trainer = Trainer(config, preset("VQ-4-tiny", 16, 8), torch.device("cpu"))
    batches = Batches(config, open_images("digits:heldout"))
    before = trainer.model.quantize.embedding.weight.detach().clone()
    for step in range(2):
        losses = trainer.advance(to_tensor(batches[step]))
        assert losses["codebook"] == losses["commitment"] == 0
    assert torch.equal(trainer.model.quantize.embedding.weight, before)
    assert trainer.advance(to_tensor(batches[2]))["commitment"] > 0
    assert not torch.isclose(trainer.model.quantize.embedding.weight, before).all(dim=1).any()


def test_every_image_is_seen_once_an_epoch_and_a_step_can_be_repeated(tmp_path):
    images = open_images("digits:heldout")
    config = config_for(tmp_path, batch_size=27, views="centre")
    batches = Batches(config, images)
    epoch = np.concatenate([batches[step] for step in range(11, 22)])  # the second one: 11 x 27 = 297
    sums = sorted(epoch.sum(axis=(1, 2, 3), dtype=np.int64))
    assert sums == sorted(images.read_many(range(297), 16).sum(axis=(1, 2, 3), dtype=np.int64))
    assert np.array_equal(Batches(config, images)[13], batches[13])


def test_the_learning_rate_warms_up_and_ends_at_zero(tmp_path):
    config = config_for(tmp_path, steps=100, warmup=9, lr=1.0)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1, abs=0.03)
    assert rates[100] == pytest.approx(0)


def test_pixels_survive_the_way_to_a_tensor_and_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(pixels)
    assert tensor.min() == -1
    assert tensor.max() == 1
    assert np.array_equal(to_pixels(tensor), pixels)
    assert np.array_equal(to_pixels(2 * tensor)[0, [0, -1], [0, -1]], [[0, 0, 0], [255, 255, 255]])


def test_the_straight_through_gradient_ignores_the_rounding():
    features = torch.randn(2, 8, requires_grad=True)
    vectors = torch.randn(2, 8)
    out = straight_through(features, vectors)
    torch.testing.assert_close(out, vectors)
    out.sum().backward()
    assert torch.equal(features.grad, torch.ones(2, 8))


def test_the_edge_loss_sees_differences_between_neighbours_only():
    images = torch.rand(1, 3, 4, 4)
    assert edge_loss(images + 0.5, images).item() == pytest.approx(0, abs=1e-6)
    step = torch.zeros(1, 1, 2, 4)
    step[..., 2:] = 3
    assert edge_loss(step, torch.zeros(1, 1, 2, 4)).item() == pytest.approx(1)  # one of three columns differs, by 3


def test_psnr_of_an_error_of_one_level_is_48_db():
    dark = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr_db(dark, dark + np.uint8(1)) == pytest.approx([20 * math.log10(255)] * 2)


# -- damaged folders --


def copy_of(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "copy")


def test_truncated_weights_are_refused(trained, tmp_path):
    folder = copy_of(trained[0].output, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"model\.safetensors has \d+ bytes, \d+ were written"):
        load_tokenizer(folder)


def test_weights_of_another_architecture_are_refused_by_name(trained):
    from codeprior.tensors import load_strictly, read_tensors
    from codeprior.tokenizers.vqgan import VQGAN

    weights, _ = read_tensors(trained[0].output / "model.safetensors")
    with torch.device("meta"):
        deeper, wider = VQGAN(preset("VQ-8")), VQGAN(preset("VQ-4-tiny", 65))
    with pytest.raises(InputError, match=r"missing: .*attn.* and \d+ more; unexpected: .*nin_shortcut"):
        load_strictly(deeper, weights, "the file", assign=True)
    with pytest.raises(InputError, match=r"of another shape: quantize\.embedding\.weight"):
        load_strictly(wider, weights, "the file", assign=True)
