"""Write the newest committed measurements into the pages of docs/, between their markers: numbers come from files.

Run: python benchmarks/table_docs.py (or --check, which only says whether the pages are up to date)

What no result file has yet stays as it stands between its markers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import newest, publish

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("evaluation.md", "objectives.md", "sampling.md", "training.md")
MARKED = re.compile(r"(<!-- (?P<name>[\w ]+): begin -->\n)(?P<table>.*?)(<!-- (?P=name): end -->)", re.DOTALL)
Table = Callable[[dict[str, Any]], Iterator[str]]


def with_tables(page: str) -> str:
    """The page with its tables made anew."""

    def made(found: re.Match[str]) -> str:
        measured = newest(found["name"])
        if measured is None:
            return found[0]
        table = TABLES[found["name"]](measured[1])
        return "\n".join([found[1].rstrip(), *table, "", source(*measured), found[4]])

    return MARKED.sub(made, page)


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
    yield _rule(len(scores) + 4)
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
    yield _rule(len(titles) + 1)
    for loss, n_tokens in losses.items():
        cells = [loss]
        for precision in precisions:
            row = rows[f"{loss}, {n_tokens} tokens, {precision}"]
            step = rows.get(f"step, {loss}, {precision}")
            cells += [f"{row['time_s']:.2f}", f"{row['peak_bytes'] / 1e6:,.0f}"]
            cells.append("" if step is None else f"{step['of_token']:.3f}")
        yield _line(cells)


def training_table(results: dict[str, Any]) -> Iterator[str]:
    """Rows of bench_training.py: each objective beside its original, a precision a line; of a GPU with MFU."""
    titles = ["ours", "the original's", "times faster", "memory in all", "the original's"]
    on_gpu = any("ours token mfu" in row for row in results["rows"])
    titles += ["MFU", "the original's"] if on_gpu else []
    yield f"| model and step | {' | '.join(titles)} |"
    yield _rule(len(titles) + 1)
    for row in results["rows"]:
        for ours, theirs in {"ours token": "llamagen", "ours iar": "iar"}.items():
            if f"{ours} tokens_per_s" not in row:
                continue
            sides = [side if f"{side} tokens_per_s" in row else None for side in (ours, theirs)]
            speeds = ["" if side is None else f"{row[f'{side} tokens_per_s']:,.0f} tokens/s" for side in sides]
            memory = ["" if side is None else f"{row[f'{side} peak_bytes'] / 1e6:,.0f} MB" for side in sides]
            times = f"{row[f'{ours} times faster']:.2f}" if sides[1] else ""
            name = f"{row['name']}, {row['batch']}, {ours.removeprefix('ours ')}"
            mfu = [f"{row[f'{side} mfu']:.0%}" if f"{side} mfu" in row else "" for side in sides]
            yield _line([name, *speeds, times, *memory, *(mfu if on_gpu else [])])


def sampling_table(results: dict[str, Any]) -> Iterator[str]:
    """Rows of bench_sampling.py: each side in each precision, and how it compares with the original's float32."""
    titles = ("images/s", "images/s, decoded to pixels", "times the original's float32", "memory of a batch")
    yield f"| model, batch | | {' | '.join(titles)} |"
    yield _rule(len(titles) + 2)
    for row in results["rows"]:
        for name in (key.removesuffix(" images_per_s") for key in row if key.endswith(" images_per_s")):
            speeds = [f"{row[f'{name} {what}']:.3f}" for what in ("images_per_s", "decoded_images_per_s")]
            ratio = row.get(f"{name} / llamagen fp32")
            cells = [f"{row['name']}, {row['batch_size']}", name.replace("llamagen", "LlamaGen"), *speeds]
            yield _line([*cells, "" if ratio is None else f"{ratio:.2f}", f"{row[f'{name} peak_bytes'] / 1e6:,.0f} MB"])


def evaluation_table(results: dict[str, Any]) -> Iterator[str]:
    """Rows of bench_evaluation.py: each score beside the usual way to it."""
    titles = ("seconds", "memory over the features", "of the process", "the usual way", "its seconds", "its memory")
    yield f"| | {' | '.join(titles)} |"
    yield _rule(len(titles) + 1)
    for row in results["rows"]:
        ours = [f"{row['time_s']:.1f}", f"{row['peak_bytes'] / 1e6:,.0f} MB", f"{row['process_bytes'] / 1e9:.1f} GB"]
        theirs = ["", "", ""]
        if "peer" in row:
            theirs = [f"`{row['peer']}`", f"{row['peer_time_s']:.1f}", f"{row['peer_peak_bytes'] / 1e6:,.0f} MB"]
        yield _line([row["name"], *ours, *theirs])


TABLES: dict[str, Table] = {
    "evaluation": evaluation_table,
    "losses": losses_table,
    "objectives on digits": objectives_table,
    "objectives on photos12": objectives_table,
    "sampling": sampling_table,
    "training": training_table,
    "training on a GPU": training_table,
}


def _rule(n_columns: int) -> str:
    return "|---" * n_columns + "|"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    for page in (DOCS / name for name in PAGES):
        publish(page, with_tables(page.read_text()))


if __name__ == "__main__":
    main()
