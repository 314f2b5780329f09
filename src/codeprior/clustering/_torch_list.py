"""Many clusters on a torch device: all merges below a height, on the list of the cluster pairs within it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ._torch_clusters import Forest, Groups, Points, centre, distances, mean_distances, slices
from ._torch_plan import Plan

# Two sums of the same distances in another order differ by less than this factor.
_SLACK = 1 + 1e-9


def _height_to_list(groups: Groups, forest: Forest, neighbours: float) -> float:
    """Return a height within which a point has, on average, `neighbours` points of other clusters; inf for all.

    Taken from a sample of points, evenly spread and not drawn. A wrong guess costs time and nothing else.
    """
    n_points = len(groups.order)
    sample = torch.linspace(0, n_points - 1, min(n_points, 64), dtype=torch.float64, device=groups.x.device).long()
    distance = distances(groups.x[groups.order[sample]], groups.x[groups.order])
    apart = groups.slot[sample, None] != groups.slot
    if forest.rule.at_most:
        size = forest.size[groups.slot]
        apart &= size[sample, None] + size <= forest.rule.at_most
    distance.masked_fill_(~apart, math.inf)
    n_near = round(neighbours * len(sample))
    return float(distance.flatten().topk(n_near, largest=False).values.max()) if n_near < distance.numel() else math.inf


def near_points(groups: Groups, size: Tensor, max_sum: int, height: float, block: int) -> Iterator[Tensor]:
    """Yield, some at a time, (2, some) positions i < j of all pairs of points within `height`, and of a few more.

    Float32 matrix products decide. The squared lengths enter reduced by more than all rounding errors together, so
    that what they give is never more than the true squared distance.
    """
    x = groups.x[groups.order] - centre(groups.x)
    sqnorm = x.square().sum(dim=1, keepdim=True)
    reduced = sqnorm * (1 - 2.1 * (2 * _operand_rounding() + (x.shape[1] + 4) * 2.0**-24))
    left = torch.cat([x, reduced, torch.ones_like(reduced)], dim=1).float()
    right = torch.cat([-2 * x, torch.ones_like(reduced), reduced], dim=1).float().T.contiguous()
    # Points are scaled to 1: the few bits that the centre costs them are below the addend.
    sqheight = (height * (1 + 1e-6) + 2.0**-48) ** 2
    found: list[Tensor] = []
    for rows in slices(len(x), block // len(x)):
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


def _list_pairs(height: float, groups: Groups, forest: Forest, plan: Plan) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return all pairs of clusters a < b within a height, their mean distances, and the height.

    That is `height`, or a lower one if there are too many such pairs.
    """
    n = len(forest)
    keys = groups.order.new_zeros(0)
    distances = groups.x.new_zeros(0)
    for pairs in near_points(groups, forest.size, forest.rule.at_most, height, plan.block):
        a, b = groups.slot[pairs[0]], groups.slot[pairs[1]]
        key = (a * n + b)[a < b].unique()
        distance = mean_distances(groups, key // n, key % n, plan.block)
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


def merge_below(neighbours: float, points: Points, forest: Forest, plan: Plan) -> float:
    """Make all merges up to some height, and return it.

    That is the height within which a point has about so many `neighbours`, or a lower one that suffices or lists fewer
    pairs of clusters.
    """
    groups = Groups.of(points, forest)
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
        fresh_distance = mean_distances(Groups.of(points, forest), fresh_a, fresh_b, plan.block)
        a, b = torch.cat([a[kept], fresh_a]), torch.cat([b[kept], fresh_b])
        distance = torch.cat([distance[kept], fresh_distance])
        near = distance <= height * _SLACK
        a, b, distance = a[near], b[near], distance[near]


def _merge_and_renumber(low: Tensor, high: Tensor, height: Tensor, points: Points, forest: Forest) -> Tensor:
    """Merge slots `high` into `low`, close the gaps, and return the new slot of each old one, -1 if it is out."""
    alive = torch.ones(len(forest), dtype=torch.bool, device=low.device)
    alive[forest.merge(low, high, height)] = False
    slot = (alive.cumsum(0) - 1).masked_fill_(~alive, -1)
    slot[high] = slot[low]
    points.slot = torch.where(points.slot >= 0, slot[points.slot.clamp(min=0)], -1)
    forest.keep(alive.nonzero().squeeze(1))
    return slot
