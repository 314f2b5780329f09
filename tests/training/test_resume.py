"""Whatever happens to a run, the same command continues it, and it ends as if nothing had happened."""

import json
import shutil

import numpy as np
import pytest

import crew
from codeprior.training.logs import MEASURED
from crew import Fate


def flags(tiny, output, **changes) -> list[str]:
    given = {"codes": tiny / "codes", "heldout-codes": tiny / "heldout", "output": output, "device": "cpu"}
    defaults = {"steps": 24, "batch-size": 8, "validate-every": 10, "precision": "fp32", "ema-decay": 0.9}
    values = {**given, **defaults, "checkpoint-every": 1, **{name.replace("_", "-"): x for name, x in changes.items()}}
    return [f"--{name}={value}" for name, value in values.items()]


def outcome(folder) -> dict[str, bytes]:
    """Weights, their average, optimizer and metrics; of the latter all that does not depend on the clock."""
    files = {name: (folder / name).read_bytes() for name in ("model.safetensors", "ema.safetensors", "config.json")}
    last = max(folder.glob("state-*"))
    files |= {f"{last.name}/{path.name}": path.read_bytes() for path in last.glob("*.safetensors")}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: x for name, x in line.items() if name not in MEASURED} for line in lines]
    return {**files, "metrics": json.dumps(kept).encode()}


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """The outcome of an unbroken run, by the number of processes."""
    folder, outcomes = tmp_path_factory.mktemp("unbroken"), {}

    def of(size: int) -> dict[str, bytes]:
        if size not in outcomes:
            assert crew.train(flags(tiny, folder / str(size)), size) == [0] * size
            outcomes[size] = outcome(folder / str(size))
        return outcomes[size]

    return of


def assert_unbroken(folder, expected: dict[str, bytes]) -> None:
    ours = outcome(folder)
    assert ours["metrics"] == expected["metrics"]
    assert [name for name in expected if ours.get(name) != expected[name]] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_twenty_moments_it_ends_bit_for_bit_like_an_unbroken_run(tiny, unbroken, tmp_path, size):
    random, n_killed, output = np.random.default_rng(), 0, tmp_path / "gpt"
    while n_killed < 20:
        if n_killed % 2:
            fate = Fate(killed_in_write=(int(random.integers(1, 3)), float(random.random())))
        else:
            fate = Fate(killed_after_s=float(random.uniform(0, 0.1)))
        n_killed += any(crew.train(flags(tiny, output), size, fate))
        if (output / "manifest.json").exists():  # it was too fast: once more
            assert_unbroken(output, unbroken(size))
            shutil.rmtree(output)
    assert crew.train(flags(tiny, output), size) == [0] * size
    assert_unbroken(output, unbroken(size))


@pytest.mark.parametrize(("at", "share"), [(1, 0.0), (4, 0.5), (9, 1.0)])
def test_killed_in_the_middle_of_a_write_it_continues_bit_for_bit(tiny, unbroken, tmp_path, at, share):
    arguments = flags(tiny, tmp_path / "gpt")
    assert crew.train(arguments, fate=Fate(killed_in_write=(at, share))) == [-9]
    assert len(list((tmp_path / "gpt").glob("state-*"))) == min(at - 1, 2)
    assert crew.train(arguments) == [0]
    assert_unbroken(tmp_path / "gpt", unbroken(1))


def test_sigterm_saves_the_state_and_exits_with_143(tiny, unbroken, tmp_path):
    arguments = flags(tiny, tmp_path / "gpt", checkpoint_every=1000)
    assert crew.train(arguments, fate=Fate(terminated_at_step=6), said=tmp_path / "said") == [143]
    said = (tmp_path / "said").read_text()
    assert said == (
        "codeprior train: SIGTERM: stopped after step 7, whose state is saved; run the same command again to continue\n"
    )
    assert [path.name for path in (tmp_path / "gpt").glob("state-*")] == ["state-00000007"]
    assert crew.train(flags(tiny, tmp_path / "gpt")) == [0]
    assert_unbroken(tmp_path / "gpt", unbroken(1))


def test_a_full_disk_leaves_the_last_state_and_says_so(tiny, unbroken, tmp_path):
    arguments = flags(tiny, tmp_path / "gpt")
    assert crew.train(arguments, fate=Fate(terminated_at_step=4)) == [143]
    assert crew.train(arguments, fate=Fate(largest_file_bytes=2**20), said=tmp_path / "said") == [2]
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert line.startswith("codeprior train: step 6: cannot write ")
    assert line.endswith("the state of step 5 is whole; make room, and run the same command again to continue")
    assert not list((tmp_path / "gpt").glob(".state-*"))  # what was half written takes no room
    assert crew.train(arguments) == [0]
    assert_unbroken(tmp_path / "gpt", unbroken(1))


def test_a_truncated_state_is_named_and_the_one_before_serves(tiny, unbroken, tmp_path):
    arguments = flags(tiny, tmp_path / "gpt")
    assert crew.train(arguments, fate=Fate(terminated_at_step=6)) == [143]
    damaged = tmp_path / "gpt" / "state-00000007"
    file = damaged / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert crew.train(arguments, said=tmp_path / "said") == [2]
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert f"the state {damaged} cannot be used" in line
    assert line.endswith("remove it to continue from step 6")
    shutil.rmtree(damaged)
    assert crew.train(arguments) == [0]
    assert_unbroken(tmp_path / "gpt", unbroken(1))


def test_codes_that_are_cut_short_while_they_are_read_end_the_run_in_one_line(tiny, unbroken, tmp_path):
    shutil.copytree(tiny / "codes", tmp_path / "codes")
    arguments = flags(tiny, tmp_path / "gpt", codes=tmp_path / "codes")
    fate = Fate(truncates=(5, tmp_path / "codes" / "codes.npy"))
    assert crew.train(arguments, fate=fate, said=tmp_path / "said") == [2]
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert "codes.npy were cut short while they were read" in line
    assert crew.train(flags(tiny, tmp_path / "gpt")) == [0]
    assert_unbroken(tmp_path / "gpt", unbroken(1))
