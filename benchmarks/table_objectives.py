"""Write the newest committed measurements into docs/objectives.md, between its markers: numbers come from files.

Run: python benchmarks/table_objectives.py (or --check, which only says whether the page is up to date)
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "objectives.md"
TABLES = re.compile(r"(<!-- (?P<name>[\w ]+): begin -->\n)(?P<table>.*?)(<!-- (?P=name): end -->)", re.DOTALL)


def newest(name: str) -> tuple[Path, dict[str, Any]]:
    """The newest results of that name, and their file."""
    for path in sorted(RESULTS.glob("*.json"), reverse=True):
        results = json.loads(path.read_text()).get(name)
        if results is not None:
            return path, results
    raise SystemExit(f"no results of {name} in {RESULTS}; {PAGE.name} wants them")


def with_tables(page: str) -> str:
    """The page with its tables made anew."""

    def made(found: re.Match[str]) -> str:
        path, results = newest(found["name"])
        table = losses_table if found["name"] == "losses" else objectives_table
        return "\n".join([found[1].rstrip(), *table(results), "", source(path, results), found[4]])

    return TABLES.sub(made, page)


def source(path: Path, results: dict[str, Any]) -> str:
    """Where numbers are from."""
    machine = results["machine"]
    seeds = results["rows"][0].get("seeds")
    spread = "" if seeds is None else f"Mean ± standard deviation over {len(seeds)} seeds. "
    return (
        f"{spread}{machine['processor']}, {machine['cpus']} cores; [`{path.name}`](../benchmarks/results/{path.name}), "
        f"made by `{results['command']}`."
    )


def objectives_table(results: dict[str, Any]) -> Iterator[str]:
    """Rows of bench_objectives.py."""
    rows = results["rows"]
    network = next(name for name in rows[0] if name.startswith("FD["))[3:-1]
    scores = {
        "held-out nats per token ↓": ("heldout_nats_per_token", "{:.3f}"),
        "class consistency ↑": ("class_consistency", "{:.1%}"),
        f"FD[{network}] ↓": (f"FD[{network}]", "{:.2f}"),
        f"KD[{network}] ↓": (f"KD[{network}]", "{:.3f}"),
        f"recall[{network}] ↑": (f"recall[{network}]", "{:.1%}"),
    }
    yield f"| | clusters | parameters | {' | '.join(scores)} | tokens/s in training |"
    yield "|---" * (len(scores) + 4) + "|"
    for row in rows:
        counts = [f"{row[key]:,}" if row.get(key) else "" for key in ("n_clusters", "n_parameters")]
        cells = [row["title"], *counts, *(_score(row.get(key), form) for key, form in scores.values())]
        yield _line([*cells, f"{row['training_tokens_per_s']:,}" if "training_tokens_per_s" in row else ""])


def _score(measured: dict[str, Any] | None, form: str) -> str:
    """A number with its spread over seeds; none where it has no meaning."""
    if measured is None:
        return ""
    sd = measured.get("sd")
    return form.format(measured["mean"]) + ("" if sd is None else f" ± {form.format(sd)}")


def losses_table(results: dict[str, Any]) -> Iterator[str]:
    """Rows of bench_losses.py: a loss a line, both precisions side by side."""
    rows = {row["name"]: row for row in results["rows"]}
    precisions = list(dict.fromkeys(row["precision"] for row in rows.values()))
    losses = {row["loss"]: row["n_tokens"] for row in rows.values() if "loss" in row}
    titles = [f"{precision}: {title}" for precision in precisions for title in ("seconds", "MB", "a step of GPT-B")]
    yield f"| loss and backward | {' | '.join(titles)} |"
    yield "|---" * (len(titles) + 1) + "|"
    for loss, n_tokens in losses.items():
        cells = [loss]
        for precision in precisions:
            row = rows[f"{loss}, {n_tokens} tokens, {precision}"]
            step = rows.get(f"step, {loss}, {precision}")
            cells += [f"{row['time_s']:.2f}", f"{row['peak_bytes'] / 1e6:,.0f}"]
            cells.append("" if step is None else f"{step['of_token']:.3f}")
        yield _line(cells)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    text = PAGE.read_text()
    updated = with_tables(text)
    if "--check" in sys.argv:
        raise SystemExit(None if updated == text else f"the tables of {PAGE.name} are not those of the newest results")
    PAGE.write_text(updated)


if __name__ == "__main__":
    main()
