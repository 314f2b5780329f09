"""Numbers as people read them, and the tables that they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NONE = "–"
NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class Column:
    """A column's head; numbers stand right-aligned, so that their digits line up."""

    title: str
    note: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """Cells as text; `color` is a swatch before the first, `quiet` a row that is there to compare with."""

    cells: Sequence[str]
    color: str = ""
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the report."""

    columns: Sequence[Column]
    rows: Sequence[Row] = field(default_factory=list)
    note: str = ""

    def without_empty_columns(self) -> Table:
        """The table without the columns that no row has anything in."""
        filled = [any(row.cells[i] not in (NONE, "") for row in self.rows) for i in range(len(self.columns))]

        def keep(cells: Sequence[Any]) -> list[Any]:
            return [cell for cell, kept in zip(cells, filled, strict=True) if kept]

        rows = [Row(keep(row.cells), row.color, row.quiet) for row in self.rows]
        return Table(keep(self.columns), rows, self.note)


def count(value: int | None) -> str:
    """A whole number with thousands apart: 1,797."""
    return NONE if value is None else f"{value:,}"


def number(value: float | None, digits: int = 2, sd: float | None = None) -> str:
    """A number, with its spread where there is one: 23.54 ± 0.02."""
    if value is None:
        return NONE
    return f"{value:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def score(value: float | None, sd: float | None = None) -> str:
    """A Fréchet distance: two decimals, three below 1, where differences are small too."""
    return number(value, 2 if value is None or abs(value) >= 1 else 3, sd)


def percent(value: float | None, digits: int = 1) -> str:
    """A share: 95.0 %."""
    return NONE if value is None else f"{100 * value:.{digits}f}{NO_BREAK}%"


def parameters(value: int | None) -> str:
    """A number of parameters: 870.9 k, 110.9 M, 3.1 B."""
    if value is None:
        return NONE
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return str(value)


def duration(time_s: float | None) -> str:
    """A time: 0.4 s, 52 s, 4 min 12 s, 3 h 20 min, 2 d 5 h."""
    if time_s is None:
        return NONE
    if time_s < 10:
        return f"{time_s:.1f} s"
    seconds = round(time_s)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def listing(parts: Sequence[str]) -> str:
    """Parts of a sentence: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
