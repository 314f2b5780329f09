"""Time and memory of judging 50,000 samples by 2,048 features against 10,000 real images, beside the usual ways.

    python benchmarks/bench_evaluation.py            # as the papers judge; minutes
    python benchmarks/bench_evaluation.py --n-samples 5000 --n-reference 2000 --repeats 1    # seconds

The peers: precision and recall from `torch.cdist` between batches of 10,000, as torch-fidelity has them; the Fréchet
distance from `numpy.cov` and `scipy.linalg.sqrtm`, as ADM's evaluator and pytorch-fid have it. Both are given the same
features, and their scores stand beside ours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import torch
from harness import in_a_process, interleaved, median, memory_bytes, peak_over_now, write_results

from codeprior.evaluation.adm import precision_and_recall_float16
from codeprior.evaluation.manifold import NEIGHBOURS, precision_and_recall
from codeprior.evaluation.metrics import inception_score
from codeprior.evaluation.statistics import Gaussian, kernel_distance, mean_and_covariance

FEATURES, RANK, CLASSES = 2048, 128, 1008
BATCH = 10_000  # of torch-fidelity

Scores = tuple[float, ...]


def features(n_images: int, seed: int) -> np.ndarray:
    """Rectified features (N, 2048), float32, that vary in some directions much more than in others, as Inception's."""
    basis = np.random.default_rng(0).standard_normal((RANK, FEATURES), dtype=np.float32) / RANK**0.5
    rng = np.random.default_rng(seed)
    strengths = np.linspace(2, 0.1, RANK, dtype=np.float32)
    inner = rng.standard_normal((n_images, RANK), dtype=np.float32) * strengths
    rows = inner @ basis
    rows += 0.2 * rng.standard_normal(rows.shape, dtype=np.float32)
    return np.maximum(rows, 0, out=rows)


def cases(n_samples: int, n_reference: int) -> dict[str, dict[str, Callable[[], Scores]]]:
    """Each score as we make it, and as its peer does."""
    samples, reference = features(n_samples, 1), features(n_reference, 2)
    statistics = Gaussian(*mean_and_covariance(reference))  # as a reference batch comes with

    def frechet() -> Scores:
        return (Gaussian.of(samples).distance(statistics),)

    def kernel() -> Scores:
        return kernel_distance(samples, reference, np.random.default_rng(0))

    def inception() -> Scores:
        logits = torch.from_numpy(samples[:, :CLASSES])
        return (inception_score(logits.softmax(dim=1).numpy(), 5000),)

    return {
        "precision and recall": {
            "ours": lambda: precision_and_recall(reference, samples),
            "torch.cdist": partial(by_cdist, reference, samples),
        },
        "precision and recall, float16": {"ours": lambda: precision_and_recall_float16(reference, samples)},
        "Fréchet distance": {"ours": frechet, "scipy.linalg.sqrtm": partial(by_sqrtm, samples, statistics)},
        "kernel distance, 100 subsets of 1,000": {"ours": kernel},
        "Inception Score, softmax included": {"ours": inception},
    }


def by_cdist(reference: np.ndarray, samples: np.ndarray) -> Scores:
    """Precision and recall by float32 distances between batches, each made twice."""
    real, made = (torch.from_numpy(array).split(BATCH) for array in (reference, samples))

    def radii(sets: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        rows = (torch.cat([torch.cdist(x, y) for y in sets], dim=1) for x in sets)
        return [distances.kthvalue(NEIGHBOURS + 1, dim=1).values for distances in rows]  # the image itself is nearest

    def share(queries: tuple[torch.Tensor, ...], centres: tuple[torch.Tensor, ...]) -> float:
        balls = list(zip(centres, radii(centres), strict=True))
        inside = [torch.stack([(torch.cdist(x, y) <= r).any(dim=1) for y, r in balls]).any(dim=0) for x in queries]
        return float(torch.cat(inside).double().mean())

    return share(made, real), share(real, made)


def by_sqrtm(samples: np.ndarray, statistics: Gaussian) -> Scores:
    """Fréchet distance by a general matrix root."""
    difference = samples.mean(axis=0, dtype=np.float64) - statistics.mean
    covariance = np.cov(samples, rowvar=False)
    root = scipy.linalg.sqrtm(covariance @ statistics.covariance).real
    traces = np.trace(covariance) + np.trace(statistics.covariance) - 2 * np.trace(root)
    return (float(difference @ difference + traces),)


def memory_of(case: str, who: str, sizes: tuple[int, int]) -> dict[str, int]:
    """In a process of its own: the most that a score holds over the features, and all that the process ever held."""
    cases(500, 500)[case][who]()  # libraries load here
    score = cases(*sizes)[case][who]
    return {"peak_bytes": peak_over_now(score), "process_bytes": memory_bytes("VmHWM")}


def measure(case: str, ways: dict[str, Callable[[], Scores]], sizes: tuple[int, int], repeats: int) -> dict[str, Any]:
    values: dict[str, Scores] = {}

    def keep(who: str) -> None:
        values[who] = ways[who]()

    times = interleaved({who: partial(keep, who) for who in ways}, repeats)
    row: dict[str, Any] = {
        "name": f"{case}, {sizes[0]:,} samples",
        "n_samples": sizes[0],
        "n_reference": sizes[1],
        "n_features": FEATURES,
    }
    for who in ways:
        found = {"time_s": median(times[who]), "cpu_s": median(times[f"{who} cpu"]), "value": values[who]}
        found |= in_a_process(__file__, "--memory-of", case, who, "--n-samples", str(sizes[0]), *_reference(sizes))
        row |= found if who == "ours" else {"peer": who} | {f"peer_{key}": value for key, value in found.items()}
    if "peer" in row:
        row["times_faster"] = round(row["peer_time_s"] / row["time_s"], 2)
    return row


def _reference(sizes: tuple[int, int]) -> list[str]:
    return ["--n-reference", str(sizes[1])]


def described(row: dict[str, Any]) -> str:
    line = f"{row['name']:<54} {row['time_s']:8.2f} s {row['peak_bytes'] / 1e6:7,.0f} MB over the features, "
    line += f"{row['process_bytes'] / 1e9:.2f} GB in all"
    if "peer" in row:
        line += f"   {row['times_faster']:.2f} times as fast as {row['peer']} ({row['peer_peak_bytes'] / 1e6:,.0f} MB)"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-samples", type=int, default=50_000)
    parser.add_argument("--n-reference", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = args.n_samples, args.n_reference
    if args.memory_of:
        print(json.dumps(memory_of(*args.memory_of, sizes)))
        return
    small = cases(500, 500)
    rows = []
    for case, ways in cases(*sizes).items():
        for way in small[case].values():
            way()
        rows.append(measure(case, ways, sizes, args.repeats))
        print(described(rows[-1]), flush=True)
    print(write_results("evaluation", "python benchmarks/bench_evaluation.py", rows))


if __name__ == "__main__":
    main()
