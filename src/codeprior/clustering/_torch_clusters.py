"""Points, clusters and distances as torch tensors; the legend of shapes is in `_torch`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ._matrix import SizeRule
from ._merges import MergeLog

# From this dimension on, distances come from the expansion |x|² + |y|² - 2xy, one matrix product. It loses the digits
# that the squared lengths have in excess: where these are more than about ten bits, the differences are squared.
_MANY_DIMENSIONS = 33
_CLOSE = 3 * 2.0**-10


@dataclass
class Forest:
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
class Points:
    """The distinct vectors, and the slot of the cluster that each is in: -1 where that cluster merges no more."""

    x: Tensor  # (P, E) float64
    weight: Tensor  # (P,) float64
    slot: Tensor  # (P,) int64


def scaled(x: Tensor) -> tuple[Tensor, float]:
    """Return `x` divided by a power of two, so that no square overflows, and that power."""
    largest = float(x.abs().max())
    scale = 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0
    return x / scale, scale


def centre(x: Tensor) -> Tensor:
    """Return about the mean row, in so few bits that a subtraction from float32 values is exact but for tiny ones."""
    return (x.mean(dim=0) * 2.0**20).round() / 2.0**20


@dataclass
class Groups:
    """The points in the order of their slots; those of cluster i are ``order[start[i]:start[i + 1]]``."""

    x: Tensor  # (P, E) float64, not in that order
    order: Tensor  # (P,) int64
    start: Tensor  # (n + 1,) int64
    slot: Tensor  # (P,) int64, ascending
    share: Tensor  # (P,) float64: weight of a point over that of its cluster; exactly 1 for one point alone

    @classmethod
    def of(cls, points: Points, forest: Forest) -> Groups:
        slot, order = points.slot.sort(stable=True)
        start = torch.searchsorted(slot, torch.arange(len(forest) + 1, device=slot.device))
        n_out = int(start[0])  # points of clusters that merge no more come first, their slot is -1
        slot, order = slot[n_out:], order[n_out:]
        return cls(points.x, order, start - n_out, slot, points.weight[order] / forest.weight[slot])


def expand(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Write ranges ``start[k] .. end[k] - 1`` out, one after another: the range of each entry, and the entries."""
    length = end - start
    owner = torch.repeat_interleave(length)
    position = torch.arange(len(owner), device=start.device) - (length.cumsum(0) - length - start)[owner]
    return owner, position


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum (T, F) `values` over consecutive rows, each sum in the order of the rows: (len(offsets) - 1, F)."""
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, unsafe=True)


def tie_rounded(distance: Tensor) -> Tensor:
    """Round to 41 significant bits (Veltkamp's splitting), so that distances equal but for rounding are equal."""
    t = distance * 4097.0
    return t - (t - distance)


def mean_distances(groups: Groups, a: Tensor, b: Tensor, block: int) -> Tensor:
    """Return the mean distances over all cross pairs (DCPE, Eq. 2) of clusters ``a[l]`` and ``b[l]``, rounded: (L,)."""
    x, order, start, share = groups.x, groups.order, groups.start, groups.share
    length = start[1:] - start[:-1]
    a, b = torch.where(length[a] <= length[b], a, b), torch.where(length[a] <= length[b], b, a)
    pair, row = expand(start[a], start[a + 1])  # a row: one point of the smaller cluster of a pair
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
        owner, column = expand(start[other], start[other + 1])
        distance = (x[order[row[first:last]][owner]] - x[order[column]]).square_().sum(dim=1).sqrt_()
        bounds = torch.cat([filled.new_zeros(1), length[other].cumsum(0)])
        row_sums.append(segment_sum((share[column] * distance)[:, None], bounds) * share[row[first:last], None])
    bounds = torch.cat([start.new_zeros(1), length[a].cumsum(0)])
    return tie_rounded(segment_sum(torch.cat(row_sums), bounds).squeeze(1)) if row_sums else x.new_zeros(0)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the float64 distances between the rows of `x` and of `y`, to twelve digits: (len(x), len(y))."""
    if x.shape[1] < _MANY_DIMENSIONS:
        sqdist = x.new_zeros(len(x), len(y))
        for x_column, y_column in zip(x.T, y.T, strict=True):
            difference = x_column[:, None] - y_column
            sqdist.addcmul_(difference, difference)
        return sqdist.sqrt_()

    origin = centre(y)
    x_moved, y_moved = x - origin, y - origin
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


def slices(n: int, step: int) -> Iterator[slice]:
    for first in range(0, n, max(1, step)):
        yield slice(first, min(n, first + max(1, step)))
