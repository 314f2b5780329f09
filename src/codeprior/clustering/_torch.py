"""Exact average linkage on torch tensors, for a GPU: few and large steps, whatever the data look like.

The greedy tree is found out of order. Average linkage is reducible: a merge brings no cluster nearer to a third one
than the nearer of its two parts was. Clusters that are each other's nearest may therefore be merged at once, all such
pairs together, round after round, and sorting the merges by height gives the greedy sequence.

1. Equal vectors become one point; they merge first, at height 0 (`merge_duplicates`).
2. While there are too many clusters for a matrix, all merges below some height H are made on the list of the cluster
   pairs that are not farther apart than H (`_merge_below`). The mean over a merged cluster lies between the means over
   its parts, so the list never gains a pair which it did not have for one of the parts. To be on the list a pair of
   clusters must hold a pair of points within H: one pass of float32 matrix products, whose rounding is bounded, finds
   those, and the float64 mean over all cross pairs decides.
3. The rest is merged on the float64 matrix between clusters (`_merge_matrix`).
4. When few clusters are left, or few merge in a round, a chain of nearest neighbours on one CPU core is faster
   (`_merge_chain`).

Everything is indexed by *slots*: clusters in the order of their representatives (their lowest codes). The first of
several equal minima is then the one that the rule for ties asks for. Distances are symmetric to the last bit, so the
lowest pair is always mutual and a round always merges something. Nothing depends on the order in which threads finish:
sums run along fixed segments, and only minima, which have no order, are taken with atomics. Distances are compared, and
become heights, after rounding to 41 bits, as on the CPU.

Legend of shapes: P points (distinct vectors), E width of a vector, n clusters, m merges of a round, L listed pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from codeprior.errors import InputError

from ._duplicates import merge_duplicates
from ._kernels import kernel, tie_rounded
from ._matrix import SizeRule
from ._merges import MergeLog

# In place of infinity, whose differences are not numbers: more than any distance, since the vectors are scaled to 1.
_FAR = 2.0**990
# From this dimension on, distances come from the expansion |x|² + |y|² - 2xy, one matrix product. It loses the digits
# that the squared lengths have in excess: where these are more than about ten bits, the differences are squared.
_MANY_DIMENSIONS = 33
_CLOSE = 3 * 2.0**-10
# Two sums of the same distances in another order differ by less than this factor.
_SLACK = 1 + 1e-9


@dataclass(frozen=True)
class _Plan:
    """Sizes at which the work changes hands; none of them changes which clusters merge.

    They come from counting operations and bytes, not from measurements on a GPU.
    """

    matrix_most: int  # clusters that may be held as a matrix
    chain_at: int = 512  # clusters at which the matrix moves to the CPU
    chain_most: int = 8192  # clusters at which it moves if a round merges under one in 64 of them
    neighbours: float = 32.0  # of a point within the first height H; four times as many for each further one
    block: int = 1 << 22  # matrix elements worked on at once
    listed_most: int = 1 << 24  # pairs of clusters that may be listed

    @classmethod
    def for_device(cls, device: torch.device) -> _Plan:
        if device.type != "cuda":
            return cls(matrix_most=8192)
        free_bytes = _free_bytes(device)
        # Beside the matrix: the rows of a round, at most half of it, and twice what they have in common, a quarter.
        most = min(65536, math.isqrt(free_bytes // 24) // 4096 * 4096)
        # Round numbers, so that a little more or less of free memory does not change a last digit somewhere.
        block = 1 << min(28, max(20, int(math.log2(max(1, free_bytes) / 128))))
        return cls(matrix_most=most, block=block, listed_most=block // 2)


def average_linkage_torch(
    vectors: np.ndarray,
    n_clusters: int = 1,
    *,
    weights: np.ndarray | None = None,
    max_cluster_size: int | None = None,
    strict: bool = False,
    device: str = "cuda",
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
    plan = _Plan.for_device(torch_device)
    try:
        return _linkage(vectors, n_clusters, weights, max_cluster_size, strict, torch_device, plan)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f"device {device!r} has too little memory for {vectors.shape[0]} codes of dimension {vectors.shape[1]}: "
            f"{_free_bytes(torch_device) / 2**30:.1f} GiB are free; free some, or use device 'cpu'"
        ) from error


def _free_bytes(device: torch.device) -> int:
    """Return how much memory torch could still get: free on the device, or held by torch and not in use."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


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
    plan: _Plan,
) -> np.ndarray:
    n_codes = len(vectors)
    log = MergeLog(n_codes, n_clusters)
    if log.wanted == 0:
        return log.linkage()
    bound = max_cluster_size or 0
    rule = SizeRule(at_most=bound) if strict else SizeRule(frozen_above=bound)
    clusters = merge_duplicates(vectors, weights, rule, log).allowed(rule)
    if len(clusters) == 0:
        return log.linkage()
    x, scale = _scaled(torch.as_tensor(vectors[clusters.representatives]).to(device, torch.float64))
    forest = _Forest(
        torch.as_tensor(clusters.representatives).to(device),
        torch.as_tensor(clusters.sizes).to(device),
        torch.as_tensor(clusters.weights).to(device),
        x.new_zeros(len(x)),
        rule,
        log,
        scale,
    )
    points = _Points(x, forest.weight.clone(), torch.arange(len(x), device=device))

    reached = 0.0  # the height up to which all merges are made
    neighbours = plan.neighbours
    while len(forest) > max(1, plan.matrix_most) and reached < forest.bound():
        reached = _merge_below(neighbours, points, forest, plan)
        neighbours = min(4 * neighbours, len(x))
    if len(forest) > 1 and reached < forest.bound():
        _merge_matrix(_mean_distance_matrix(points, forest, plan), forest, plan)
    return log.linkage()


