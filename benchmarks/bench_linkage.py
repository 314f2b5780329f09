"""Time average linkage on the CPU beside fastcluster and SciPy's cKDTree; see README.md for the method.

python benchmarks/bench_linkage.py            all rows, five repeats: some twenty minutes on two cores
python benchmarks/bench_linkage.py --quick    the rows of 16,384 codes in 8 dimensions, one repeat; writes nothing
python benchmarks/bench_linkage.py --row NAME one row (see ROWS), printed as JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

import numpy as np
from harness import in_a_process, interleaved, median, memory_bytes, peak_over_now, write_results


@dataclass(frozen=True)
class Row:
    """One line of the table: codes of a kind, how far to merge them, what to compare with and what to reach."""

    kind: str  # "clustered" or "spherical", see make_codes
    n_codes: int
    dim: int
    n_clusters: int
    reference: str  # "fastcluster" or "cKDTree"; "none" is reported without one
    target_ratio: float | None = None  # our time over that of the reference, at most
    target_bytes: int | None = None  # memory over imports and input, at most
    repeats: int = 5


MB = 10**6
ROWS = {
    "16k-8-half": Row(
        "clustered",
        16384,
        8,
        8192,
        "fastcluster",
        1 / 60,
        80 * MB,
    ),
    "16k-8-complete": Row(
        "clustered",
        16384,
        8,
        1,
        "fastcluster",
        1 / 25,
        400 * MB,
    ),
    "16k-8-half-spherical": Row(
        "spherical",
        16384,
        8,
        8192,
        "fastcluster",
        1 / 60,
        80 * MB,
    ),
    "16k-8-complete-spherical": Row(
        "spherical",
        16384,
        8,
        1,
        "fastcluster",
        1 / 25,
        400 * MB,
    ),
    "16k-32-half": Row(
        "spherical",
        16384,
        32,
        8192,
        "fastcluster",
        1 / 8,
    ),
    "16k-32-complete": Row(
        "spherical",
        16384,
        32,
        1,
        "fastcluster",
        1 / 8,
    ),
    "16k-256-half": Row("spherical", 16384, 256, 8192, "fastcluster", 1 / 8),
    "16k-256-complete": Row("spherical", 16384, 256, 1, "fastcluster", 1 / 8),
    "262k-8-half": Row("clustered", 262144, 8, 131072, "cKDTree", 3, 300 * MB),
    "262k-8-complete": Row("clustered", 262144, 8, 1, "cKDTree", 20, 1000 * MB),
    "1M-8-half": Row("clustered", 1048576, 8, 524288, "none"),
    "262k-256-half": Row("spherical", 262144, 256, 131072, "none", repeats=1),
}


def make_codes(kind: str, n_codes: int, dim: int) -> np.ndarray:
    """Return float32 codes: Gaussian clouds of 32 about Gaussian centres, or random unit vectors."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(n_codes, dim))
    if kind == "clustered":
        n_clouds = n_codes // 32
        codes = 0.2 * codes + rng.normal(size=(n_clouds, dim))[rng.integers(0, n_clouds, n_codes)]
    else:
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    return codes.astype(np.float32)


def warm_up(codes: np.ndarray) -> None:
    """Compile, or load what was compiled, on codes few enough not to matter: by matrix and by search."""
    from codeprior.clustering.linkage import average_linkage

    average_linkage(codes[:1000])
    average_linkage(codes[:3000], 1500)


def time_row(row: Row) -> dict[str, object]:
    """Time our function and the reference in turn."""
    from codeprior.clustering.linkage import average_linkage

    codes = make_codes(row.kind, row.n_codes, row.dim)
    warm_up(codes)
    functions = {"ours": lambda: average_linkage(codes, row.n_clusters)}
    if row.reference == "fastcluster":
        import fastcluster

        wide = codes.astype(np.float64)
        functions["reference"] = lambda: fastcluster.linkage(wide, "average")
    elif row.reference == "cKDTree":
        from scipy.spatial import cKDTree

        functions["reference"] = lambda: cKDTree(codes).query(codes, 2, workers=2)
    if row.n_codes <= 16384:
        functions["ours"]()
    return dict(interleaved(functions, row.repeats))


