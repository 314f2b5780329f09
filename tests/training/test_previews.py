"""Pictures on the way: of what `sample` would make, and without a trace in the run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import crew
from codeprior.config import SampleConfig, TrainConfig
from codeprior.errors import InputError
from codeprior.generation.sample import sample
from codeprior.training.loop import train
from codeprior.training.previews import Previews
from crew import Fate
from tiny import make_tokenizer


def settings(tiny, output, **changes) -> TrainConfig:
    given = {"codes": tiny / "codes", "output": output, "device": "cpu", "steps": 8, "batch_size": 8}
    return TrainConfig(**{**given, "precision": "fp32", **changes})


def with_pictures(tiny) -> dict:
    return {"sample_every": 3, "tokenizer": tiny / "tokenizer"}


def pictures(folder) -> list[str]:
    return sorted(path.name for path in (folder / "previews").iterdir())


@pytest.fixture
def drawn(monkeypatch) -> list[np.ndarray]:
    """What pictures are made of, in their order."""
    images, draw = [], Previews.draw

    def watched(self, checkpoint, step):
        images.append(draw(self, checkpoint, step))
        return images[-1]

    monkeypatch.setattr(Previews, "draw", watched)
    return images


def test_a_run_with_pictures_is_the_run_without(tiny, tmp_path):
    train(settings(tiny, tmp_path / "without", ema_decay=0.5))
    train(settings(tiny, tmp_path / "with", ema_decay=0.5, **with_pictures(tiny)))
    for name in ("model.safetensors", "ema.safetensors", "config.json"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert pictures(tmp_path / "with") == ["00000003.png", "00000006.png", "00000008.png"]
    assert not (tmp_path / "without" / "previews").exists()


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("objective", ["token", "cluster", "factorised"])
def test_the_last_picture_shows_what_sample_makes_of_the_checkpoint(tiny, tmp_path, drawn, average, objective):
    given = {} if objective == "token" else {"objective": objective, "prior": tiny / "prior.safetensors"}
    decay = {"ema_decay": 0.5} if average else {}
    train(settings(tiny, tmp_path / "gpt", lr=1e-2, cfg_scale=2.0, **with_pictures(tiny), **given, **decay))
    classes = tuple(map(str, np.linspace(0, 9, 8).astype(int)))
    config = SampleConfig(checkpoint=tmp_path / "gpt", tokenizer=tiny / "tokenizer", output=tmp_path / "s", ema=average)
    sample(replace(config, n_images=64, classes=classes, cfg_scale=2.0, device="cpu", precision="fp32"))
    with np.load(tmp_path / "s" / "samples.npz") as arrays:  # in an order of its own
        expected = sorted(image.tobytes() for image in arrays["arr_0"])
    assert sorted(image.tobytes() for image in drawn[-1]) == expected
    assert not np.array_equal(drawn[0], drawn[-1])


def test_a_second_stage_is_shown_on_images(tiny, tmp_path, drawn):
    train(settings(tiny, tmp_path / "gpt", objective="refine", prior=tiny / "prior.safetensors", **with_pictures(tiny)))
    images, picked, refined = drawn[-1].reshape(3, 8, *drawn[-1].shape[1:])
    assert not np.array_equal(images, picked)
    assert not np.array_equal(picked, refined)
    with Image.open(tmp_path / "gpt" / "previews" / "00000008.png") as picture:
        assert picture.width > 8 * 64


@pytest.mark.parametrize("more", [[], ["--shard"]], ids=["parallel", "sharded"])
def test_several_processes_draw_one_picture_and_go_on_as_they_were(tiny, tmp_path, more):
    flags = [f"--codes={tiny / 'codes'}", "--device=cpu", "--steps=4", "--batch-size=8", "--precision=fp32", *more]
    extra = ["--sample-every=2", f"--tokenizer={tiny / 'tokenizer'}"]
    assert crew.train([*flags, f"--output={tmp_path / 'without'}"], 2) == [0, 0]
    assert crew.train([*flags, *extra, f"--output={tmp_path / 'with'}"], 2) == [0, 0]
    name = "model.safetensors"
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert pictures(tmp_path / "with") == ["00000002.png", "00000004.png"]


def test_a_picture_that_a_kill_prevented_is_drawn_when_the_run_goes_on(tiny, tmp_path):
    flags = [f"--codes={tiny / 'codes'}", f"--output={tmp_path / 'gpt'}", "--device=cpu", "--steps=6", "--batch-size=8"]
    flags += ["--checkpoint-every=2", "--sample-every=2", f"--tokenizer={tiny / 'tokenizer'}"]
    assert crew.train(flags, fate=Fate(killed_in_write=(2, 0.5))) == [-9]
    (tmp_path / "gpt" / "previews" / "00000004.png").unlink()
    assert crew.train(flags) == [0]
    assert pictures(tmp_path / "gpt") == ["00000002.png", "00000004.png", "00000006.png"]


def test_trackers_get_them_too(tiny, tmp_path):
    train(settings(tiny, tmp_path / "gpt", log_with=("tensorboard",), **with_pictures(tiny)))
    told = EventAccumulator(str(tmp_path / "gpt" / "codeprior")).Reload()
    assert [image.step for image in told.Images("samples")] == [3, 6, 8]
    lines = [json.loads(line) for line in (tmp_path / "gpt" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train_nats_per_token" in line]
    for name in ("train_nats_per_token", "lr", "grad_norm", "tokens_per_s"):
        scalars = told.Scalars(name)
        assert [scalar.step for scalar in scalars] == [line["step"] for line in logged]
        assert [scalar.value for scalar in scalars] == pytest.approx([line[name] for line in logged], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample_every": 3}, "sample_every and tokenizer go together"),
        ({"sample_every": -1}, r"sample_every must be 0 \(never\) or more, got -1"),
        ({"sample_every": 3, "tokenizer": "t", "class_dropout": 0.0}, "give --cfg-scale 1"),
    ],
)
def test_pictures_that_cannot_be_are_refused(tiny, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        settings(tiny, tmp_path / "gpt", **changes)


def test_a_tokenizer_of_other_codes_is_refused_before_the_first_step(tiny, tmp_path):
    stranger = make_tokenizer(tmp_path / "tokenizer", tiny / "digits.npz", seed=1)
    with pytest.raises(InputError, match=r"trained on codes of codebook .*, the tokenizer has codebook"):
        train(settings(tiny, tmp_path / "gpt", sample_every=3, tokenizer=stranger))
    assert not (tmp_path / "gpt").exists()
