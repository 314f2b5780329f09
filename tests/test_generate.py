import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import chisquare

import codeprior.generate
from codeprior.artifact import read_manifest, short
from codeprior.cli import main
from codeprior.config import SampleConfig, TrainConfig
from codeprior.errors import InputError
from codeprior.generate import (
    Decoding,
    classes_of,
    decode_one_token,
    generate,
    logits_to_probs,
    prefill,
    sample,
    sample_tokens,
    uniforms_of,
)
from codeprior.model import KVCache, ModelConfig, Transformer
from codeprior.train import train
from tiny import make_tokenizer

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "llamagen_c2i_tiny_io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def original() -> Transformer:
    config = ModelConfig(dim=64, n_layers=2, n_heads=4, vocab_size=128, n_classes=10, grid=(4, 4), ffn_multiple=32)
    model = Transformer(config)
    model.load_state_dict(load_file(GOLDEN / "llamagen_c2i_tiny.safetensors"))
    return model.eval()


@pytest.mark.parametrize(("scale", "interval"), [(1.0, -1), (1.5, -1), (4.0, -1), (4.0, 5)])
def test_greedy_decoding_is_llamagens(original, recorded, scale, interval):
    name = f"greedy_cfg_{scale}" + (f"_interval_{interval}" if interval >= 0 else "")
    decoding = Decoding(cfg_scale=scale, cfg_interval=interval, top_k=1)
    tokens = generate(original, recorded["classes"], torch.zeros(3, 16, dtype=torch.float64), decoding)
    assert torch.equal(tokens, recorded[name])


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (20, 1.0, 0.7), (0, 0.8, 1.0), (50, 0.9, 1.3)]
)
def test_filtered_probabilities_are_llamagens(recorded, top_k, top_p, temperature):
    decoding = Decoding(top_k=top_k, top_p=top_p, temperature=temperature)
    probs = logits_to_probs(recorded["teacher_forced_logits"][:, 0], decoding)
    expected = recorded[f"probs_topk{top_k}_topp{top_p}_temp{temperature}"]
    torch.testing.assert_close(probs, expected, rtol=1e-5, atol=1e-7)  # float32 softmax, other vector widths
    assert torch.equal(probs > 0, expected > 0)


def test_top_k_keeps_ties():
    probs = logits_to_probs(torch.tensor([[3.0, 1.0, 1.0, 0.0]]), Decoding(top_k=2))
    assert (probs > 0).tolist() == [[True, True, True, False]]


def test_top_k_may_exceed_the_vocabulary():
    logits = torch.tensor([[3.0, 1.0]])
    torch.testing.assert_close(logits_to_probs(logits, Decoding(top_k=2000)), logits.softmax(-1))


def test_top_p_keeps_the_token_that_crosses_it():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert (logits_to_probs(logits, Decoding(top_p=0.6)) > 0).tolist() == [[True, True, False]]
    assert (logits_to_probs(logits, Decoding(top_p=1e-9)) > 0).tolist() == [[True, False, False]]


def test_cached_decoding_equals_the_full_forward(original, recorded):
    classes, tokens = recorded["classes"], recorded["tokens"]
    cache = KVCache(original.config, 3, device=classes.device, dtype=torch.float32)
    with torch.inference_mode():
        steps = [prefill(original, classes, cache)]
        steps += [decode_one_token(original, tokens[:, t], cache) for t in range(15)]
        full = original(classes, tokens[:, :-1])
    # 1e-5: the same sums in another order
    torch.testing.assert_close(torch.stack(steps, dim=1), full, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="one position"):
        original.logits(original.embed(classes, tokens[:, :1]), cache)


def test_sampling_follows_the_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.0, 0.1, 0.025, 0.0])
    uniforms = torch.from_numpy(uniforms_of(11, np.arange(20000), ()))
    counts = torch.bincount(sample_tokens(probs.expand(20000, -1), uniforms), minlength=8).numpy()
    assert not counts[[1, 4, 7]].any()
    live = probs.numpy() > 0
    assert chisquare(counts[live], probs.double().numpy()[live] / probs.double().sum().item() * 20000).pvalue > 1e-3


def test_a_token_of_probability_zero_is_never_drawn():
    probs = torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]]).expand(2, -1)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert sample_tokens(probs, ends).tolist() == [1, 3]


def test_random_numbers_belong_to_seed_and_index():
    together = uniforms_of(5, np.arange(10), (2, 3))
    assert np.array_equal(together[7:9], uniforms_of(5, np.array([7, 8]), (2, 3)))
    assert len(np.unique(together)) == together.size
    assert not np.array_equal(together, uniforms_of(6, np.arange(10), (2, 3)))


