"""Fewer clusters on a torch device: the matrix of mean distances between them, and the CPU for the last ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ._matrix import Clusters, merge_by_pairs
from ._torch_clusters import Forest, Groups, Points, distances, segment_sum, slices, tie_rounded
from ._torch_plan import Plan

# In place of infinity, whose differences are not numbers: more than any distance, since the vectors are scaled to 1.
FAR = 2.0**990


def mean_distance_matrix(points: Points, forest: Forest, plan: Plan) -> Tensor:
    """Return the (n, n) float64 mean distances between clusters; `FAR` on the diagonal and where no merge may be."""
    n = len(forest)
    matrix = points.x.new_zeros(n, n)
    _fill_triangle(matrix, Groups.of(points, forest), plan)
    for rows in slices(n, min(plan.block // n, n // 16)):
        corner = matrix[rows, rows].triu(1)
        matrix[rows, rows] = corner + corner.T
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
        if forest.rule.at_most:
            matrix[rows].masked_fill_(forest.size[rows, None] + forest.size > forest.rule.at_most, FAR)
    return matrix.fill_diagonal_(FAR)


def _fill_triangle(matrix: Tensor, groups: Groups, plan: Plan) -> None:
    """Add the mean distances (DCPE, Eq. 2) to the zeros above the diagonal; those below are left undefined."""
    start, slot, share = groups.start, groups.slot, groups.share
    x = groups.x[groups.order]
    n_points, alone = len(x), len(x) == len(matrix)
    # In sixteenths at least: the columns that a block need not look at are then nearly half of all.
    for rows in slices(n_points, min(plan.block // n_points, n_points // 16)):
        low, high = int(slot[rows.start]), int(slot[rows.stop - 1]) + 1
        columns = slice(int(start[low]), n_points)
        if alone:  # every cluster is one point
            matrix[rows, columns] = distances(x[rows], x[columns])
            continue
        # Columns come first: the sums over them then run along memory.
        distance = distances(x[columns], x[rows])
        distance.mul_(share[columns, None]).mul_(share[rows])
        by_column = segment_sum(distance, start[low:] - start[low]).T.contiguous()
        bounds = torch.searchsorted(slot[rows], torch.arange(low, high + 1, device=x.device))
        matrix[low:high, low:] += segment_sum(by_column, bounds)


def _weighted_mean(p: Tensor, q: Tensor, p_share: Tensor, q_share: Tensor) -> Tensor:
    """Return ``p_share * p + q_share * q`` (shares sum to 1), never below the lesser, not even by a digit."""
    return torch.where(p <= q, p + (q - p) * q_share, q + (p - q) * p_share)


def merge_matrix(matrix: Tensor, forest: Forest, plan: Plan) -> None:
    """Make the remaining merges on the matrix between clusters, which is overwritten.

    Rows and columns of clusters that are gone are set to `FAR`, and dropped when they are a quarter.
    """
    alive = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    n_alive, n_slow = len(matrix), 0  # clusters, and rounds of few merges
    while n_alive > plan.cpu_at:
        height, nearest = _nearest_in_rows(matrix, plan)
        slots = torch.arange(len(matrix), device=matrix.device)
        mutual = (nearest[nearest] == slots) & (slots < nearest) & (height < FAR) & (height <= forest.bound())
        low = mutual.nonzero().squeeze(1)
        if not len(low):
            return
        gone = _merge_rows(matrix, low, nearest[low], height[low], forest, plan)
        alive[gone] = False
        n_alive -= len(gone)
        n_slow += 64 * len(low) < n_alive <= plan.cpu_most
        slow = n_slow * plan.moved_in_a_round >= n_alive**2
        if 4 * n_alive <= 3 * len(matrix) or n_alive <= plan.cpu_at or slow:
            matrix, alive = _compacted(matrix, alive, forest, plan)
        if slow:
            break
    if n_alive > 1:
        _merge_few(matrix, forest)


def _nearest_in_rows(matrix: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return for each row its least distance, rounded, and the first column that has it once it is rounded."""
    heights, columns = [], []
    for rows in matrix.split(max(1, plan.block // len(matrix))):
        height = tie_rounded(rows.amin(dim=1))
        columns.append((rows <= rounds_to_most(height)[:, None]).view(torch.uint8).argmax(dim=1))
        heights.append(height)
    return torch.cat(heights), torch.cat(columns)


def rounds_to_most(height: Tensor) -> Tensor:
    """Return the largest number that `tie_rounded` turns into `height`, which is rounded itself."""
    # 12 of the 53 bits are dropped: half of the last bit that is kept is 2048 steps up.
    middle = (height.view(torch.int64) + 2048).view(torch.float64)
    below = (height.view(torch.int64) + 2047).view(torch.float64)
    return torch.where(tie_rounded(middle) == height, middle, below)


def _merge_rows(matrix: Tensor, low: Tensor, high: Tensor, height: Tensor, forest: Forest, plan: Plan) -> Tensor:
    """Merge slots `high` into `low` in the matrix and in the forest; return the slots that are out."""
    low_weight, high_weight = forest.weight[low], forest.weight[high]
    low_share, high_share = low_weight / (low_weight + high_weight), high_weight / (low_weight + high_weight)
    gone = forest.merge(low, high, height)

    rows = matrix.new_empty(len(low), len(matrix))
    for some in slices(len(low), plan.block // len(matrix)):
        rows[some] = _weighted_mean(
            matrix[low[some]], matrix[high[some]], low_share[some, None], high_share[some, None]
        )
    # Between two merged clusters, the order of the two means matters in the last digit: take the lesser.
    corner = matrix.new_empty(len(low), len(low))
    for some in slices(len(low), plan.block // len(matrix)):
        corner[some] = _weighted_mean(rows[some][:, low], rows[some][:, high], low_share, high_share)
    rows[:, low] = torch.minimum(corner, corner.T)
    if forest.rule.at_most:
        rows.masked_fill_(forest.size[low, None] + forest.size > forest.rule.at_most, FAR)
    matrix[low] = rows
    matrix[:, low] = rows.T
    matrix[gone] = FAR
    matrix[:, gone] = FAR
    matrix.fill_diagonal_(FAR)
    return gone


def _compacted(matrix: Tensor, alive: Tensor, forest: Forest, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the matrix between the living clusters, and a mask that says that all of them live."""
    slots = alive.nonzero().squeeze(1)
    forest.keep(slots)
    smaller = matrix.new_empty(len(slots), len(slots))
    for some in slices(len(slots), plan.block // len(matrix)):
        smaller[some] = matrix[slots[some]][:, slots]
    return smaller, alive[slots]


def _merge_few(matrix: Tensor, forest: Forest) -> None:
    """Make the remaining merges on one core of the CPU."""
    code, size, weight = (of.cpu().numpy().copy() for of in (forest.representative, forest.size, forest.weight))
    sums = matrix.cpu().numpy() * weight[:, None] * weight * forest.scale
    merge_by_pairs(sums, Clusters(code, size, weight), forest.log, forest.rule)
