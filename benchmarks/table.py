"""Write the newest committed measurements into the README, between its markers: numbers come from files, not hands.

Run: python benchmarks/table.py (or --check, which only says whether the README is up to date)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def newest(kind: str) -> tuple[Path, dict[str, Any]]:
    """The newest result file of a kind of machine that holds the linkage rows."""
    for path in sorted(RESULTS.glob(f"*-{kind}.json"), reverse=True):
        results = json.loads(path.read_text())
        if "linkage" in results:
            return path, results["linkage"]
    raise SystemExit(f"no results of {kind} in {RESULTS}; run `make bench`")


def table(path: Path, results: dict[str, Any]) -> str:
    """The rows as Markdown."""
    machine = results["machine"]
    lines = [
        "Exact average linkage on two CPU cores, medians, beside the fastest exact peers in the same run:",
        "",
        "| codes | to | seconds | memory | peer | peer's seconds | times faster |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in results["rows"] if "time_s" in row),
        "",
        f"{machine['processor']}, {machine['cpus']} cores, Python {machine['python']}, numba {machine['numba']}; "
        f"[`{path.name}`](benchmarks/results/{path.name}), made by `{results['command']}`. "
        "cKDTree's seconds are those of one exact nearest-neighbour pass with two workers.",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    goal = "one cluster" if row["n_clusters"] == 1 else f"{row['n_clusters']:,}"
    cells = [
        f"{row['n_codes']:,} x {row['dim']}, {row['kind']}",
        goal,
        f"{row['time_s']:.3g}",
        f"{row['peak_bytes'] / 1e6:,.0f} MB" if "peak_bytes" in row else "",
        str(row.get("reference") or ""),
        f"{row['reference_s']:.3g}" if row.get("reference_s") else "",
        f"{row['reference_s'] / row['time_s']:.3g}" if row.get("reference_s") else "",
    ]
    return f"| {' | '.join(cells)} |"


def with_table(text: str, rows: str) -> str:
    """The README's text with the table between its markers."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{rows}\n{END}{tail}"


def main() -> None:
    text = README.read_text()
    updated = with_table(text, table(*newest("cpu2")))
    if "--check" in sys.argv:
        raise SystemExit(None if updated == text else "the README's table is not that of the newest result file")
    README.write_text(updated)


if __name__ == "__main__":
    main()