# -- the state: points, clusters, merges --------------------------------------------------------------------------


@dataclass
class _Forest:
    """The clusters that may still merge, in the order of their representatives, and the merges made so far."""

    representative: Tensor  # (n,) int64, ascending: the lowest code
    size: Tensor  # (n,) int64: number of codes
    weight: Tensor  # (n,) float64
    formed: Tensor  # (n,) float64: height of the merge that made it
    rule: SizeRule
    log: MergeLog
    scale: float  # of the heights in the log

    def __len__(self) -> int:
        return len(self.representative)

    def merge(self, low: Tensor, high: Tensor, height: Tensor) -> Tensor:
        """Merge slots `high` into slots `low`, and return the slots that take part in no merge from now on."""
        # A sum in another order may be lower by a last digit; heights never decrease.
        height = torch.maximum(height, torch.maximum(self.formed[low], self.formed[high]))
        low_code, high_code = self.representative[low], self.representative[high]
        self.log.add(low_code.cpu().numpy(), high_code.cpu().numpy(), height.cpu().numpy() * self.scale)
        self.size[low] += self.size[high]
        self.weight[low] += self.weight[high]
        self.formed[low] = height
        too_large = self.rule.at_most or self.rule.frozen_above + 1
        if too_large == 1:
            return high
        return torch.cat([high, low[self.size[low] >= too_large]])

    def keep(self, slots: Tensor) -> None:
        self.representative, self.size = self.representative[slots], self.size[slots]
        self.weight, self.formed = self.weight[slots], self.formed[slots]

    def bound(self) -> float:
        """Return a height above which no merge is wanted."""
        return self.log.bound() / self.scale


@dataclass
class _Points:
    """The distinct vectors, and the slot of the cluster that each is in: -1 where that cluster merges no more."""

    x: Tensor  # (P, E) float64
    weight: Tensor  # (P,) float64
    slot: Tensor  # (P,) int64


def _scaled(x: Tensor) -> tuple[Tensor, float]:
    """Return `x` divided by a power of two, so that no square overflows, and that power."""
    largest = float(x.abs().max())
    scale = 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0
    return x / scale, scale


def _centre(x: Tensor) -> Tensor:
    """Return about the mean row, in so few bits that a subtraction from float32 values is exact but for tiny ones."""
    return (x.mean(dim=0) * 2.0**20).round() / 2.0**20


# -- distances ----------------------------------------------------------------------------------------------------


