"""What the benchmarks share: a process for each case, interleaved timings, peak memory, a dated result file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def interleaved(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return `repeats` times in seconds of each function, called in turn so that all see the same machine.

    Under a function's name its wall times, under "<name> cpu" the processor time of all its threads: on a machine that
    others use too, that is the steadier figure.
    """
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, function in functions.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            function()
            times.setdefault(name, []).append(round(time.perf_counter() - start, 4))
            times.setdefault(f"{name} cpu", []).append(round(time.process_time() - cpu_start, 4))
    return times


def memory_bytes(field: str) -> int:
    """Return a memory figure of this process: VmRSS is what it holds now, VmHWM the most that it ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_over_now(function: Callable[[], Any]) -> int:
    """Call `function` and return how far memory rose above what the process held, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory_bytes("VmRSS")
    function()
    return max(0, memory_bytes("VmHWM") - before)


def in_a_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run ``script arguments`` in a fresh interpreter and return the JSON object of its last line."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def machine() -> dict[str, Any]:
    """Return what a reader needs to know about this machine and its libraries."""
    import numba
    import numpy
    import scipy

    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "scipy": scipy.__version__,
        "revision": revision.stdout.strip(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def write_results(name: str, command: str, rows: list[dict[str, Any]]) -> Path:
    """Put the rows of a benchmark into today's file of this kind of machine, in place of older ones of their names."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today().isoformat()}-cpu{len(os.sched_getaffinity(0))}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    before = {row.get("name"): row for row in results.get(name, {}).get("rows", [])}
    merged = before | {row.get("name"): row for row in rows}
    results[name] = {"command": command, "machine": machine(), "rows": list(merged.values())}
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def median(times: list[float]) -> float:
    return round(statistics.median(times), 4)


def newest(benchmark: str, files: str = "*.json") -> tuple[Path, dict[str, Any]] | None:
    """The newest result file, of those of a pattern, that holds a benchmark, and what it holds of it."""
    for path in sorted(RESULTS.glob(files), reverse=True):
        results = json.loads(path.read_text())
        if benchmark in results:
            return path, results[benchmark]
    return None


def publish(page: Path, updated: str) -> None:
    """Write a page that has tables of results; with --check say instead if they are not those of the newest ones."""
    if "--check" not in sys.argv:
        page.write_text(updated)
    elif updated != page.read_text():
        script = Path(sys.argv[0]).name
        raise SystemExit(f"the tables of {page} are not those of the newest results; run benchmarks/{script}")
