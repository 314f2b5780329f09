"""Time balanced k-means beside IAR's published script: 16,384 unit vectors of dimension 8 into 128 clusters.

git clone https://github.com/sjtuplayer/IAR /tmp/IAR
python benchmarks/bench_balanced_kmeans.py --original /tmp/IAR     one run of the script for each seed: minutes each
python benchmarks/bench_balanced_kmeans.py                         our side alone; writes nothing

Both start from the same codes. The published function is read from the checkout, run as it is, and not kept here. Its
time is that of one run a seed; ours is the median of five after a warm-up.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import in_a_process, interleaved, median, peak_over_now, write_results

from codeprior.clustering.assignment import cluster_means
from codeprior.clustering.balanced import balanced_kmeans

PUBLISHED_FUNCTIONS = {"mse", "balanced_k_means_clustering"}
N_CODES, N_CLUSTERS = 16384, 128
TARGET_RATIO = 1 / 50  # our time over that of the script, at most
REPEATS = 5


def published_function(script: Path) -> Callable[..., torch.Tensor]:
    """Take the clustering function alone out of IAR's script, whose import would patch torch and load models."""
    tree = ast.parse(script.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in PUBLISHED_FUNCTIONS]
    if {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} != PUBLISHED_FUNCTIONS:
        raise SystemExit(f"{script} does not define {' and '.join(sorted(PUBLISHED_FUNCTIONS))}; is it IAR's script?")
    names: dict[str, object] = {"torch": torch}
    exec(compile(tree, str(script), "exec"), names)
    return names["balanced_k_means_clustering"]  # type: ignore[return-value]


def synthetic_codebook(n_codes: int, seed: int) -> np.ndarray:
    """Unit vectors around 512 directions of very different density, as a trained codebook has them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(512, 8))
    chosen = rng.choice(512, size=n_codes, p=rng.dirichlet(np.full(512, 0.5)))
    vectors = centres[chosen] + rng.normal(size=(n_codes, 8)) * rng.uniform(0.1, 0.6, size=(512, 1))[chosen]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def within_cluster_error(vectors: np.ndarray, labels: np.ndarray) -> float:
    """IAR's own figure: the squared error to the cluster's mean, averaged over dimensions, summed over codes."""
    vectors = vectors.astype(np.float64)
    means = cluster_means(vectors, labels, N_CLUSTERS)
    return float(np.square(vectors - means[labels]).mean(axis=1).sum())


def measure(seed: int, original: Path | None) -> dict[str, Any]:
    """Run both from the same codes; the figures of one row."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    vectors = synthetic_codebook(N_CODES, seed)
    torch.manual_seed(seed)
    init = torch.randperm(N_CODES)[:N_CLUSTERS].numpy()
    balanced_kmeans(vectors[:1024], 8)  # compiles what is not
    peak = peak_over_now(lambda: balanced_kmeans(vectors, N_CLUSTERS, init=init))
    labels = balanced_kmeans(vectors, N_CLUSTERS, init=init)
    times = interleaved({"ours": lambda: balanced_kmeans(vectors, N_CLUSTERS, init=init)}, REPEATS)
    row: dict[str, Any] = {
        "name": f"seed-{seed}",
        "n_codes": N_CODES,
        "n_clusters": N_CLUSTERS,
        "time_s": median(times["ours"]),
        "times_s": times["ours"],
        "cpu_s": median(times["ours cpu"]),
        "peak_bytes": peak,
        "error": round(within_cluster_error(vectors, labels), 4),
        "target_ratio": TARGET_RATIO,
    }
    if original is None:
        return row
    published = published_function(original / "balance_k_means.py")
    found: list[np.ndarray] = []
    printed = io.StringIO()

    def run_published() -> None:
        torch.manual_seed(seed)  # it draws the same permutation
        with contextlib.redirect_stdout(printed):
            found.append(published(torch.from_numpy(vectors), N_CLUSTERS).numpy())

    reference = interleaved({"reference": run_published}, 1)
    return row | {
        "reference": "IAR's script",
        "reference_s": reference["reference"][0],
        "reference_cpu_s": reference["reference cpu"][0],
        "reference_iterations": printed.getvalue().count("Iteration"),
        "reference_error": round(within_cluster_error(vectors, found[0]), 4),
        "ratio": round(row["time_s"] / reference["reference"][0], 5),
        "cpu_ratio": round(row["cpu_s"] / reference["reference cpu"][0], 5),
    }


COLUMNS = ("name", "time_s", "reference_s", "ratio", "target_ratio", "error", "reference_error")


def show(row: dict[str, Any]) -> None:
    print("".join(f"{row.get(column, '-'):>16}" for column in COLUMNS), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, help="a checkout of sjtuplayer/IAR, to measure its script beside ours")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.original)))
        return
    show({column: column for column in COLUMNS})
    given = ["--original", str(options.original)] if options.original else []
    rows = []
    for seed in range(options.seeds):
        rows.append(in_a_process(__file__, "--measure", str(seed), *given))
        show(rows[-1])
    if options.original:
        print(write_results("balanced_kmeans", "python benchmarks/bench_balanced_kmeans.py --original IAR", rows))


if __name__ == "__main__":
    main()