@dataclass
class _Groups:
    """The points in the order of their slots; those of cluster i are ``order[start[i]:start[i + 1]]``."""

    x: Tensor  # (P, E) float64, not in that order
    order: Tensor  # (P,) int64
    start: Tensor  # (n + 1,) int64
    slot: Tensor  # (P,) int64, ascending
    share: Tensor  # (P,) float64: weight of a point over that of its cluster; exactly 1 for one point alone

    @classmethod
    def of(cls, points: _Points, forest: _Forest) -> _Groups:
        slot, order = points.slot.sort(stable=True)
        start = torch.searchsorted(slot, torch.arange(len(forest) + 1, device=slot.device))
        n_out = int(start[0])  # points of clusters that merge no more come first, their slot is -1
        slot, order = slot[n_out:], order[n_out:]
        return cls(points.x, order, start - n_out, slot, points.weight[order] / forest.weight[slot])


def _expand(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Write ranges ``start[k] .. end[k] - 1`` out, one after another: the range of each entry, and the entries."""
    length = end - start
    owner = torch.repeat_interleave(length)
    position = torch.arange(len(owner), device=start.device) - (length.cumsum(0) - length - start)[owner]
    return owner, position


def _segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum (T, F) `values` over consecutive rows, each sum in the order of the rows: (len(offsets) - 1, F)."""
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, unsafe=True)


def _tie_rounded(distance: Tensor) -> Tensor:
    """Round to 41 significant bits (Veltkamp's splitting), so that distances equal but for rounding are equal."""
    t = distance * 4097.0
    return t - (t - distance)


