"""Checkpoints on the way, which stay."""

import pytest

from codeprior.artifact import read_manifest
from codeprior.config import SampleConfig, SweepConfig, TrainConfig
from codeprior.errors import InputError
from codeprior.generation.sample import sample
from codeprior.report.gather import gather
from codeprior.sweep.points import plan
from codeprior.training.loop import train


def settings(tiny, output, **changes) -> TrainConfig:
    given = {"codes": tiny / "codes", "output": output, "device": "cpu", "steps": 6, "batch_size": 8}
    return TrainConfig(**{**given, "precision": "fp32", "warmup": 0, "decay": 0.0, "ema_decay": 0.9, **changes})


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("snapshots") / "run"
    train(settings(tiny, output, snapshot_every=2))
    return output


def test_a_snapshot_is_the_checkpoint_that_a_shorter_run_leaves(tiny, run, tmp_path):
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == ["00000002", "00000004"]
    train(settings(tiny, tmp_path / "shorter", steps=4))
    snapshot, shorter = read_manifest(run / "snapshots/00000004"), read_manifest(tmp_path / "shorter")
    assert snapshot.files == shorter.files
    assert snapshot.settings == shorter.settings
    assert snapshot.inputs == shorter.inputs


def test_snapshots_change_nothing_in_the_run(tiny, run, tmp_path):
    train(settings(tiny, tmp_path / "without"))
    assert read_manifest(run).digest == read_manifest(tmp_path / "without").digest


def test_snapshots_are_sampled_and_swept_over_by_their_steps(tiny, run, tmp_path):
    folders = [run / "snapshots/00000002", run / "snapshots/00000004", run]
    given = {"checkpoint": folders[0], "tokenizer": tiny / "tokenizer", "device": "cpu", "n_images": 2, "ema": True}
    assert sample(SampleConfig(**given, output=tmp_path / "samples"))["n_images"] == 2
    over = (f"checkpoint={','.join(map(str, folders))}",)
    fixed, judged = (f"tokenizer={tiny / 'tokenizer'}",), ("reference=digits:heldout",)
    points = plan(SweepConfig(over=over, sample=fixed, evaluate=judged, output=tmp_path / "sweep"))
    assert [point.values["steps"] for point in points] == [2, 4, 6]


def test_the_report_tells_of_the_run_alone(run):
    assert [manifest.folder for manifest in gather(run.parent).of("checkpoint")] == [run]


def test_a_number_below_zero_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="snapshot_every must be 0"):
        settings(tiny, tmp_path, snapshot_every=-1)
