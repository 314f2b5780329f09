from dataclasses import replace

import numpy as np
import pytest
import torch

from codeprior.cli import main
from codeprior.config import ExtractConfig, SampleConfig, TrainConfig
from codeprior.errors import InputError
from codeprior.extract import extract
from codeprior.generation.refine import refine
from codeprior.generation.sample import sample
from codeprior.model import Transformer, model_config
from codeprior.training.loop import train

LABELS = torch.tensor([0, 2, 2, 1, 2, 0, 2, 2])
LIVE = torch.arange(8) != 5


@pytest.fixture
def model() -> Transformer:
    config = model_config("tiny", vocab_size=3, output_size=8, causal=False, n_classes=2, grid=(10, 10), n_layers=1)
    model = Transformer(config, torch.Generator().manual_seed(0)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


def drawn(model: Transformer, temperature: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.randint(3, (40, 100), generator=generator)
    uniforms = torch.rand(40, 100, generator=generator, dtype=torch.float64)
    classes = torch.arange(40) % 2
    return clusters, refine(model, classes, clusters, uniforms, LABELS, LIVE, temperature)


def expected_probs(model: Transformer, clusters: torch.Tensor, temperature: float) -> torch.Tensor:
    with torch.inference_mode():
        logits = model(torch.arange(40) % 2, clusters) / temperature
    return logits.masked_fill((LABELS != clusters[..., None]) | ~LIVE, -torch.inf).softmax(-1)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_every_token_is_a_live_one_of_its_cluster(model, temperature):
    clusters, tokens = drawn(model, temperature)
    assert torch.equal(LABELS[tokens], clusters)
    assert LIVE[tokens].all()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_by_the_models_probabilities_among_members(model, temperature):
    clusters, tokens = drawn(model, temperature)
    probs = expected_probs(model, clusters, temperature).double()
    counts = torch.nn.functional.one_hot(tokens, 8).double().sum((0, 1))
    deviation = (probs * (1 - probs)).sum((0, 1)).sqrt().clamp(min=1e-9)
    assert ((counts - probs.sum((0, 1))).abs() < 5 * deviation + 1e-3).all()


def test_temperature_0_takes_the_likeliest(model):
    clusters, tokens = drawn(model, 0.0)
    assert torch.equal(tokens, expected_probs(model, clusters, 1.0).argmax(-1))


def test_positions_in_parts_give_the_same_tokens(model, monkeypatch):
    _, whole = drawn(model, 1.0)
    monkeypatch.setattr("codeprior.generation.refine.LOGITS_AT_ONCE", 8 * 37)
    assert torch.equal(drawn(model, 1.0)[1], whole)


@pytest.fixture(scope="module")
def stages(tiny, tmp_path_factory):
    """A first and a second stage on one prior, a second on another prior, a model of tokens."""
    folder = tmp_path_factory.mktemp("stages")
    other = folder / "other.safetensors"
    extract(ExtractConfig(codebook=tiny / "tokenizer", output=other, n_clusters=8))
    common = {"codes": tiny / "codes", "steps": 2, "batch_size": 8, "device": "cpu"}
    priors = {
        "cluster": tiny / "prior.safetensors",
        "refine": tiny / "prior.safetensors",
        "other": other,
        "token": None,
    }
    for name, prior in priors.items():
        objective = "refine" if name == "other" else name
        train(TrainConfig(**common, prior=prior, objective=objective, output=folder / name))
    return folder


def settings(tiny, stages, output, **names) -> SampleConfig:
    checkpoints = {name: stages / folder for name, folder in names.items()}
    return SampleConfig(**checkpoints, tokenizer=tiny / "tokenizer", output=output, n_images=10, device="cpu")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"checkpoint": "refine"}, "give it as --refine"),
        ({"checkpoint": "cluster", "refine": "token"}, "--refine wants a checkpoint of --objective refine"),
        (
            {"checkpoint": "token", "refine": "refine"},
            "--objective cluster, got one of token",
        ),
        ({"checkpoint": "cluster", "refine": "other"}, "another prior .* 8 clusters, .* 16"),
    ],
)
def test_stages_that_do_not_fit_are_refused(tiny, stages, tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        sample(settings(tiny, stages, tmp_path / "samples", **names))
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"checkpoint": "token"}, "but token predicts tokens; leave it out"),
        ({"checkpoint": "cluster", "refine": "refine"}, "but --refine chooses it; leave it out"),
    ],
)
def test_a_pick_without_anything_to_pick_from_is_refused(tiny, stages, tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        sample(replace(settings(tiny, stages, tmp_path / "samples", **names), pick="usage"))
    assert not (tmp_path / "samples").exists()


def test_refining_through_the_real_parser_gives_other_images_than_picking(tiny, stages, tmp_path, capsys):
    inputs = ["--checkpoint", str(stages / "cluster"), "--tokenizer", str(tiny / "tokenizer"), "--n-images", "10"]
    for name, flags in {"picked": [], "refined": ["--refine", str(stages / "refine")]}.items():
        main(["sample", *inputs, *flags, "--device", "cpu", "--output", str(tmp_path / name)])
    images = [np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("picked", "refined")]
    assert not np.array_equal(*images)
