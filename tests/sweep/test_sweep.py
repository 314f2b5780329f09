import fcntl
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeprior.artifact import read_manifest
from codeprior.cli import main
from codeprior.config import EvaluateConfig, SweepConfig
from codeprior.errors import InputError
from codeprior.evaluation.judge import evaluate
from codeprior.generation.sample import sample
from codeprior.sweep.points import plan
from codeprior.sweep.sweep import sweep
from killed import run_and_die

FD = "FD[digits-cnn]"


def copied(swept, folder: Path) -> Path:
    return shutil.copytree(swept[0], folder / "sweep")


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_every_point_is_what_sample_and_evaluate_make_alone(swept, settings, tmp_path):
    output, results = swept
    assert [(row["cfg-scale"], row["seed"]) for row in results["points"]] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    point = plan(SweepConfig(**settings, output=tmp_path))[3]
    sample(point.sample)
    scores = evaluate(point.evaluate)
    assert scores[FD] == results["points"][3][FD]
    assert (
        read_manifest(point.sample.output).digest == read_manifest(output / "points/cfg-scale-3_seed-1/samples").digest
    )
    assert point.evaluate == EvaluateConfig(
        samples=point.sample.output,
        reference=point.evaluate.reference,
        features=point.evaluate.features,
        n_resamples=4,
        output=tmp_path / "points/cfg-scale-3_seed-1/scores",
        device="cpu",
    )


def test_seeds_have_a_table_of_their_own_with_mean_and_deviation(swept):
    points, groups = swept[1]["points"], swept[1]["over_seeds"]
    assert [(row["cfg-scale"], row["n_seeds"]) for row in groups] == [(1, 2), (3, 2)]
    for row, first, second in zip(groups, points[::2], points[1::2], strict=True):
        assert row[FD] == pytest.approx((first[FD] + second[FD]) / 2)
        assert row[f"{FD}_sd"] == pytest.approx(abs(first[FD] - second[FD]) / 2**0.5)


def test_the_summary_is_a_table_and_a_picture(swept):
    output, results = swept
    manifest = read_manifest(output / "summary", "sweep")
    record = json.loads((output / "summary/scores.json").read_text())
    assert record["points"][2][FD] == manifest.results["points"][2][FD] == results["points"][2][FD]
    assert f"{FD}_sd" in record["points"][0]
    with Image.open(output / "summary/scores.png") as picture:
        assert np.asarray(picture).std() > 5


def test_what_is_done_is_not_done_again_and_more_may_be_asked_for(swept, settings, tmp_path):
    output = copied(swept, tmp_path)
    before = written(output)
    assert sweep(SweepConfig(**settings, output=output))["points"] == swept[1]["points"]
    assert written(output) == before
    wider = {**settings, "over": ("cfg-scale=1,2,3", "seed=0")}
    results = sweep(SweepConfig(**wider, output=output))
    assert [row["cfg-scale"] for row in results["points"]] == [1, 2, 3]
    assert results["points"][0] == swept[1]["points"][0]
    points = {path: time for path, time in before.items() if "points" in path.parts}
    assert {path: time for path, time in written(output).items() if path in points} == points


def test_a_point_made_of_something_else_is_refused_and_replaced_if_that_is_wanted(swept, settings, tmp_path):
    output = copied(swept, tmp_path)
    changed = {**settings, "over": ("cfg-scale=1",), "sample": (*settings["sample"], "temperature=0.5")}
    shutil.move(output / "points/cfg-scale-1_seed-0", output / "points/cfg-scale-1")
    with pytest.raises(InputError, match=r"temperature: 1.0, now 0.5"):
        sweep(SweepConfig(**changed, output=output))
    results = sweep(SweepConfig(**changed, output=output, overwrite=True))
    assert results["points"][0][FD] != swept[1]["points"][0][FD]


