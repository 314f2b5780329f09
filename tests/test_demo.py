import dataclasses
import json
import re
from pathlib import Path

import pytest

from codeprior.cli import main
from codeprior.demo import SCALES, Recipe


def stages(*, full: bool) -> list[list[str]]:
    """Names of the stages of each phase."""
    phases = Recipe("digits", Path("run")).phases(full=full)
    return [[stage.name for chain in phase for stage in chain] for phase in phases]


def test_the_full_demo_has_the_short_ones_stages_and_every_other_objective():
    short, full = stages(full=False), stages(full=True)
    assert {name for phase in short for name in phase} < {name for phase in full for name in phase}
    new = {name for phase in full for name in phase} - {name for phase in short for name in phase}
    assert {name for name in new if name.startswith("train")} == {"train iar", "train factorised", "train refine"}
    assert {name for name in new if name.startswith("score")} == {"score iar", "score factorised", "score dcpe-refined"}


def test_samples_are_refined_after_both_stages_are_trained():
    full = stages(full=True)
    trained = next(number for number, phase in enumerate(full) if "train refine" in phase)
    assert {"train dcpe", "train refine"} <= set(full[trained])
    assert "sample dcpe-refined" in full[trained + 1]


@pytest.mark.slow
def test_the_full_demo_runs_and_its_page_tells_of_every_objective(tmp_path, monkeypatch, capsys):
    short = {"tokenizer": {"codebook_size": 32, "steps": 40}, "classifier": {"steps": 5}, "n_samples": 40}
    models = {"steps": 30, "batch_size": 16}
    monkeypatch.setitem(SCALES, "digits", dataclasses.replace(SCALES["digits"], **short, model=models, n_scored=40))
    main(["demo", "--full", "--output", str(tmp_path / "run"), "--device", "cpu", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    scored = {"token", "kmeans", "dcpe", "iar", "factorised", "dcpe-refined"}
    assert {row["model"] for row in result["scores"]} == scored
    page = (tmp_path / "run" / "report.html").read_text()
    shown = re.findall(r"<figcaption><i.*?</i>([^<]+)<small>", page)
    in_order = ["plain tokens", "k-means clusters", "DCPE clusters", "DCPE + refine", "IAR + DCPE", "factorised + DCPE"]
    assert shown == in_order
    assert "second stage of DCPE" in page
    assert "Scores over cfg-scale" in page
