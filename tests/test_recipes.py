"""The recipes that come along set what the papers' authors set."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import codeprior
from codeprior.cli import main, parse
from codeprior.model import model_config

RECIPES = sorted((Path(codeprior.__file__).parent / "recipes").glob("*.yaml"))
SIZES, KINDS = ("B", "L", "XL"), ("token", "kmeans", "dcpe", "iar", "iar-dcpe", "factorised")
REFINE = {"GPT-B-refine": 1} | {f"GPT-B-refine-{n}": n for n in (3, 6, 9, 12)}
LLAMAGEN = {
    "batch_size": 256,
    "warmup": 0,
    "decay": 0.0,
    "weight_decay": 0.05,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "dropout": 0.1,
    "token_dropout": 0.1,
    "drop_path": 0.0,
    "class_dropout": 0.1,
    "ema_decay": 0.0,
    "precision": "bf16",
}


def test_there_is_a_recipe_for_each_size_and_method():
    assert {path.stem for path in RECIPES} == {f"GPT-{size}-{kind}" for size in SIZES for kind in KINDS} | {*REFINE}


def resolved(name: str, capsys: pytest.CaptureFixture[str], *inputs: str) -> dict[str, Any]:
    """What --dry-run says that a recipe sets."""
    main(["train", "--config", name, "--codes", "codes", *inputs, "--output", "out", "--dry-run"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_sets_what_the_originals_set(size, kind, capsys):
    said = resolved(f"GPT-{size}-{kind}", capsys, *([] if kind == "token" else ["--prior", "prior.safetensors"]))
    assert {name: said[name] for name in LLAMAGEN} == LLAMAGEN
    assert said["steps"] == 300 * 5004
    assert said["lr"] == (2e-4 if size == "XL" and "iar" not in kind else 1e-4)
    objectives = {"token": "token", "kmeans": "cluster", "dcpe": "cluster", "factorised": "factorised"}
    assert said["objective"] == objectives.get(kind, "iar")
    if said["objective"] == "iar":
        assert (said["iar_weight"], said["iar_form"]) == (1.0, "mean" if kind == "iar-dcpe" else "logsumexp")
    assert model_config(said["model"], vocab_size=16384, n_classes=1000, grid=(16, 16)).dim in (768, 1024, 1280)


@pytest.mark.parametrize(("name", "n_layers"), REFINE.items())
def test_a_second_stage_is_trained_as_the_first_for_a_third_of_the_epochs(name, n_layers, capsys):
    said = resolved(name, capsys, "--prior", "prior.safetensors")
    assert {name: said[name] for name in LLAMAGEN} == LLAMAGEN
    assert (said["steps"], said["lr"]) == (100 * 5004, 1e-4)
    assert (said["objective"], said["refine_over"], said["model"]) == ("refine", "vocabulary", "GPT-B")
    assert said["n_layers"] == n_layers


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_commands_in_a_recipe_parse(path):
    commands = [line.removeprefix("#   codeprior ").split() for line in path.read_text().splitlines() if "#   " in line]
    assert ["train", "--config", path.stem] in [argv[:3] for argv in commands]
    for argv in commands:
        parse(argv[0], argv[1:])


def test_a_misspelt_recipe_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "GPT-B-dpce", "--codes", "codes", "--output", "out"])
    assert stop.value.code == 2
    assert "perhaps you meant GPT-B-dcpe" in capsys.readouterr().err
