"""Sweeps in the report: scores over settings, a picture and a table each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from codeprior.artifact import Manifest, read_json
from codeprior.plots import score_curves
from codeprior.report.format import NONE, Column, Row, Table, percent, score
from codeprior.report.gather import Findings
from codeprior.report.names import method_name
from codeprior.report.pictures import plot
from codeprior.sweep import SCORES
from codeprior.sweep.summary import axis_title, curves

MEAN = "mean"
_SHARES = ("class_consistency", "precision", "recall")


@dataclass(frozen=True)
class Sweep:
    """What was found by one."""

    place: str
    axis: str
    picture: str | None
    table: Table


def sweeps(findings: Findings) -> list[Sweep]:
    """All sweeps below a folder."""
    return [_sweep(findings, manifest) for manifest in findings.of("sweep")]


def _sweep(findings: Findings, manifest: Manifest) -> Sweep:
    record = read_json(manifest.path(SCORES))
    axis, panels = curves(record["points"], record["varied"], record["scores"])
    title = axis_title(axis, record["points"])
    picture = plot(lambda path: score_curves(panels, path, xlabel=title))
    return Sweep(findings.place(manifest.folder.parent), axis, picture, _table(record))


def _table(record: dict[str, Any]) -> Table:
    """A row for each combination, over its seeds if there are several; of seeds alone one for each, and their mean."""
    means, scores = record.get("over_seeds", []), record["scores"]
    rows = [*record["points"], *means] if len(means) == 1 else means or record["points"]
    settings = [name for name in record["varied"] if len({row.get(name, MEAN) for row in rows}) > 1]
    columns = [Column(name, numeric=name not in ("checkpoint", "method")) for name in settings]
    columns += [Column(_title(name)) for name in scores]
    cells = [
        [*(_setting(name, row.get(name, MEAN)) for name in settings), *(_score(name, row) for name in scores)]
        for row in rows
    ]
    return Table(columns, [Row(line) for line in cells], _note(means)).without_empty_columns()


def _note(means: list[dict[str, Any]]) -> str:
    """What the deviations are of."""
    if not means:
        return "± is the bootstrap's over images; one seed."
    numbers = sorted({row["n_seeds"] for row in means})
    n_seeds = " to ".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    over_seeds = f"± is the standard deviation over {n_seeds} seeds"
    return f"{over_seeds}; beside a single one, the bootstrap's over images." if len(means) == 1 else f"{over_seeds}."


def _title(name: str) -> str:
    falls = name.startswith(("FD", "KD", "gFID", "rFID", "sFID", "KID"))
    return f"{name.replace('_', ' ')} {'↓' if falls else '↑'}"


def _setting(name: str, value: Any) -> str:
    return NONE if value is None else method_name(value) if name == "method" else str(value)


def _score(name: str, row: dict[str, Any]) -> str:
    value, sd = row.get(name), row.get(f"{name}_sd")
    if value is None or not name.startswith(_SHARES):
        return score(value, sd)
    return percent(value) if sd is None else f"{percent(value)} ± {100 * sd:.1f}"
