"""What a sweep found: a row a point, means over seeds, the lines of a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.plots import PALETTE

SEEDS = ("seed", "pick-seed")
TRAINING = ("method", "steps")

Row = dict[str, Any]
"""What a point varies, and its scores, by name."""


def score_names(rows: Sequence[Row], varied: Sequence[str]) -> list[str]:
    """What of the rows is a score of samples: neither a setting, nor a spread, nor of real images."""
    names = dict.fromkeys(name for row in rows for name in row if name not in varied)
    return [name for name in names if not name.startswith("real_") and not name.endswith("_sd")]


def over_seeds(rows: Sequence[Row], varied: Sequence[str], scores: Sequence[str]) -> list[Row]:
    """Mean and standard deviation (of n - 1) of each score over the rows that differ in their seeds alone."""
    others = [name for name in varied if name not in SEEDS]
    found = []
    for group in _grouped(rows, others).values():
        made: Row = {**{name: group[0][name] for name in others}, "n_seeds": len(group)}
        for name in scores:
            values = np.array([row[name] for row in group if row.get(name) is not None], dtype=np.float64)
            made[name] = float(values.mean()) if len(values) else None
            made[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
        found.append(made)
    return found


def curves(rows: Sequence[Row], varied: Sequence[str], scores: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What a picture of the rows shows: the setting along its axis, and for each score its lines, as `score_curves`.

    Along the axis goes the number that took most values, that of a checkpoint being its steps; without any, what else
    varies, and at last the seed. All else that varies tells the lines apart, but seeds, over which they are means. Of
    more lines than there are colours, the first.
    """
    several = [name for name in varied if len({row[name] for row in rows}) > 1]
    others = [name for name in several if name not in (*SEEDS, *TRAINING)]
    numeric = [name for name in [*others, "steps"] if name in several and all(_is_number(row[name]) for row in rows)]
    axis = max(numeric, key=lambda name: len({row[name] for row in rows}), default=[*others, *several, *varied][0])
    by = [name for name in others if name != axis]
    if axis == "steps":
        by = [name for name in [*by, "method"] if name != "checkpoint" and name in several]
    averaged = rows if axis in SEEDS else over_seeds(rows, [axis, *by], scores)
    names = _short_names([str(row.get("checkpoint")) for row in rows])
    lines = {_label(line[0], by, names): line for line in list(_grouped(averaged, by).values())[: len(PALETTE)]}
    return axis, {score: {name: _curve(line, axis, score) for name, line in lines.items()} for score in scores}


def axis_title(axis: str, rows: Sequence[Row]) -> str:
    """What the axis shows, and what the bars are where several seeds were tried."""
    n_seeds = max(len({row.get(name) for row in rows}) for name in SEEDS)
    return axis if axis in SEEDS or n_seeds == 1 else f"{axis} (mean and deviation of {n_seeds} seeds)"


def _label(row: Row, by: Sequence[str], names: Mapping[str, str]) -> str:
    return ", ".join(names[str(row[name])] if name == "checkpoint" else f"{name} {row[name]}" for name in by)


def _curve(line: Sequence[Row], axis: str, score: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    if all(_is_number(row[axis]) for row in line):
        line = sorted(line, key=lambda row: row[axis])
    places = [row[axis] if _is_number(row[axis]) else str(row[axis]) for row in line]
    means = np.array([row.get(score) for row in line], dtype=np.float64)
    return places, means, np.array([row.get(f"{score}_sd") for row in line], dtype=np.float64)


def _grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by their values of these names, in the order of the first ones."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Folders by their last names, where these tell them apart."""
    names = {path: Path(path).name for path in paths}
    return names if len(set(names.values())) == len(names) else {path: path for path in paths}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
