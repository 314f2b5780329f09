import itertools

import pytest

from codeprior.artifact import read_json, seal, write_json
from codeprior.config import ReportConfig
from codeprior.report import report
from codeprior.report.gather import gather
from codeprior.report.sweeps import sweeps
from codeprior.sweep.summary import over_seeds

SCORES = ["FD[net]", "class_consistency"]


@pytest.fixture
def folder(tmp_path):
    """A sweep over two scales and two seeds, as the verb leaves it."""
    varied = ["cfg-scale", "seed"]
    rows = [
        {"cfg-scale": scale, "seed": seed, "FD[net]": 10 * scale + seed, "class_consistency": 0.5 + 0.01 * seed}
        for scale, seed in itertools.product((1.0, 1.5), (0, 1))
    ]
    record = {"varied": varied, "scores": SCORES, "points": rows, "over_seeds": over_seeds(rows, varied, SCORES)}
    (tmp_path / "guidance/summary").mkdir(parents=True)
    write_json(tmp_path / "guidance/summary/scores.json", record)
    seal(tmp_path / "guidance/summary", "sweep", ["scores.json"], {}, {}, record)
    return tmp_path


def test_a_sweep_is_a_picture_and_a_table_of_means_with_their_deviations(folder):
    (found,) = sweeps(gather(folder))
    assert found.place == "guidance"
    assert found.axis == "cfg-scale"
    assert found.picture.startswith("data:image/svg+xml")
    assert [column.title for column in found.table.columns] == ["cfg-scale", "FD[net] ↓", "class consistency ↑"]
    assert list(found.table.rows[1].cells) == ["1.5", "15.50 ± 0.71", "50.5\u00a0% ± 0.7"]
    assert found.table.note == "± is the standard deviation over 2 seeds."


def test_a_sweep_over_seeds_alone_shows_each_and_their_mean(folder):
    record = read_json(folder / "guidance/summary/scores.json")
    points = record["points"][:2]
    means = over_seeds(points, record["varied"], SCORES)
    write_json(folder / "guidance/summary/scores.json", {**record, "points": points, "over_seeds": means})
    seal(folder / "guidance/summary", "sweep", ["scores.json"], {}, {}, record)
    (found,) = sweeps(gather(folder))
    assert [column.title for column in found.table.columns] == ["seed", "FD[net] ↓", "class consistency ↑"]
    cells = [tuple(row.cells[:2]) for row in found.table.rows]
    assert cells == [("0", "10.00"), ("1", "11.00"), ("mean", "10.50 ± 0.71")]


def test_points_that_are_done_are_told_of_by_the_summary_alone(folder):
    for name, is_done in {"a": True, "b": False}.items():
        samples = folder / "guidance/points" / name / "samples"
        samples.mkdir(parents=True)
        seal(samples, "samples", [], {}, {}, {})
        if is_done:
            write_json(samples.parent / "point.json", {})
    assert [manifest.folder.parent.name for manifest in gather(folder).of("samples")] == ["b"]


def test_the_page_shows_sweeps(folder):
    report(ReportConfig(folder=folder))
    page = (folder / "report.html").read_text()
    assert "Scores over cfg-scale" in page
    assert "15.50 ± 0.71" in page
