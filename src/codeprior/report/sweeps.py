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
    """A row for each combination, means and deviations where several seeds were tried."""
    rows, scores = record.get("over_seeds", record["points"]), record["scores"]
    settings = [name for name in (*record["varied"], "n_seeds") if any(row.get(name) is not None for row in rows)]
    columns = [Column(name, numeric=name not in ("checkpoint", "method")) for name in settings]
    columns += [Column(_title(name)) for name in scores]
    cells = [
        [*(_setting(name, row[name]) for name in settings), *(_score(name, row) for name in scores)] for row in rows
    ]
    note = "± is the standard deviation over seeds." if "over_seeds" in record else "One seed."
    return Table(columns, [Row(line) for line in cells], note).without_empty_columns()


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
