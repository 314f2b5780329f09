"""Time balanced k-means beside IAR's published script: 16,384 unit vectors of dimension 8 into 128 clusters.

    git clone https://github.com/sjtuplayer/IAR /tmp/IAR
    python benchmarks/bench_balanced_kmeans.py /tmp/IAR/balance_k_means.py --json balanced.json

Both start from the same codes. The published function is read from the file given, run as it is, and not kept here.
Its time is that of one run a seed (minutes); ours is the median of five runs after a warm-up.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from codeprior.clustering.kmeans import balanced_kmeans, cluster_means

PUBLISHED_FUNCTIONS = {"mse", "balanced_k_means_clustering"}


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


def within_cluster_error(vectors: np.ndarray, labels: np.ndarray, n_clusters: int) -> float:
    """IAR's own figure: the squared error to the cluster's mean, averaged over dimensions, summed over codes."""
    vectors = vectors.astype(np.float64)
    means = cluster_means(vectors, labels, n_clusters)
    return float(np.square(vectors - means[labels]).mean(axis=1).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path, help="balance_k_means.py of a checkout of sjtuplayer/IAR")
    parser.add_argument("--n-codes", type=int, default=16384)
    parser.add_argument("--n-clusters", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    published = published_function(args.script)
    balanced_kmeans(synthetic_codebook(256, 0), 8, seed=0)  # compiles
    rows = []
    print(f"{'seed':>4} {'published s':>12} {'ours s':>8} {'ratio':>7} {'published error':>16} {'our error':>10}")
    for seed in range(args.seeds):
        vectors = synthetic_codebook(args.n_codes, seed)
        torch.manual_seed(seed)
        init = torch.randperm(args.n_codes)[: args.n_clusters].numpy()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            labels = balanced_kmeans(vectors, args.n_clusters, init=init, n_threads=args.threads)
            times.append(time.perf_counter() - start)
        torch.manual_seed(seed)  # the published function draws the same permutation
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            published_labels = published(torch.from_numpy(vectors), args.n_clusters).numpy()
        published_time_s = time.perf_counter() - start
        row = {
            "seed": seed,
            "n_codes": args.n_codes,
            "n_clusters": args.n_clusters,
            "threads": args.threads,
            "published_time_s": published_time_s,
            "published_iterations": printed.getvalue().count("Iteration"),
            "time_s": statistics.median(times),
            "ratio": published_time_s / statistics.median(times),
            "published_error": within_cluster_error(vectors, published_labels, args.n_clusters),
            "error": within_cluster_error(vectors, labels, args.n_clusters),
        }
        rows.append(row)
        print(
            f"{seed:>4} {row['published_time_s']:>12.1f} {row['time_s']:>8.3f} {row['ratio']:>7.0f} "
            f"{row['published_error']:>16.3f} {row['error']:>10.3f}",
            flush=True,
        )
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
        document = {"machine": machine, "torch": torch.__version__, "rows": rows}
        args.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
