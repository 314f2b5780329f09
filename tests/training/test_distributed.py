"""Two processes that train together are one that trains alone."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import crew
from codeprior.checkpoint import load_checkpoint
from codeprior.errors import InputError
from codeprior.training.distributed import Team
from codeprior.training.logs import MEASURED
from crew import Fate

CLOSE = 5e-6  # float32, sums in another order, a dozen steps of AdamW
FARTHEST = 2e-4  # a tenth of a step: AdamW moves a weight as far where its gradient is little but rounding


def flags(tiny, output, *more, **changes) -> list[str]:
    given = {"codes": tiny / "codes", "heldout-codes": tiny / "heldout", "output": output, "device": "cpu"}
    defaults = {"steps": 12, "batch-size": 16, "validate-every": 5, "precision": "fp32", "ema-decay": 0.9}
    values = {**given, **defaults, **{name.replace("_", "-"): x for name, x in changes.items()}}
    return [*(f"--{name}={value}" for name, value in values.items()), *more]


def metrics(folder) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in MEASURED} for line in lines]


def assert_close(ours, expected) -> None:
    """The same metrics and weights, to rounding."""
    for line, other in zip(metrics(ours), metrics(expected), strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    for name in ("model.safetensors", "ema.safetensors"):
        tensors, others = load_file(ours / name), load_file(expected / name)
        assert tensors.keys() == others.keys()
        differences = [np.abs(tensors[key] - others[key]) for key in tensors]
        assert max(np.quantile(difference, 0.999) for difference in differences) < CLOSE
        assert max(difference.max() for difference in differences) < FARTHEST


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """One process, two parts a batch, dropout and all."""
    output = tmp_path_factory.mktemp("alone") / "gpt"
    assert crew.train(flags(tiny, output, accumulate=2)) == [0]
    return output


def test_two_processes_under_torchrun_take_the_steps_of_one_with_two_parts(tiny, alone, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "codeprior"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["train", *flags(tiny, tmp_path / "gpt", "--json")]
    done = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1  # one of them speaks
    assert done.stderr.count("unigram entropy") == 1
    assert_close(tmp_path / "gpt", alone)


@pytest.mark.parametrize("more", [[], ["--shard"]], ids=["parallel", "sharded"])
def test_without_dropout_they_take_the_steps_of_one_with_the_whole_batch(tiny, tmp_path, more):
    off = {"dropout": 0.0, "token_dropout": 0.0}  # dropped classes are those of the batch, however it is spread
    assert crew.train(flags(tiny, tmp_path / "alone", **off)) == [0]
    assert crew.train(flags(tiny, tmp_path / "two", *more, **off), 2) == [0, 0]
    assert_close(tmp_path / "two", tmp_path / "alone")


@pytest.mark.slow
def test_sharded_processes_accumulate_too(tiny, tmp_path):
    assert crew.train(flags(tiny, tmp_path / "alone", accumulate=4)) == [0]
    assert crew.train(flags(tiny, tmp_path / "two", "--shard", accumulate=2), 2) == [0, 0]
    assert_close(tmp_path / "two", tmp_path / "alone")
    assert (
        load_checkpoint(tmp_path / "two").model.n_parameters == load_checkpoint(tmp_path / "alone").model.n_parameters
    )


@pytest.mark.slow
def test_a_sharded_run_is_continued_bit_for_bit_and_by_other_processes_to_rounding(tiny, alone, tmp_path):
    assert crew.train(flags(tiny, tmp_path / "whole", "--shard"), 2) == [0, 0]
    stopped, stop = flags(tiny, tmp_path / "gpt", "--shard"), Fate(terminated_at_step=5)
    assert crew.train(stopped, 2, stop) == [143, 143]
    assert len(list((tmp_path / "gpt" / "state-00000006").glob("*.safetensors"))) == 2
    for n_processes in (1, 2):  # whole weights again, and as many parts as before
        output = tmp_path / f"by {n_processes}"
        shutil.copytree(tmp_path / "gpt", output)
        assert crew.train(flags(tiny, output, accumulate=2 // n_processes), n_processes) == [0] * n_processes
        assert_close(output, alone)
    assert crew.train(stopped, 2) == [0, 0]
    for name in ("model.safetensors", "ema.safetensors"):
        assert (tmp_path / "gpt" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert metrics(tmp_path / "gpt") == metrics(tmp_path / "whole")


def test_a_run_of_one_process_is_continued_by_two_in_shares(tiny, alone, tmp_path):
    assert crew.train(flags(tiny, tmp_path / "gpt", accumulate=2), fate=Fate(terminated_at_step=5)) == [143]
    assert crew.train(flags(tiny, tmp_path / "gpt", "--shard"), 2) == [0, 0]
    assert_close(tmp_path / "gpt", alone)


@pytest.mark.slow
def test_a_state_of_which_a_share_is_cut_short_is_named(tiny, tmp_path):
    arguments = flags(tiny, tmp_path / "gpt", "--shard")
    assert crew.train(arguments, 2, Fate(terminated_at_step=3)) == [143, 143]
    share = sorted((tmp_path / "gpt" / "state-00000004").glob("*.safetensors"))[1]
    share.write_bytes(share.read_bytes()[:-1000])
    assert crew.train(arguments, 2, said=tmp_path / "said") == [2, 2]
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert "state-00000004 cannot be used" in line
    assert line.endswith("remove it to begin again")


def test_a_full_disk_is_told_once_and_ends_all(tiny, tmp_path):
    arguments = flags(tiny, tmp_path / "gpt", "--shard", checkpoint_every=2)
    assert crew.train(arguments, 2, Fate(largest_file_bytes=2**20), said=tmp_path / "said") == [2, 2]
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert "step 2: cannot write" in line
    assert not list((tmp_path / "gpt").glob("*state-*"))


def test_what_fails_before_the_first_step_is_told_once_and_ends_all(tiny, tmp_path):
    arguments = flags(tiny, tmp_path / "gpt", codes=tmp_path / "none")
    assert crew.train(arguments, 2, said=tmp_path / "said") == [2, 2]
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert "no codes at" in line


@pytest.mark.parametrize(
    ("environment", "changes", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}, "MASTER_ADDR is not; start several processes with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, {"device": "cuda:0"}, "give --device auto, not cuda:0"),
        ({}, {"sharded": True}, "over several processes; start them with torchrun"),
        ({}, {"log_with": ["wandb"]}, "cannot log with wandb: it is not installed; pip install wandb"),
    ],
)
def test_processes_that_cannot_work_together_say_why(monkeypatch, environment, changes, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        Team(**{"device": "cpu", **changes})


def test_a_batch_that_cannot_be_shared_out_is_refused(tiny, tmp_path):
    assert crew.train(flags(tiny, tmp_path / "gpt", batch_size=15), 2, said=tmp_path / "said") == [2, 2]
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert "batch_size must be a multiple of 2 parts (processes: 2, accumulate: 1), got 15" in line