def _mean_distances(groups: _Groups, a: Tensor, b: Tensor, block: int) -> Tensor:
    """Return the mean distances over all cross pairs (DCPE, Eq. 2) of clusters ``a[l]`` and ``b[l]``, rounded: (L,)."""
    x, order, start, share = groups.x, groups.order, groups.start, groups.share
    length = start[1:] - start[:-1]
    a, b = torch.where(length[a] <= length[b], a, b), torch.where(length[a] <= length[b], b, a)
    pair, row = _expand(start[a], start[a + 1])  # a row: one point of the smaller cluster of a pair
    row_sums = []
    # Rows are cut where their entries fill a block; a row has an entry for each point of the larger cluster.
    filled = length[b][pair].cumsum(0)
    step = max(1, block // x.shape[1])
    n_blocks = -(-int(filled[-1]) // step) if len(filled) else 0
    cuts = [*torch.searchsorted(filled, torch.arange(n_blocks, device=x.device) * step).tolist(), len(row)]
    for first, last in pairwise(cuts):
        if first == last:
            continue
        other = b[pair[first:last]]
        owner, column = _expand(start[other], start[other + 1])
        distance = (x[order[row[first:last]][owner]] - x[order[column]]).square_().sum(dim=1).sqrt_()
        bounds = torch.cat([filled.new_zeros(1), length[other].cumsum(0)])
        row_sums.append(_segment_sum((share[column] * distance)[:, None], bounds) * share[row[first:last], None])
    bounds = torch.cat([start.new_zeros(1), length[a].cumsum(0)])
    return _tie_rounded(_segment_sum(torch.cat(row_sums), bounds).squeeze(1)) if row_sums else x.new_zeros(0)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the float64 distances between the rows of `x` and of `y`, to twelve digits: (len(x), len(y))."""
    if x.shape[1] < _MANY_DIMENSIONS:
        sqdist = x.new_zeros(len(x), len(y))
        for x_column, y_column in zip(x.T, y.T, strict=True):
            difference = x_column[:, None] - y_column
            sqdist.addcmul_(difference, difference)
        return sqdist.sqrt_()

    centre = _centre(y)
    x_moved, y_moved = x - centre, y - centre
    x_sqnorm, y_sqnorm = x_moved.square().sum(dim=1, keepdim=True), y_moved.square().sum(dim=1, keepdim=True)
    left = torch.cat([x_moved, x_sqnorm, torch.ones_like(x_sqnorm)], dim=1)
    right = torch.cat([-2 * y_moved, torch.ones_like(y_sqnorm), y_sqnorm], dim=1)
    distance = left @ right.T
    close = (distance < _CLOSE * y_sqnorm.T).nonzero()
    distance.clamp_(min=0).sqrt_()
    step = max(1, distance.numel() // x.shape[1])  # so many differences take no more room than the distances
    for some in close.split(step):
        i, j = some.T
        distance[i, j] = (x[i] - y[j]).square_().sum(dim=1).sqrt_()
    return distance


# -- many clusters: a list of near pairs --------------------------------------------------------------------------


def _height_to_list(groups: _Groups, forest: _Forest, neighbours: float) -> float:
    """Return a height within which a point has, on average, `neighbours` points of other clusters; inf for all.

    Taken from a sample of points, evenly spread and not drawn. A wrong guess costs time and nothing else.
    """
    n_points = len(groups.order)
    sample = torch.linspace(0, n_points - 1, min(n_points, 64), dtype=torch.float64, device=groups.x.device).long()
    distance = _distances(groups.x[groups.order[sample]], groups.x[groups.order])
    apart = groups.slot[sample, None] != groups.slot
    if forest.rule.at_most:
        size = forest.size[groups.slot]
        apart &= size[sample, None] + size <= forest.rule.at_most
    distance.masked_fill_(~apart, math.inf)
    n_near = round(neighbours * len(sample))
    return float(distance.flatten().topk(n_near, largest=False).values.max()) if n_near < distance.numel() else math.inf


def _near_points(groups: _Groups, size: Tensor, max_sum: int, height: float, block: int) -> Iterator[Tensor]:
    """Yield, some at a time, (2, some) positions i < j of all pairs of points within `height`, and of a few more.

    Float32 matrix products decide. The squared lengths enter reduced by more than all rounding errors together, so
    that what they give is never more than the true squared distance.
    """
    x = groups.x[groups.order] - _centre(groups.x)
    sqnorm = x.square().sum(dim=1, keepdim=True)
    reduced = sqnorm * (1 - 2.1 * (2 * _operand_rounding() + (x.shape[1] + 4) * 2.0**-24))
    left = torch.cat([x, reduced, torch.ones_like(reduced)], dim=1).float()
    right = torch.cat([-2 * x, torch.ones_like(reduced), reduced], dim=1).float().T.contiguous()
    # Points are scaled to 1: the few bits that the centre costs them are below the addend.
    sqheight = (height * (1 + 1e-6) + 2.0**-48) ** 2
    found: list[Tensor] = []
    for rows in _slices(len(x), block // len(x)):
        near = left[rows] @ right[:, rows.start :] <= sqheight
        if max_sum:
            near &= size[groups.slot[rows], None] + size[groups.slot[rows.start :]] <= max_sum
        pairs = near.nonzero().T
        found.append(pairs[:, pairs[0] < pairs[1]] + rows.start)
        # Many blocks give few pairs each, and what follows costs the same for a few as for many.
        if sum(pairs.shape[1] for pairs in found) > block // 64 or rows.stop == len(x):
            yield torch.cat(found, dim=1)
            found.clear()


def _operand_rounding() -> float:
    """Return how much a factor of a float32 matrix product may be rounded, relatively, under torch's settings."""
    return {"highest": 2.0**-24, "high": 2.0**-11}.get(torch.get_float32_matmul_precision(), 2.0**-8)


def _list_pairs(height: float, groups: _Groups, forest: _Forest, plan: _Plan) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return all pairs of clusters a < b within a height, their mean distances, and the height.

    That is `height`, or a lower one if there are too many such pairs.
    """
    n = len(forest)
    keys = groups.order.new_zeros(0)
    distances = groups.x.new_zeros(0)
    for pairs in _near_points(groups, forest.size, forest.rule.at_most, height, plan.block):
        a, b = groups.slot[pairs[0]], groups.slot[pairs[1]]
        key = (a * n + b)[a < b].unique()
        distance = _mean_distances(groups, key // n, key % n, plan.block)
        near = distance <= height * _SLACK
        keys, distances = torch.cat([keys, key[near]]), torch.cat([distances, distance[near]])
        if len(keys) > plan.listed_most:
            height = float(distances.kthvalue(len(distances) // 2).values)
            keys, distances = keys[distances <= height * _SLACK], distances[distances <= height * _SLACK]
    keys, order = keys.sort(stable=True)  # a cluster whose points lie in two blocks gave some of its pairs twice
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    keys, distances = keys[first], distances[order][first]
    return keys // n, keys % n, distances, height


def _mutually_nearest(a: Tensor, b: Tensor, distance: Tensor, n: int) -> Tensor:
    """Return a mask of the listed pairs of clusters that are each other's nearest; of equal ones, the lowest slot."""
    one, other, both = torch.cat([a, b]), torch.cat([b, a]), distance.repeat(2)
    least = distance.new_full((n,), math.inf).scatter_reduce_(0, one, both, "amin")
    other = other.masked_fill_(both > least[one], n)
    nearest = a.new_full((n,), n).scatter_reduce_(0, one, other, "amin")
    return (nearest[a] == b) & (nearest[b] == a)


def _merge_below(neighbours: float, points: _Points, forest: _Forest, plan: _Plan) -> float:
    """Make all merges up to some height, and return it.

    That is the height within which a point has about so many `neighbours`, or a lower one that suffices or lists fewer
    pairs of clusters.
    """
    groups = _Groups.of(points, forest)
    a, b, distance, height = _list_pairs(_height_to_list(groups, forest, neighbours), groups, forest, plan)
    while True:
        height = min(height, forest.bound())
        chosen = _mutually_nearest(a, b, distance, len(forest)) & (distance <= height)
        low, high = a[chosen], b[chosen]
        if not len(low):
            return height
        changed = torch.zeros(len(forest), dtype=torch.bool, device=a.device)
        changed[low] = changed[high] = True
        slot = _merge_and_renumber(low, high, distance[chosen], points, forest)

        fresh = changed[a] | changed[b]
        a, b = slot[a], slot[b]
        kept = ~fresh & (a >= 0) & (b >= 0)
        fresh &= (a >= 0) & (b >= 0) & (a != b)
        n = max(1, len(forest))
        key = (torch.minimum(a, b) * n + torch.maximum(a, b))[fresh].unique()
        fresh_a, fresh_b = key // n, key % n
        if forest.rule.at_most:
            allowed = forest.size[fresh_a] + forest.size[fresh_b] <= forest.rule.at_most
            fresh_a, fresh_b = fresh_a[allowed], fresh_b[allowed]
        fresh_distance = _mean_distances(_Groups.of(points, forest), fresh_a, fresh_b, plan.block)
        a, b = torch.cat([a[kept], fresh_a]), torch.cat([b[kept], fresh_b])
        distance = torch.cat([distance[kept], fresh_distance])
        near = distance <= height * _SLACK
        a, b, distance = a[near], b[near], distance[near]


def _merge_and_renumber(low: Tensor, high: Tensor, height: Tensor, points: _Points, forest: _Forest) -> Tensor:
    """Merge slots `high` into `low`, close the gaps, and return the new slot of each old one, -1 if it is out."""
    alive = torch.ones(len(forest), dtype=torch.bool, device=low.device)
    alive[forest.merge(low, high, height)] = False
    slot = (alive.cumsum(0) - 1).masked_fill_(~alive, -1)
    slot[high] = slot[low]
    points.slot = torch.where(points.slot >= 0, slot[points.slot.clamp(min=0)], -1)
    forest.keep(alive.nonzero().squeeze(1))
    return slot


# -- fewer clusters: a matrix -------------------------------------------------------------------------------------


def _mean_distance_matrix(points: _Points, forest: _Forest, plan: _Plan) -> Tensor:
    """Return the (n, n) float64 mean distances between clusters; `_FAR` on the diagonal and where no merge may be."""
    n = len(forest)
    matrix = points.x.new_zeros(n, n)
    _fill_triangle(matrix, _Groups.of(points, forest), plan)
    for rows in _slices(n, min(plan.block // n, n // 16)):
        corner = matrix[rows, rows].triu(1)
        matrix[rows, rows] = corner + corner.T
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
        if forest.rule.at_most:
            matrix[rows].masked_fill_(forest.size[rows, None] + forest.size > forest.rule.at_most, _FAR)
    return matrix.fill_diagonal_(_FAR)


def _fill_triangle(matrix: Tensor, groups: _Groups, plan: _Plan) -> None:
    """Add the mean distances (DCPE, Eq. 2) to the zeros above the diagonal; those below are left undefined."""
    start, slot, share = groups.start, groups.slot, groups.share
    x = groups.x[groups.order]
    n_points, alone = len(x), len(x) == len(matrix)
    # In sixteenths at least: the columns that a block need not look at are then nearly half of all.
    for rows in _slices(n_points, min(plan.block // n_points, n_points // 16)):
        low, high = int(slot[rows.start]), int(slot[rows.stop - 1]) + 1
        columns = slice(int(start[low]), n_points)
        if alone:  # every cluster is one point
            matrix[rows, columns] = _distances(x[rows], x[columns])
            continue
        # Columns come first: the sums over them then run along memory.
        distance = _distances(x[columns], x[rows])
        distance.mul_(share[columns, None]).mul_(share[rows])
        by_column = _segment_sum(distance, start[low:] - start[low]).T.contiguous()
        bounds = torch.searchsorted(slot[rows], torch.arange(low, high + 1, device=x.device))
        matrix[low:high, low:] += _segment_sum(by_column, bounds)


def _slices(n: int, step: int) -> Iterator[slice]:
    for first in range(0, n, max(1, step)):
        yield slice(first, min(n, first + max(1, step)))


def _weighted_mean(p: Tensor, q: Tensor, p_share: Tensor, q_share: Tensor) -> Tensor:
    """Return ``p_share * p + q_share * q`` (shares sum to 1), never below the lesser, not even by a digit."""
    return torch.where(p <= q, p + (q - p) * q_share, q + (p - q) * p_share)


def _merge_matrix(matrix: Tensor, forest: _Forest, plan: _Plan) -> None:
    """Make the remaining merges on the matrix between clusters, which is overwritten.

    Rows and columns of clusters that are gone are set to `_FAR`, and dropped when they are a quarter.
    """
    alive = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    n_alive = len(matrix)
    while n_alive > plan.chain_at:
        height, nearest = _nearest_in_rows(matrix, plan)
        slots = torch.arange(len(matrix), device=matrix.device)
        mutual = (nearest[nearest] == slots) & (slots < nearest) & (height < _FAR) & (height <= forest.bound())
        low = mutual.nonzero().squeeze(1)
        if not len(low):
            return
        gone = _merge_rows(matrix, low, nearest[low], height[low], forest, plan)
        alive[gone] = False
        n_alive -= len(gone)
        slow = 64 * len(low) < n_alive <= plan.chain_most
        if 4 * n_alive <= 3 * len(matrix) or n_alive <= plan.chain_at or slow:
            matrix, alive = _compacted(matrix, alive, forest, plan)
        if slow:
            break
    if n_alive > 1:
        _merge_chain(matrix, forest)


def _nearest_in_rows(matrix: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Return for each row its least distance, rounded, and the first column that has it once it is rounded."""
    heights, columns = [], []
    for rows in matrix.split(max(1, plan.block // len(matrix))):
        height = _tie_rounded(rows.amin(dim=1))
        columns.append((rows <= _rounds_to_most(height)[:, None]).view(torch.uint8).argmax(dim=1))
        heights.append(height)
    return torch.cat(heights), torch.cat(columns)


def _rounds_to_most(height: Tensor) -> Tensor:
    """Return the largest number that `_tie_rounded` turns into `height`, which is rounded itself."""
    # 12 of the 53 bits are dropped: half of the last bit that is kept is 2048 steps up.
    middle = (height.view(torch.int64) + 2048).view(torch.float64)
    below = (height.view(torch.int64) + 2047).view(torch.float64)
    return torch.where(_tie_rounded(middle) == height, middle, below)


def _merge_rows(matrix: Tensor, low: Tensor, high: Tensor, height: Tensor, forest: _Forest, plan: _Plan) -> Tensor:
    """Merge slots `high` into `low` in the matrix and in the forest; return the slots that are out."""
    low_weight, high_weight = forest.weight[low], forest.weight[high]
    low_share, high_share = low_weight / (low_weight + high_weight), high_weight / (low_weight + high_weight)
    gone = forest.merge(low, high, height)

    rows = matrix.new_empty(len(low), len(matrix))
    for some in _slices(len(low), plan.block // len(matrix)):
        rows[some] = _weighted_mean(
            matrix[low[some]], matrix[high[some]], low_share[some, None], high_share[some, None]
        )
    # Between two merged clusters, the order of the two means matters in the last digit: take the lesser.
    corner = matrix.new_empty(len(low), len(low))
    for some in _slices(len(low), plan.block // len(matrix)):
        corner[some] = _weighted_mean(rows[some][:, low], rows[some][:, high], low_share, high_share)
    rows[:, low] = torch.minimum(corner, corner.T)
    if forest.rule.at_most:
        rows.masked_fill_(forest.size[low, None] + forest.size > forest.rule.at_most, _FAR)
    matrix[low] = rows
    matrix[:, low] = rows.T
    matrix[gone] = _FAR
    matrix[:, gone] = _FAR
    matrix.fill_diagonal_(_FAR)
    return gone


def _compacted(matrix: Tensor, alive: Tensor, forest: _Forest, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Return the matrix between the living clusters, and a mask that says that all of them live."""
    slots = alive.nonzero().squeeze(1)
    forest.keep(slots)
    smaller = matrix.new_empty(len(slots), len(slots))
    for some in _slices(len(slots), plan.block // len(matrix)):
        smaller[some] = matrix[slots[some]][:, slots]
    return smaller, alive[slots]


# -- few clusters: one CPU core -----------------------------------------------------------------------------------


def _merge_chain(matrix: Tensor, forest: _Forest) -> None:
    """Make the remaining merges on the CPU. Whatever is on the CPU already is overwritten."""
    low, high, height = _chain(
        matrix.cpu().numpy(),
        forest.size.cpu().numpy(),
        forest.weight.cpu().numpy(),
        forest.formed.cpu().numpy(),
        forest.rule.frozen_above,
        forest.rule.at_most,
    )
    code = forest.representative.cpu().numpy()
    forest.log.add(code[low], code[high], height * forest.scale)


@kernel
def _chain(matrix, size, weight, formed, frozen_above, at_most):  # type: ignore[no-untyped-def]
    """Merge by a chain of nearest neighbours: each next one is nearer, or as near and lower, so it ends in a pair."""
    n = len(matrix)
    left = np.arange(n)  # slots not yet out, ascending
    n_left = n
    chain = np.empty(n, np.int64)
    n_chain = 0
    lows, highs, heights = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
    n_merges = 0
    while n_left > 1:
        if n_chain == 0:
            chain[0] = left[0]
            n_chain = 1
        end = chain[n_chain - 1]
        row = matrix[end]
        least = _FAR
        for k in range(n_left):
            if row[left[k]] < least:
                least = row[left[k]]
        nearest = -1
        if least < _FAR:
            # Of those that are equal once rounded, the first.
            least = tie_rounded(least)
            for k in range(n_left):
                if tie_rounded(row[left[k]]) == least:
                    nearest = left[k]
                    break
        out_a, out_b = -1, -1
        if nearest < 0:  # it may not merge with anyone, and never will
            n_chain -= 1
            out_a = end
        elif n_chain > 1 and nearest == chain[n_chain - 2]:
            n_chain -= 2
            low, high = min(end, nearest), max(end, nearest)
            low_share = weight[low] / (weight[low] + weight[high])
            high_share = weight[high] / (weight[low] + weight[high])
            size[low] += size[high]
            weight[low] += weight[high]
            formed[low] = max(least, formed[low], formed[high])
            lows[n_merges], highs[n_merges], heights[n_merges] = low, high, formed[low]
            n_merges += 1
            out_a = high
            if size[low] > frozen_above > 0 or size[low] >= at_most > 0:
                out_b = low
            for k in range(n_left):
                i = left[k]
                p, q = matrix[low, i], matrix[high, i]
                mean = p + (q - p) * high_share if p <= q else q + (p - q) * low_share
                if i == low or size[low] + size[i] > at_most > 0:
                    mean = _FAR
                matrix[low, i] = mean
                matrix[i, low] = mean
        else:
            chain[n_chain] = nearest
            n_chain += 1
        if out_a >= 0:
            kept = 0
            for k in range(n_left):
                if left[k] != out_a and left[k] != out_b:
                    left[kept] = left[k]
                    kept += 1
            n_left = kept
    return lows[:n_merges], highs[:n_merges], heights[:n_merges]