def measure_memory(row: Row) -> dict[str, object]:
    """The most that the process holds over its imports: codes, compiled kernels and all."""
    from codeprior.clustering._kernels import tie_rounded
    from codeprior.clustering.linkage import average_linkage

    tie_rounded(1.0)  # numba imports most of itself at its first call
    imported = memory_bytes("VmRSS")
    codes = make_codes(row.kind, row.n_codes, row.dim)
    warm_up(codes)
    held = memory_bytes("VmRSS") - imported
    return {"bytes": held + peak_over_now(lambda: average_linkage(codes, row.n_clusters))}


def measure_first_call() -> dict[str, object]:
    """Time the first call ever, everything compiled anew, against the next: called with an empty cache folder."""
    codes = make_codes("clustered", 4096, 8)
    from codeprior.clustering.linkage import average_linkage

    times = []
    for _ in range(2):
        start = time.perf_counter()
        average_linkage(codes)
        times.append(round(time.perf_counter() - start, 3))
    return {"first_s": times[0], "second_s": times[1]}


def result(name: str) -> dict[str, object]:
    row = ROWS[name]
    times = in_a_process(__file__, "--time", name)
    peak = in_a_process(__file__, "--memory", name)["bytes"]
    out: dict[str, object] = {"name": name, **asdict(row), "time_s": median(times["ours"]), "peak_bytes": peak}
    out["times_s"], out["cpu_s"] = times["ours"], median(times["ours cpu"])
    if "reference" in times:
        out["reference_s"] = median(times["reference"])
        out["reference_times_s"], out["reference_cpu_s"] = times["reference"], median(times["reference cpu"])
        out["ratio"] = round(median(times["ours"]) / median(times["reference"]), 4)
        out["cpu_ratio"] = round(median(times["ours cpu"]) / median(times["reference cpu"]), 4)
        out["ratio_of_minima"] = round(min(times["ours"]) / min(times["reference"]), 4)
    return out


def show(out: dict[str, object]) -> None:
    target = f"{out['target_ratio']:.4f}" if out["target_ratio"] else "-"
    limit = f"{out['target_bytes'] / MB:.0f}" if out["target_bytes"] else "-"  # type: ignore[operator]
    print(
        f"{out['name']:26}{out['time_s']:>10}{out.get('reference_s', '-'):>12} {out['reference']:12}"
        f"{out.get('ratio', '-'):>8}{out.get('cpu_ratio', '-'):>8}{target:>9}{out['peak_bytes'] / MB:>9.0f}{limit:>7}",  # type: ignore[operator]
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rows, one repeat, no file")
    parser.add_argument("--row", choices=ROWS, help="one row, as JSON")
    parser.add_argument("--only", nargs="+", choices=ROWS, help="these rows, written to the file")
    parser.add_argument("--time", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--first-call", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        print(json.dumps(time_row(ROWS[options.time])))
        return
    if options.memory:
        print(json.dumps(measure_memory(ROWS[options.memory])))
        return
    if options.first_call:
        print(json.dumps(measure_first_call()))
        return
    if options.row:
        print(json.dumps(result(options.row)))
        return
    print(
        f"{'row':26}{'time s':>10}{'reference s':>12} {'':12}{'ratio':>8}{'cpu':>8}"
        f"{'at most':>9}{'peak MB':>9}{'most':>7}"
    )
    names = ["16k-8-half", "16k-8-complete"] if options.quick else options.only or list(ROWS)
    if options.quick:
        for name in names:
            ROWS[name] = Row(**{**asdict(ROWS[name]), "repeats": 1})
    rows = []
    for name in names:
        rows.append(result(name))
        show(rows[-1])
        if not options.quick:
            write_results("linkage", "python benchmarks/bench_linkage.py", rows)
    with tempfile.TemporaryDirectory() as cache:
        first = in_a_process("-c", f"import os; os.environ['NUMBA_CACHE_DIR'] = {cache!r}; " + _first_call_code())
    print(f"first call ever {first['first_s']} s, second {first['second_s']} s (4,096 x 8, complete)")
    if not options.quick:
        rows.append({"name": "first-call", **first})
        print(write_results("linkage", "python benchmarks/bench_linkage.py", rows))


def _first_call_code() -> str:
    return f"import sys; sys.argv = ['x', '--first-call']; import runpy; sys.path.insert(0, {sys.path[0]!r}); " + (
        f"runpy.run_path({__file__!r}, run_name='__main__')"
    )


if __name__ == "__main__":
    main()