def test_images_may_be_removed_once_they_are_scored(settings, swept, tmp_path):
    config = SweepConfig(**{**settings, "over": ("seed=1",), "discard": True}, output=tmp_path / "sweep")
    sweep(config)
    assert not list(tmp_path.rglob("samples.npz"))
    before = written(tmp_path)
    assert sweep(config)["points"][0][FD] == pytest.approx(sweep(config)["points"][0][FD])
    assert written(tmp_path) == before


def test_killed_anywhere_a_sweep_ends_as_an_unbroken_one(swept, settings, tmp_path):
    config = SweepConfig(**settings, output=tmp_path / "sweep")
    for n_passes in (0, 1, 4):  # a pass decodes, or sees images
        assert run_and_die("sweep", config, n_passes, {}) == -signal.SIGKILL
    results = sweep(config)
    assert results["points"] == swept[1]["points"]
    assert results["over_seeds"] == swept[1]["over_seeds"]


def test_a_point_that_another_process_works_on_is_left_to_it(settings, swept, tmp_path):
    output = copied(swept, tmp_path)
    config = SweepConfig(**{**settings, "over": ("cfg-scale=1,2,3", "seed=0,1")}, output=output)
    point = output / "points/cfg-scale-2_seed-0"
    point.mkdir()
    with open(point / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep(config)["state"] == "other processes work on 1 of 6 points"
    assert (output / "points/cfg-scale-2_seed-1/point.json").exists()
    assert len(sweep(config)["points"]) == 6


def test_under_torchrun_a_point_is_made_by_one_process(settings, swept, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    results = sweep(SweepConfig(**{**settings, "over": ("seed=0",)}, output=tmp_path / "sweep"))
    assert results["points"][0]["seed"] == 0
    assert (tmp_path / "sweep/points/seed-0/samples/samples.npz").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"over": ("cfg-scal=1,2",)}, "of sample: .*--cfg-scal"),
        ({"over": ("cfg-scale=1,x",)}, "of sample: .*cfg-scale"),
        ({"over": ("cfg-scale",)}, "given as name=value, got 'cfg-scale'"),
        ({"over": ("temperature=1,-1",)}, "of sample: temperature must be 0 or more, got -1.0"),
        ({"over": ("seed=1,1",)}, "two points of --over are the same"),
        ({"over": ("seed=1", "seed=2")}, "a setting stands in --over twice"),
        ({"over": ("n-images=8,16",)}, "n-images stands in --over and in --sample"),
        ({"evaluate": ("output=there",)}, "a sweep sees to output itself"),
        ({"evaluate": ()}, "of evaluate: missing: --reference"),
        ({"over": ("checkpoint=nowhere,there",)}, "no artifact at nowhere"),
        ({"over": ("classes=3,gorilla",)}, "no class 'gorilla'"),
        ({"evaluate": ("reference=digits:heldot",)}, "no images at digits:heldot"),
        ({"evaluate": ("reference=digits:heldout", "features=nowhere")}, "no feature network at nowhere"),
        (
            {"over": ("image-size-eval=16,8",), "evaluate": ("reference=small.npz",)},
            "samples are 16 pixels a side, small",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_done(settings, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    np.savez("small.npz", arr_0=np.full((4, 8, 8, 3), 128, np.uint8))
    if "checkpoint" in change.get("over", ("",))[0]:
        change = {**change, "sample": settings["sample"][1:]}
    with pytest.raises(InputError, match=message):
        sweep(SweepConfig(**{**settings, **change}, output=tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_sweep_through_the_real_parser_prints_spreads_beside_means(swept, settings, tmp_path, capsys):
    output = copied(swept, tmp_path)
    flags = [word for name in ("over", "sample", "evaluate") for word in (f"--{name}", *settings[name])]
    main(["sweep", *flags, "--device", "cpu", "--output", str(output), "--json"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["points"][3]["cfg-scale"] == 3
    assert sum(" ± " in line for line in lines) == 2
    assert not any("_sd" in line for line in lines)