def test_classes_have_equal_shares():
    assert np.bincount(classes_of(np.arange(20), 10)).tolist() == [2] * 10
    assert np.bincount(classes_of(np.arange(23), 10)).tolist() == [3, 3, 3] + [2] * 7


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """A transformer that saw clusters for a few steps."""
    output = tmp_path_factory.mktemp("checkpoint") / "gpt"
    prior = tiny / "prior.safetensors"
    train(TrainConfig(codes=tiny / "codes", prior=prior, output=output, steps=10, batch_size=16, device="cpu"))
    return output


def settings(tiny, checkpoint, output, **changes) -> SampleConfig:
    given = {"checkpoint": checkpoint, "tokenizer": tiny / "tokenizer", "output": output, "device": "cpu"}
    return SampleConfig(**{**given, "n_images": 33, "batch_size": 10, **changes})


@pytest.fixture(scope="module")
def samples(tiny, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("samples") / "samples"
    return output, sample(settings(tiny, checkpoint, output))


def test_samples_are_images_with_labels_in_random_order(samples):
    output, results = samples
    with np.load(output / "samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert (images.shape, images.dtype) == ((33, 16, 16, 3), np.uint8)
    assert np.bincount(labels).tolist() == [4, 4, 4] + [3] * 7
    assert (np.diff(labels) < 0).sum() > 5
    assert len(np.unique(images.reshape(33, -1), axis=0)) == 33
    assert results["n_images"] == 33
    assert results["cfg_scale"] == 1.5
    with Image.open(output / "grid.png") as grid:
        assert grid.height > 10 * 16
    assert not (output / "parts").exists()


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "samples.npz") as arrays:
        return arrays["arr_0"].astype(int), arrays["arr_1"]


@pytest.mark.parametrize("batch_size", [7, 33, 100])
def test_samples_do_not_depend_on_the_batch_size(tiny, checkpoint, samples, tmp_path, batch_size):
    sample(settings(tiny, checkpoint, tmp_path / "samples", batch_size=batch_size))
    images, labels = load(tmp_path / "samples")
    expected_images, expected_labels = load(samples[0])
    assert np.array_equal(labels, expected_labels)
    # Equal on the machine that this was written on; where products round otherwise, a pixel may move by one level,
    # and a draw that lies within 1e-6 of the border between two tokens may fall on its other side.
    same = (abs(images - expected_images) <= 1).all(axis=(1, 2, 3))
    assert same.sum() >= 32


def test_a_killed_run_continues_to_the_same_file(tiny, checkpoint, samples, tmp_path, monkeypatch):
    def dying(images, *pixel_range):
        if len(list((tmp_path / "samples/parts").iterdir())) == 2:
            raise KeyboardInterrupt
        return to_pixels(images, *pixel_range)

    to_pixels = codeprior.generate.to_pixels
    config = settings(tiny, checkpoint, tmp_path / "samples")
    monkeypatch.setattr(codeprior.generate, "to_pixels", dying)
    with pytest.raises(KeyboardInterrupt):
        sample(config)
    monkeypatch.undo()
    sample(config)
    assert read_manifest(tmp_path / "samples").digest == read_manifest(samples[0]).digest


def test_a_killed_run_may_continue_with_another_batch_size(samples, tmp_path):
    images, _ = load(samples[0])
    first = codeprior.generate._Parts(tmp_path)
    for part in np.split(images.astype(np.uint8), [10, 17]):
        first.append(part)
    again = codeprior.generate._Parts(tmp_path)
    assert len(again) == 33
    assert np.array_equal(again.take(np.array([32, 0, 16])), images[[32, 0, 16]])


def test_a_complete_run_is_not_done_twice(tiny, checkpoint, samples):
    output, results = samples
    before = (output / "samples.npz").stat().st_mtime_ns
    assert sample(settings(tiny, checkpoint, output)) == results
    assert (output / "samples.npz").stat().st_mtime_ns == before


def test_another_seed_and_pick_by_usage_give_other_images(tiny, checkpoint, samples, tmp_path):
    digests = {read_manifest(samples[0]).digest}
    for name, changes in {"seed": {"seed": 1}, "pick": {"pick": "usage"}}.items():
        sample(settings(tiny, checkpoint, tmp_path / name, **changes))
        digests.add(read_manifest(tmp_path / name).digest)
    assert len(digests) == 3


def test_fewer_images_than_classes_make_a_grid(tiny, checkpoint, tmp_path):
    sample(settings(tiny, checkpoint, tmp_path / "samples", n_images=3))
    assert (tmp_path / "samples/grid.png").exists()


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
    main(["sample", *inputs, *flags, "--output", str(tmp_path / "samples")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_images"] == 12


def test_a_tokenizer_in_place_of_a_checkpoint_is_one_line_and_exit_code_2(tiny, tmp_path, capsys):
    folder = str(tiny / "tokenizer")
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--checkpoint", folder, "--tokenizer", folder, "--output", str(tmp_path / "samples")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().endswith("holds a tokenizer, not a checkpoint")
