"""Average linkage by searching for near clusters: little memory, for dimensions where a tree of boxes prunes well.

The mean distance of two clusters is at least the distance of their means (Jensen), so a tree over the means finds all
clusters that can be nearest, and their distances are then summed instance by instance. A search also keeps a list of
the nearest few clusters and the distance that all others exceed. Merging makes no cluster nearer than the nearer of its
parts, so lists survive merges as lower bounds, and most clusters never search again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from . import _kernels
from . import _tree_kernels as tree
from ._matrix import Clusters, SizeRule
from ._merges import MergeLog
from ._parallel import RowPool

LIST_LENGTH = 4
QUERIES_PER_CALL = 512
MOMENTS_BELOW = 1 << 16  # clusters: with more, clusters are small and a distance costs less than a bound


@dataclass
class Members:
    """The points of the clusters: those of cluster c are ``points[bounds[c]:bounds[c + 1]]``."""

    points: np.ndarray  # (n, E), sorted by cluster
    weights: np.ndarray  # (n,)
    bounds: np.ndarray  # (clusters + 1,)


class Forest:
    """All that is known about the clusters of a run, one slot each, in the order of a tree over their means."""

    def __init__(self, members: Members, clusters: Clusters, rule: SizeRule, pool: RowPool, prunes: bool) -> None:
        self.pool = pool
        self.rule = rule
        self.prunes = prunes  # whether boxes are worth looking at: in many dimensions all of them are near
        self.size_limit = rule.at_most
        points = members.points
        n, dim = len(clusters), points.shape[1]
        self.n_slots = n
        self.origin = np.median(points, axis=0).astype(np.float64)
        counts = np.diff(members.bounds)
        # Means of the clusters about the origin, in float64.
        shifted = points.astype(np.float64) - self.origin
        largest = float(np.abs(shifted).max())
        if len(points) == n:
            mean = shifted
        else:
            mean = np.add.reduceat(shifted * members.weights[:, None], members.bounds[:-1], axis=0)
            mean /= clusters.weights[:, None]
        # Tree coordinates: most of them within one unit, the rest cut off at four. Cutting off is a projection, which
        # makes distances smaller, so they stay lower bounds; and float32 then has room for the many.
        spread = float(np.quantile(np.abs(mean).max(axis=1), 0.95)) or largest or 1.0
        self.scale = 1.0 / spread
        coordinates = np.zeros((n, -(-dim // 4) * 4), dtype=np.float32)  # a multiple of four, as the kernels want
        coordinates[:, :dim] = np.clip(mean * self.scale, -4.0, 4.0)
        order = self._tree_order(coordinates)
        self.cluster_of_slot = order
        self.mean = mean[order]
        self.coordinates = coordinates[order]
        # What float32 coordinates, their differences and a float64 mean can be off by: 4 * 2**-24 each, twice.
        self.margin = np.sqrt(dim) * (2.0**-20 + 1e-13 * largest * self.scale)
        self.relative = 1.0 + (dim + 4) * 2.0**-23

        self.size = counts[order]
        self.weight = clusters.weights[order]
        self.representative = clusters.representatives[order]
        self.codes = clusters.sizes[order]
        position = _concatenated_ranges(members.bounds[:-1][order], self.size)
        self.points = points[position]
        self.point_weights = members.weights[position]
        starts = np.cumsum(self.size) - self.size
        self.slot_of_point = np.repeat(np.arange(n), self.size)
        self.head = starts.copy()
        self.tail = starts + self.size - 1
        self.following = np.arange(1, len(points) + 1)

        self.alive = np.ones(n, dtype=bool)
        self.owner = np.arange(n)
        self.version = np.zeros(n, dtype=np.int32)
        self.nearest = np.full(n, -1, dtype=np.int64)
        self.distance = np.full(n, np.inf)
        self.list_slot = np.full((n, LIST_LENGTH), -1, dtype=np.int32)
        self.list_value = np.full((n, LIST_LENGTH), np.inf)
        self.list_version = np.zeros((n, LIST_LENGTH), dtype=np.int32)
        self.radius = np.zeros(n)
        self.moments = np.empty((0, 0))
        if prunes and n <= MOMENTS_BELOW and len(points) > n:
            self.moments = np.empty((n, 2 + dim + dim * (dim + 1) // 2))
            self._update_moments(np.arange(n))

        self.n_leaves = -(-n // tree.WIDTH)
        self.leaves = np.empty((self.n_leaves, coordinates.shape[1], tree.WIDTH), dtype=np.float32)
        nodes = [-(-self.n_leaves // tree.WIDTH)]
        while nodes[-1] > 1:
            nodes.append(-(-nodes[-1] // tree.WIDTH))
        self.level_start = np.concatenate([[0], np.cumsum(nodes)])
        self.low = np.empty((self.level_start[-1], coordinates.shape[1], tree.WIDTH), dtype=np.float32)
        self.high = np.empty_like(self.low)
        self.fitted = False

    def _tree_order(self, coordinates: np.ndarray) -> np.ndarray:
        n = len(coordinates)
        order = np.arange(n)
        keys = np.empty(n, dtype=np.float32)
        bounds = [0, n]
        for _ in range(5):  # split into up to 32 ranges here, and these in parallel
            cuts = [
                tree.split_range(coordinates, order, keys, start, stop)
                for start, stop in pairwise(bounds)
                if stop - start > 4096
            ]
            bounds = sorted({*bounds, *cuts})
        self.pool.run(tree.order_ranges, len(bounds) - 1, 1, coordinates, order, keys, np.array(bounds))
        return order

    def _update_moments(self, slots: np.ndarray) -> None:
        self.pool.run(
            tree.cluster_moments,
            len(slots),
            2048,
            slots,
            self.points,
            self.point_weights,
            self.following,
            self.origin,
            self.head,
            self.size,
            self.weight,
            self.mean,
            self.moments,
        )

    def _fit(self) -> None:
        """Recompute leaves and boxes, after merges moved means."""
        self.pool.run(tree.fill_leaves, self.n_leaves, 1024, self.coordinates, self.alive, self.leaves)
        nodes = np.diff(self.level_start)
        self.pool.run(tree.fit_leaf_boxes, int(nodes[0]), 256, self.leaves, self.low, self.high)
        for level in range(1, len(nodes)):
            start = self.level_start
            tree.fit_node_boxes(0, int(nodes[level]), start[level - 1], start[level], start[level], self.low, self.high)
        self.fitted = True

    def find_nearest(self, slots: np.ndarray, bound: float, use_lists: bool) -> None:
        """Find the nearest cluster of each slot within `bound`, from its list where that can prove it."""
        common = (
            self.points,
            self.point_weights,
            self.following,
            self.head,
            self.size,
            self.weight,
            self.representative,
        )
        found = (self.nearest, self.distance, self.list_slot, self.list_value, self.list_version, self.radius)
        if use_lists:
            failed = np.zeros(self.n_slots, dtype=bool)
            self.pool.run(
                tree.refresh,
                len(slots),
                4 * QUERIES_PER_CALL,
                slots,
                bound,
                self.size_limit,
                self.owner,
                self.alive,
                self.version,
                self.codes,
                *common,
                *found,
                failed,
            )
            slots = slots[failed[slots]]
        self.n_searched = len(slots)
        self.work = np.zeros(len(slots), dtype=np.int64)
        if not len(slots):
            return
        if not self.fitted:
            self._fit()
        if not self.prunes:
            self.pool.run(
                tree.scan,
                -(-len(slots) // tree.GROUP),
                1,
                slots,
                bound,
                self.size_limit,
                self.leaves,
                self.scale,
                self.margin,
                self.relative,
                self.coordinates,
                self.codes,
                *common,
                self.version,
                *found,
                self.work,
            )
            return
        self.pool.run(
            tree.search,
            len(slots),
            QUERIES_PER_CALL,
            slots,
            bound,
            self.size_limit,
            self.leaves,
            self.low,
            self.high,
            self.level_start,
            self.scale,
            self.margin,
            self.relative,
            self.coordinates,
            self.codes,
            *common,
            self.mean,
            self.moments,
            self.version,
            *found,
            self.work,
        )

    def merge(self, kept: np.ndarray, gone: np.ndarray) -> None:
        """Merge the clusters in slots `gone` into those in slots `kept`."""
        k = len(kept)
        merged_slot = np.empty((k, LIST_LENGTH), dtype=np.int32)
        merged_value = np.empty((k, LIST_LENGTH))
        merged_radius = np.empty(k)
        self.pool.run(
            tree.merge_pairs,
            k,
            4096,
            kept,
            gone,
            self.owner,
            self.weight,
            self.list_slot,
            self.list_value,
            self.radius,
            merged_slot,
            merged_value,
            merged_radius,
        )
        self.list_slot[kept] = merged_slot
        self.list_value[kept] = merged_value
        self.list_version[kept] = -1
        self.radius[kept] = merged_radius
        # The chain of members begins with those of the lower representative: it fixes the order of sums.
        swap = self.representative[gone] < self.representative[kept]
        before, after = np.where(swap, gone, kept), np.where(swap, kept, gone)
        self.following[self.tail[before]] = self.head[after]
        head, tail = self.head[before], self.tail[after]
        self.head[kept], self.tail[kept] = head, tail
        w, v = self.weight[kept][:, None], self.weight[gone][:, None]
        self.mean[kept] = (self.mean[kept] * w + self.mean[gone] * v) / (w + v)
        self.coordinates[kept, : self.mean.shape[1]] = np.clip(self.mean[kept] * self.scale, -4.0, 4.0)
        self.weight[kept] += self.weight[gone]
        self.size[kept] += self.size[gone]
        self.codes[kept] += self.codes[gone]
        self.representative[kept] = np.minimum(self.representative[kept], self.representative[gone])
        self.version[kept] += 1
        self.alive[gone] = False
        self.owner[gone] = kept
        self.owner = self.owner[self.owner]
        self.fitted = False
        if len(self.moments):
            self._update_moments(kept)

    def freeze(self, slots: np.ndarray) -> None:
        """Take out clusters that merge no more."""
        self.alive[slots] = False
        self.nearest[slots] = -1
        self.fitted = False

    def snapshot(self) -> tuple[Members, Clusters, np.ndarray]:
        """Return what is alive by ascending representative, and the slots in that order."""
        slots = np.flatnonzero(self.alive)
        slots = slots[np.argsort(self.representative[slots])]
        rank = np.full(self.n_slots, len(slots))
        rank[slots] = np.arange(len(slots))
        cluster = rank[self.owner[self.slot_of_point]]
        order = np.argsort(cluster, kind="stable")
        order = order[: np.searchsorted(cluster[order], len(slots))]
        bounds = np.concatenate([[0], np.cumsum(self.size[slots])])
        clusters = Clusters(self.representative[slots], self.codes[slots], self.weight[slots])
        return Members(self.points[order], self.point_weights[order], bounds), clusters, slots

    def rebuilt(self) -> tuple[Forest, np.ndarray]:
        """Return a new forest of what is alive, with all that was found out, and the present slot of each of its."""
        members, clusters, slots = self.snapshot()
        new = Forest(members, clusters, self.rule, self.pool, self.prunes)
        old_slot = slots[new.cluster_of_slot]
        place = np.full(self.n_slots + 1, -1)
        place[old_slot] = np.arange(new.n_slots)
        root = np.append(self.owner, self.n_slots)
        new.nearest = place[self.nearest[old_slot]]
        new.distance = self.distance[old_slot]
        listed = self.list_slot[old_slot]
        current = root[listed]
        fresh = (current == listed) & (self.list_version[old_slot] == np.append(self.version, -1)[listed])
        new.list_slot = np.where(listed >= 0, place[current], -1).astype(np.int32)
        new.list_value = self.list_value[old_slot]
        new.list_version = np.where(fresh, 0, -1).astype(np.int32)
        new.radius = self.radius[old_slot]
        return new, old_slot


def merge_by_search(
    members: Members,
    clusters: Clusters,
    log: MergeLog,
    rule: SizeRule,
    pool: RowPool,
    report: Callable[[], None],
    stop_below: int,
    prunes: bool,
) -> tuple[Members, Clusters] | None:
    """Merge until fewer than `stop_below` clusters are left, and return them; None if nothing wanted is left to do."""
    forest = Forest(members, clusters, rule, pool, prunes)
    stale = np.ones(forest.n_slots, dtype=bool)
    fresh_start = True
    n_alive = forest.n_slots
    while n_alive >= max(stop_below, 2):
        bound = log.bound() * (1 + 1e-9)
        forest.find_nearest(np.flatnonzero(stale), bound, use_lists=not fresh_start)
        reachable = np.where(forest.distance <= bound, forest.nearest, -1)
        partner = np.empty(forest.n_slots, dtype=np.int64)
        if not _kernels.mutual_pairs(reachable, partner):
            if fresh_start or (reachable < 0).all():
                return None
            # Rounding may have left a circle of outdated nearest clusters: search all again, which finds a pair.
            stale, fresh_start = forest.alive.copy(), True
            continue
        fresh_start = False
        kept = np.flatnonzero(partner > np.arange(forest.n_slots))
        gone = partner[kept]
        swap = forest.size[gone] > forest.size[kept]
        kept, gone = np.where(swap, gone, kept), np.where(swap, kept, gone)
        a, b = forest.representative[kept], forest.representative[gone]
        log.add(np.minimum(a, b), np.maximum(a, b), forest.distance[kept])
        report()
        forest.merge(kept, gone)
        stale = (partner >= 0) | ((forest.nearest >= 0) & (partner[forest.nearest] >= 0))
        full = kept[~rule.may_merge(forest.codes[kept])]
        forest.freeze(full)
        forest.nearest[gone] = -1
        stale &= forest.alive
        n_alive -= len(kept) + len(full)
        if max(stop_below, 2) <= n_alive < forest.n_slots * 3 // 8:
            forest, old_slots = forest.rebuilt()
            stale = stale[old_slots]
    remaining, clusters, _ = forest.snapshot()
    return remaining, clusters


def _concatenated_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return arange(s, s + n) for each start s and length n, one after the other."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))
