"""Time average linkage on a CUDA device, check it, and write a dated result file.

    python benchmarks/bench_linkage_gpu.py --json benchmarks/results/<date>-<gpu>.json

Vectors are unit vectors in loose groups, as trained codebooks have them; a row marked "uniform" has no groups. A time
is the median of `--repeats` runs after a first one, which compiles and is reported alone. It goes from NumPy array to
NumPy array: copies, duplicates and the sorting of the merges are included. Memory is the most that torch allocated on
the device. Small rows are compared with SciPy's tree, large ones with the definition: the heights of some merges,
spread over all of them, are computed again as means over all pairs of codes.

`--profile` writes, in addition, where the time of one run of each row went, by operation.
`--device cpu` with `--only` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster import hierarchy

from codeprior.clustering import _torch


@dataclass(frozen=True)
class Row:
    """One line of the table: what is clustered, how far, and within which time it is expected on an H200."""

    name: str
    n_codes: int
    dimension: int
    n_clusters: int
    at_most_s: float | None = None
    uniform: bool = False


ROWS = [
    Row("16k-8-complete", 16_384, 8, 1, at_most_s=0.1),
    Row("16k-8-half", 16_384, 8, 8_192),
    Row("16k-256-complete", 16_384, 256, 1),
    Row("65k-8-complete", 65_536, 8, 1),
    Row("262k-8-half", 262_144, 8, 131_072, at_most_s=1.5),
    Row("262k-8-half-uniform", 262_144, 8, 131_072, at_most_s=1.5, uniform=True),
    Row("262k-256-half", 262_144, 256, 131_072, at_most_s=10.0),
    Row("262k-256-half-uniform", 262_144, 256, 131_072, at_most_s=10.0, uniform=True),
    Row("262k-8-complete", 262_144, 8, 1),
    Row("1m-8-half", 1_048_576, 8, 524_288),
]


def synthetic_codebook(row: Row, seed: int = 0) -> np.ndarray:
    """Unit vectors around many directions of very different density, or without any."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(row.n_codes, row.dimension)).astype(np.float32)
    if not row.uniform:
        n_groups = max(2, row.n_codes // 64)
        group = rng.choice(n_groups, size=row.n_codes, p=rng.dirichlet(np.full(n_groups, 0.5)))
        spread = rng.uniform(0.1, 0.6, size=n_groups).astype(np.float32)
        vectors *= spread[group, None]
        vectors += rng.normal(size=(n_groups, row.dimension)).astype(np.float32)[group]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def physical_limit_s(row: Row, peaks: dict[str, float]) -> dict[str, float]:
    """Return lower bounds for the first look at all pairs: the arithmetic in float32, and one read of a float32 each.

    That is what a search without an index must do at least. An index, or a kernel that keeps the products in registers,
    could go below the second.
    """
    n_pairs = row.n_codes * (row.n_codes - 1) / 2
    return {
        "arithmetic_s": 2 * n_pairs * row.dimension / peaks["float32_flop_per_s"],
        "memory_s": 4 * n_pairs / peaks["bytes_per_s"],
    }


def measured_peaks(device: torch.device) -> dict[str, float]:
    """Measure what the device really does: bytes read and written by a copy, float32 products of large matrices."""
    scale = 1 if device.type == "cuda" else 16
    source = torch.rand(2**28 // scale, device=device)
    target = torch.empty_like(source)
    copy_s = median_time(lambda: target.copy_(source), 5, device)
    a = torch.rand(8192 // scale, 8192 // scale, device=device)
    product_s = median_time(lambda: a @ a, 5, device)
    return {
        "bytes_per_s": 2 * source.numel() * source.element_size() / copy_s,
        "float32_flop_per_s": 2 * a.shape[0] ** 3 / product_s,
    }


def median_time(function: Callable[[], Any], repeats: int, device: torch.device) -> float:
    return statistics.median(timed(function, device)[0] for _ in range(repeats + 1))


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return time.perf_counter() - start, result


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def linkage(vectors: np.ndarray, n_clusters: int, device: torch.device) -> np.ndarray:
    # Not through the public door where the device is the CPU: that would be the other implementation.
    return _torch.average_linkage_torch(vectors, n_clusters, device=str(device))


def difference_from_scipy(vectors: np.ndarray, Z: np.ndarray) -> dict[str, float | bool]:
    expected = hierarchy.linkage(vectors.astype(np.float64), "average")[: len(Z)]
    return {
        "same_tree_as_scipy": bool(np.array_equal(Z[:, [0, 1, 3]], expected[:, [0, 1, 3]])),
        "largest_relative_height_error": float(np.max(np.abs(Z[:, 2] / np.maximum(expected[:, 2], 1e-300) - 1))),
    }


def difference_from_definition(vectors: np.ndarray, Z: np.ndarray, n_checked: int = 200) -> dict[str, float | bool]:
    """Compute the heights of some merges again from the codes; skip clusters of more than 4,096 codes."""
    n_codes = len(vectors)

    def codes(cluster: int) -> np.ndarray:
        found, waiting = [], [cluster]
        while waiting:
            c = waiting.pop()
            if c < n_codes:
                found.append(c)
            else:
                waiting.extend(Z[c - n_codes, :2].astype(np.int64).tolist())
        return vectors[found].astype(np.float64)

    worst, n_done = 0.0, 0
    for merge in np.linspace(0, len(Z) - 1, n_checked).astype(np.int64):
        if Z[merge, 3] > 4096:
            continue
        a, b = codes(int(Z[merge, 0])), codes(int(Z[merge, 1]))
        mean = float(np.mean([np.sqrt(((row - b) ** 2).sum(axis=1)).mean() for row in a]))
        worst = max(worst, float(abs(mean - Z[merge, 2]) / max(mean, 1e-300)))
        n_done += 1
    return {
        "heights_never_decrease": bool((np.diff(Z[:, 2]) >= 0).all()),
        "heights_checked": n_done,
        "largest_relative_height_error": worst,
    }


def run(row: Row, device: torch.device, repeats: int, peaks: dict[str, float], check: bool) -> dict[str, Any]:
    vectors = synthetic_codebook(row)
    first_s, Z = timed(lambda: linkage(vectors, row.n_clusters, device), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times, same = [], True
    for _ in range(repeats):
        time_s, again = timed(lambda: linkage(vectors, row.n_clusters, device), device)
        times.append(time_s)
        same &= np.array_equal(Z, again)
    result: dict[str, Any] = {
        "name": row.name,
        "n_codes": row.n_codes,
        "dimension": row.dimension,
        "n_clusters": row.n_clusters,
        "vectors": "uniform on the sphere" if row.uniform else "groups on the sphere",
        "expected_at_most_s": row.at_most_s,
        "time_s": statistics.median(times),
        "times_s": times,
        "first_call_s": first_s,
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "equal_on_every_run": same,
        "limit": physical_limit_s(row, peaks),
    }
    if check:
        compare = difference_from_scipy if row.n_codes <= 16_384 else difference_from_definition
        result["check"] = compare(vectors, Z)
    return result


def profile(row: Row, device: torch.device) -> str:
    vectors = synthetic_codebook(row)
    linkage(vectors, row.n_clusters, device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        linkage(vectors, row.n_clusters, device)
        synchronize(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return f"{row.name}\n{recorded.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)}\n"


def machine(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": np.__version__,
    }


def revision() -> str:
    try:
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def print_row(result: dict[str, Any]) -> None:
    got, most = result["time_s"], result["expected_at_most_s"]
    memory = f"{result['peak_device_bytes'] / 2**30:8.2f}" if result["peak_device_bytes"] else "       -"
    verdict = "" if most is None else "met" if got <= most else "MISSED"
    print(
        f"{result['name']:<24} {got:>9.4f} {most if most is not None else '-':>9} {verdict:<7}{memory} "
        f"{result['first_call_s']:>9.2f}  {result.get('check', '')}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"rows to run, of: {', '.join(r.name for r in ROWS)}")
    parser.add_argument(
        "--revision", default=revision(), help="of the code, where git cannot say (default: %(default)s)"
    )
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison with SciPy or the definition")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a table of operations here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, after each row")
    args = parser.parse_args()

    rows = [row for row in ROWS if not args.only or row.name in args.only]
    device = torch.device(args.device)
    peaks = measured_peaks(device)
    document: dict[str, Any] = {
        "command": f"python benchmarks/bench_linkage_gpu.py --device {args.device} --repeats {args.repeats}",
        "date": datetime.date.today().isoformat(),
        "revision": args.revision,
        "machine": machine(device),
        "measured_peaks": peaks,
        "rows": [],
    }
    print(json.dumps({key: document[key] for key in ("machine", "measured_peaks")}), flush=True)
    print(f"{'row':<24} {'median s':>9} {'at most':>9} {'':<7}{'peak GiB':>8} {'first s':>9}", flush=True)
    for row in rows:
        try:
            result = run(row, device, args.repeats, peaks, not args.no_check)
        except Exception as error:  # one row that fails must not cost the others their result
            print(f"{row.name:<24} failed: {error}", flush=True)
            document["rows"].append({"name": row.name, "error": str(error)})
            continue
        document["rows"].append(result)
        print_row(result)
        if args.json:
            args.json.write_text(json.dumps(document, indent=2) + "\n")
        if args.profile:
            with args.profile.open("a") as file:
                file.write(profile(row, device))


if __name__ == "__main__":
    main()
