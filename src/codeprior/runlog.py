"""The log of a training run: what it measured on the way, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from codeprior.artifact import write_atomically

METRICS = "metrics.jsonl"
SNAPSHOTS = "snapshots"


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, flushed at once."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Open for appending, without what an interrupted run wrote after `after_step`."""
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= after_step]
        with write_atomically(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))

    def write(self, **values: float) -> None:
        """Append a line; floats with 6 significant digits."""
        rounded = {name: float(f"{x:.6g}") if isinstance(x, float) else x for name, x in values.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps(rounded) + "\n")

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        with open(self.path, "a") as file:
            os.fsync(file.fileno())


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line that a kill cut short
        return math.inf
