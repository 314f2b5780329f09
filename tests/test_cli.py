"""The command line through its real parser: help, recipes, and mistakes that are said in one line."""

import json

import numpy as np
import pytest
import yaml

from codeprior import CodebookPrior
from codeprior.cli import VERBS, main, parse


@pytest.fixture
def codebook_file(tmp_path):
    np.save(tmp_path / "codebook.npy", np.random.default_rng(2).standard_normal((32, 4)))
    return tmp_path / "codebook.npy"


def exit_line(capsys, *argv):
    """Exit code and the last line on standard error."""
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return stop.value.code, said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for flag in ("--seed", "--device", "--config", "--dry-run", "--json"):
        assert flag in text


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_the_overview_names_every_verb(argv, capsys):
    main(argv)
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


def test_extract_through_the_real_parser(codebook_file, capsys):
    output = codebook_file.parent / "prior.safetensors"
    main(["extract", str(codebook_file), "--n-clusters", "8", "--output", str(output), "--normalize", "--json"])
    assert CodebookPrior.load(output).n_clusters == 8
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["n_clusters"] == 8
    assert result["normalized"] is True


def test_dry_run_prints_a_recipe_that_gives_the_same_settings(tmp_path, capsys):
    argv = [
        "extract",
        "book.npy",
        "--n-clusters",
        "0.25",
        "--output",
        "p.safetensors",
        "--no-tree",
        "--compare",
        "ward",
    ]
    main([*argv, "--dry-run"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(capsys.readouterr().out)
    again = parse("extract", ["--config", str(recipe)])
    assert {**vars(again), "config": None} == vars(parse("extract", argv[1:]))


def test_flags_win_over_the_recipe_and_underscores_are_dashes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"codes": "a", "output": "b", "lr": "3e-4", "weight-decay": 0.1, "steps": 5}))
    config = parse("train", [f"--config={recipe}", "--steps", "7", "--weight_decay", "0.2"])
    assert (config.lr, config.steps, config.weight_decay, str(config.codes)) == (3e-4, 7, 0.2, "a")


def test_a_positional_argument_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("codebook: theirs.npy\noutput: p.safetensors\nnormalize: false\n")
    config = parse("extract", ["mine.npy", "--config", str(recipe), "--normalize", "--compare", "ward", "kmeans"])
    assert (str(config.codebook), config.normalize, config.compare) == ("mine.npy", True, ("ward", "kmeans"))
    assert parse("extract", ["--config", str(recipe), "--tree"]).normalize is False


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["extrct"], "no verb 'extrct'; perhaps you meant 'extract'"),
        (["extract"], "missing: PATH, --output PATH"),
        (["extract", "a.npy", "--output", "b", "--n-clusters", "many"], "--n-clusters"),
        (["extract", "a.npy", "--output", "b", "--n-clusterz", "3"], "--n-clusterz"),
        (["extract", "nowhere.npy", "--output", "b.safetensors"], "no such file: nowhere.npy"),
        (["train", "--codes", "a", "--output", "b", "--steps", "0"], "steps must be positive, got 0"),
        (["train", "--config", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["sample", "--checkpoint", "a", "--tokenizer", "b", "--output", "c", "--top-p", "0"], "top_p must be above 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, line = exit_line(capsys, *argv)
    assert code == 2
    assert said in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lrr: 1", "sets 'lrr', unknown here; perhaps you meant 'lr'"),
        ("- 1", "must hold settings as `name: value`, got a list"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_recipe_is_one_line(text, said, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    code, line = exit_line(capsys, "train", "--config", str(recipe))
    assert code == 2
    assert said in line


def test_doctor_shows_packages_devices_and_weights(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEPRIOR_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"cut short")
    main(["doctor", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"torch", "numba"} <= {row["package"] for row in result["packages"]}
    assert result["devices"][0]["device"] == "cpu"
    assert result["weights_from"].startswith(f"{tmp_path} (CODEPRIOR_WEIGHTS), {tmp_path / 'torch'}")
    inception, *others = result["weights"]
    assert inception["found"] == str(tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    assert inception["get it by"].startswith("removing this one")
    assert {row["found"] for row in others} == {"missing"}
