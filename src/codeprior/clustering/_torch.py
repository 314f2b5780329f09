"""Exact average linkage on torch tensors, for a GPU: few and large steps, whatever the data look like.

The greedy tree is found out of order. Average linkage is reducible: a merge brings no cluster nearer to a third one
than the nearer of its two parts was. Clusters that are each other's nearest may therefore be merged at once, all such
pairs together, round after round, and sorting the merges by height gives the greedy sequence.

1. Equal vectors become one point; they merge first, at height 0 (`merge_duplicates`).
2. While there are too many clusters for a matrix, all merges below some height H are made on the list of the cluster
   pairs that are not farther apart than H (`merge_below`). The mean over a merged cluster lies between the means over
   its parts, so the list never gains a pair which it did not have for one of the parts. To be on the list a pair of
   clusters must hold a pair of points within H: one pass of float32 matrix products, whose rounding is bounded, finds
   those, and the float64 mean over all cross pairs decides.
3. The rest is merged on the float64 matrix between clusters (`merge_matrix`).
4. When few clusters are left, or few merge in a round, one CPU core that merges pair after pair is faster.

Everything is indexed by *slots*: clusters in the order of their representatives (their lowest codes). The first of
several equal minima is then the one that the rule for ties asks for. Distances are symmetric to the last bit, so the
lowest pair is always mutual and a round always merges something. Nothing depends on the order in which threads finish:
sums run along fixed segments, and only minima, which have no order, are taken with atomics. Distances are compared, and
become heights, after rounding to 41 bits, as on the CPU.

Legend of shapes: P points (distinct vectors), E width of a vector, n clusters, m merges of a round, L listed pairs.
"""

from __future__ import annotations

import numpy as np
import torch

from codeprior.errors import InputError

from ._duplicates import merge_duplicates
from ._matrix import SizeRule
from ._merges import MergeLog, Progress
from ._torch_clusters import Forest, Points, scaled
from ._torch_list import merge_below
from ._torch_matrix import mean_distance_matrix, merge_matrix
from ._torch_plan import Plan, free_bytes


def average_linkage_torch(
    vectors: np.ndarray,
    n_clusters: int = 1,
    *,
    weights: np.ndarray | None = None,
    max_cluster_size: int | None = None,
    strict: bool = False,
    device: str = "cuda",
    progress: Progress | None = None,
) -> np.ndarray:
    """Merge code vectors bottom-up by mean pairwise Euclidean distance (UPGMA), exactly, on a torch device.

    Parameters
    ----------
    vectors : ndarray of shape (V, E), float32 or float64
        One row a code; finite. Not modified.
    n_clusters : int
        Stop when this many clusters are left; 1 gives the complete tree.
    weights : ndarray of shape (V,), float64, optional
        Positive weight of each code in the mean; 1 by default.
    max_cluster_size : int, optional
        A cluster of more codes than this merges no more.
    strict : bool
        With `max_cluster_size`: make no merge whose result has more codes than that.
    device : str
        Where to compute: "cuda", "cuda:1", or "cpu", which is slow and meant for tests.
    progress : callable, optional
        Called with (what is done, how much so far, how much in all) now and then.

    Returns
    -------
    Z : ndarray of shape (V - reached, 4), float64
        SciPy's layout: left id, right id, height, number of codes. Heights never decrease. `reached` is `n_clusters`,
        or more where `max_cluster_size` allows no further merge.

    Raises
    ------
    InputError
        If there is no such device, or its memory does not suffice.

    Notes
    -----
    Among pairs at equal distance, the one with the lowest (smaller, larger) representative merges first; a cluster's
    representative is its lowest code. Distances are float64. Device memory: about 24 bytes for each entry of
    `vectors`, and two thirds of what is free at most. The same device with the same free memory gives the same Z on
    every run.

    References
    ----------
    .. [1] DCPE (Tang et al., 2025), Eq. 1-2.  .. [2] Bruynooghe 1977, on reducibility and reciprocal neighbours.
    """
    torch_device = _check_device(device)
    plan = Plan.for_device(torch_device)
    try:
        return _linkage(vectors, n_clusters, weights, max_cluster_size, strict, torch_device, plan, progress)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f"device {device!r} has too little memory for {vectors.shape[0]} codes of dimension {vectors.shape[1]}: "
            f"{free_bytes(torch_device) / 2**30:.1f} GiB are free; free some, or use device 'cpu'"
        ) from error


def _check_device(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}") from None
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= n_devices:
        raise InputError(f"device {device!r} is not there: torch sees {n_devices} CUDA devices; use device 'cpu'")
    return found


@torch.no_grad()
def _linkage(
    vectors: np.ndarray,
    n_clusters: int,
    weights: np.ndarray | None,
    max_cluster_size: int | None,
    strict: bool,
    device: torch.device,
    plan: Plan,
    progress: Progress | None = None,
) -> np.ndarray:
    n_codes = len(vectors)
    log = MergeLog(n_codes, n_clusters, progress)
    if log.wanted == 0:
        return log.linkage()
    bound = max_cluster_size or 0
    rule = SizeRule(at_most=bound) if strict else SizeRule(frozen_above=bound)
    clusters = merge_duplicates(vectors, weights, rule, log).allowed(rule)
    if len(clusters) == 0:
        return log.linkage()
    x, scale = scaled(torch.as_tensor(vectors[clusters.representatives]).to(device, torch.float64))
    forest = Forest(
        torch.as_tensor(clusters.representatives).to(device),
        torch.as_tensor(clusters.sizes).to(device),
        torch.as_tensor(clusters.weights).to(device),
        x.new_zeros(len(x)),
        rule,
        log,
        scale,
    )
    points = Points(x, forest.weight.clone(), torch.arange(len(x), device=device))

    reached = 0.0  # the height up to which all merges are made
    neighbours = plan.neighbours
    while len(forest) > max(1, plan.matrix_most) and reached < forest.bound():
        reached = merge_below(neighbours, points, forest, plan)
        neighbours = min(4 * neighbours, len(x))
    if len(forest) > 1 and reached < forest.bound():
        merge_matrix(mean_distance_matrix(points, forest, plan), forest, plan)
    return log.linkage()
