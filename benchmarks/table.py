"""Write the newest committed measurements of clustering into both READMEs: numbers come from files, not hands.

Run: python benchmarks/table.py (or --check, which only says whether they are up to date)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import RESULTS, newest, publish

README, README_HERE = Path(__file__).parent.parent / "README.md", Path(__file__).parent / "README.md"
TWO_CPUS = "*-cpu2.json"
# Seconds that two cores need for what has to be done, as benchmarks/README.md counts it.
LIMITS_S = {
    "16k-8-half": 0.02,
    "16k-8-complete": 0.06,
    "16k-8-half-spherical": 0.02,
    "16k-8-complete-spherical": 0.06,
    "16k-32-half": 0.05,
    "16k-32-complete": 0.15,
    "16k-256-half": 0.13,
    "16k-256-complete": 0.7,
    "262k-8-complete": 14,
    "262k-256-half": 66,
}


def table() -> str:
    """The rows as Markdown."""
    measured = newest("linkage", TWO_CPUS)
    if measured is None:
        raise SystemExit(f"no results of average linkage in {RESULTS}; run `make bench`")
    path, linkage = measured
    machine = linkage["machine"]
    first_call = next(row for row in linkage["rows"] if row["name"] == "first-call")
    rows = [row for row in linkage["rows"] if "time_s" in row]
    sources = [f"{_link(path)}, made by `{linkage['command']}`"]
    balanced = newest("balanced_kmeans", TWO_CPUS)
    if balanced is not None:  # needs IAR's script, which not everybody has
        path, results = balanced
        rows.append(_middle(results["rows"]))
        sources.append(f"balanced k-means, the median of {len(results['rows'])} seeds: {_link(path)}")
        sources[-1] += f", made by `{results['command']}`"
    lines = [
        "Exact average linkage on two CPU cores: medians beside the fastest exact peers in the same run, and the",
        "goals set before it was written.",
        "",
        "| codes | to | seconds | peer | peer's seconds | of the peer's time | goal | memory | goal |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        f"{machine['processor']}, {machine['cpus']} cores, Python {machine['python']}, numba {machine['numba']}; "
        f"{'; '.join(sources)}. cKDTree's seconds are those of one exact nearest-neighbour pass with two workers. "
        f"The first call ever compiles for {first_call['first_s'] - first_call['second_s']:.0f} seconds.",
    ]
    return "\n".join(lines)


def limits() -> str:
    """How far each row is from what has to be done, as Markdown."""
    _, linkage = newest("linkage", TWO_CPUS) or ("", {"rows": []})
    rows = [(row, LIMITS_S[row["name"]]) for row in linkage["rows"] if row["name"] in LIMITS_S]
    return "\n".join(
        [
            "| row | limit, seconds | measured | times the limit |",
            "|---|---|---|---|",
            *(
                f"| {row['name']} | {limit} | {row['time_s']:.3g} | {row['time_s'] / limit:.2g} |"
                for row, limit in rows
            ),
        ]
    )


def _link(path: Path) -> str:
    return f"[`{path.name}`](benchmarks/results/{path.name})"


def _middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of median ratio, of runs that differ in the seed."""
    row = sorted(rows, key=lambda row: row["ratio"])[len(rows) // 2]
    return row | {"dim": 8, "kind": "balanced k-means"}


def _line(row: dict[str, Any]) -> str:
    goal = "one cluster" if row["n_clusters"] == 1 else f"{row['n_clusters']:,}"
    beside = bool(row.get("reference_s"))
    cells = [
        f"{row['n_codes']:,} x {row['dim']}, {row['kind']}",
        goal,
        f"{row['time_s']:.3g}",
        row["reference"] if beside else "",
        f"{row['reference_s']:.3g}" if beside else "",
        _share(row["time_s"] / row["reference_s"]) if beside else "",
        _share(row.get("target_ratio")),
        f"{row['peak_bytes'] / 1e6:,.0f} MB",
        f"{row['target_bytes'] / 1e6:,.0f} MB" if row.get("target_bytes") else "",
    ]
    return f"| {' | '.join(cells)} |"


def _share(ratio: float | None) -> str:
    """A ratio of times: a fraction where it is below one."""
    if ratio is None:
        return ""
    return f"1/{1 / ratio:.0f}" if ratio < 0.5 else f"{ratio:.3g}"


def with_table(text: str, name: str, rows: str) -> str:
    """A page's text with a table between the markers of its name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{rows}\n{end}{tail}"


def main() -> None:
    for page, name, rows in ((README, "benchmarks", table()), (README_HERE, "limits", limits())):
        publish(page, with_table(page.read_text(), name, rows))


if __name__ == "__main__":
    main()
