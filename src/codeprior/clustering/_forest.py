"""All that is known about clusters while near ones are searched, in the order of a tree over their means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from . import _cluster_kernels, _search_kernels
from . import _tree_kernels as tree
from ._matrix import Clusters, SizeRule
from ._members import Means, Members, concatenated_ranges
from ._parallel import RowPool
from ._vectors import LANES, WIDTH

MOMENTS_BELOW = 1 << 16  # clusters: with more, they are small, and a distance costs less than a bound
CALLS = 8  # of a kernel for all its rows: enough for the threads to end together, ...
LEAST_ROWS, MOST_ROWS = 64, 512  # ... long enough to be worth a call, and short: Ctrl-C waits for calls to end
ROOM = 2  # for members, over what they need: those of merged clusters are written anew


class Forest:
    """All that is known about the clusters of a run, one slot each, in the order of a tree over their means."""

    def __init__(
        self,
        members: Members,
        clusters: Clusters,
        rule: SizeRule,
        pool: RowPool,
        prunes: bool,
        means: Means | None = None,
    ) -> None:
        self.members, self.rule, self.pool = members, rule, pool
        self.prunes = prunes  # whether boxes are worth looking at: in many dimensions all of them are near
        self.means = means = means or Means.of(members, clusters)
        n, dim = means.mean.shape
        coordinates = np.clip(means.mean * means.scale, -4.0, 4.0).astype(np.float32)
        self.cluster_of_slot = order = self._tree_order(coordinates)
        size = np.diff(members.bounds)[order]
        self.slots = _cluster_kernels.Slots(
            representative=clusters.representatives[order],
            codes=clusters.sizes[order],
            weight=clusters.weights[order],
            begin=np.cumsum(size) - size,
            size=size,
            mean=means.mean[order],
            coordinates=coordinates[order],
            moments=np.empty((n if prunes and n <= MOMENTS_BELOW else 0, 2 + dim + dim * (dim + 1) // 2)),
            alive=np.ones(n, dtype=bool),
            owner=np.arange(n),
            version=np.zeros(n, dtype=np.int32),
        )
        self.n_placed = len(members.points)
        room = ROOM * self.n_placed
        self.points = _cluster_kernels.Points(
            values=np.zeros(room * dim + LANES, dtype=members.points.dtype),
            weights=np.empty(room),
            rows=np.empty(room, dtype=np.int64),
        )
        rows = concatenated_ranges(members.bounds[:-1][order], size)
        self.points.rows[: len(rows)], self.points.weights[: len(rows)] = rows, members.weights[rows]
        self._share_out(_cluster_kernels.lay_out, n, members.points, rows, self.slots.begin, size, self.points.values)
        self._update_moments(np.arange(n))
        self.near = _search_kernels.Near(
            nearest=np.full(n, -1),
            distance=np.full(n, np.inf),
            slot=np.full((n, _search_kernels.LIST_LENGTH), -1, dtype=np.int32),
            value=np.full((n, _search_kernels.LIST_LENGTH), np.inf),
            version=np.zeros((n, _search_kernels.LIST_LENGTH), dtype=np.int32),
            radius=np.zeros(n),
        )
        self.tree = self._empty_tree(n, dim, means)
        self.fitted = False

    def __len__(self) -> int:
        return len(self.slots.alive)

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

    @staticmethod
    def _empty_tree(n: int, dim: int, means: Means) -> tree.Tree:
        n_leaves = -(-n // WIDTH)
        nodes = [-(-n_leaves // WIDTH)]
        while nodes[-1] > 1:
            nodes.append(-(-nodes[-1] // WIDTH))
        return tree.Tree(
            leaves=np.empty((n_leaves, dim, WIDTH), dtype=np.float32),
            low=np.empty((sum(nodes), dim, WIDTH), dtype=np.float32),
            high=np.empty((sum(nodes), dim, WIDTH), dtype=np.float32),
            level_start=np.concatenate([[0], np.cumsum(nodes)]),
            scale=means.scale,
            # What float32 coordinates, their differences and a float64 mean can be off by: 4 * 2**-24 each, twice.
            margin=float(np.sqrt(dim) * (2.0**-20 + 1e-13 * means.largest * means.scale)),
            relative=1.0 + (dim + 4) * 2.0**-23,
        )

    def _fit(self) -> None:
        """Recompute leaves and boxes, after merges moved means."""
        boxes, slots, start = self.tree, self.slots, self.tree.level_start
        self._share_out(tree.fill_leaves, len(boxes.leaves), slots.coordinates, slots.alive, boxes.leaves)
        self._share_out(tree.fit_leaf_boxes, int(start[1]), boxes.leaves, boxes.low, boxes.high)
        for level in range(1, len(start) - 1):
            nodes = int(start[level + 1] - start[level])
            tree.fit_node_boxes(0, nodes, start[level - 1], start[level], start[level], boxes.low, boxes.high)
        self.fitted = True

    def _update_moments(self, which: np.ndarray) -> None:
        if len(self.slots.moments):
            which = which[self.slots.size[which] >= _search_kernels.MOMENTS_FROM]
            self._share_out(
                _cluster_kernels.cluster_moments, len(which), which, self.slots, self.points, self.means.origin
            )

    def _share_out(self, kernel: Callable[..., object], n_rows: int, *arguments: object) -> None:
        """Run a kernel over rows in calls that are short, and enough for all threads to end together."""
        self.pool.run(kernel, n_rows, min(MOST_ROWS, max(LEAST_ROWS, n_rows // CALLS)), *arguments)

    def find_nearest(self, which: np.ndarray, bound: float, use_lists: bool) -> None:
        """Find the nearest cluster of some slots within `bound`, from their lists where these can prove it."""
        known = (self.slots, self.points, self.near)
        if use_lists:
            failed = np.zeros(len(self), dtype=bool)
            self._share_out(_search_kernels.refresh, len(which), which, bound, self.rule.at_most, *known, failed)
            which = which[failed[which]]
        if not len(which):
            return
        if not self.fitted:
            self._fit()
        queries = (which, bound, self.rule.at_most, self.tree)
        if self.prunes:
            self._share_out(_search_kernels.search, len(which), *queries, *known)
        else:
            self.pool.run(_search_kernels.scan, -(-len(which) // _search_kernels.GROUP), 1, *queries, *known)

    def merge(self, kept: np.ndarray, gone: np.ndarray) -> None:
        """Merge the clusters in slots `gone` into those in slots `kept`."""
        slots, near = self.slots, self.near
        lists = _search_kernels.Near(*(np.empty_like(array[: len(kept)]) for array in near))
        self._share_out(_search_kernels.merge_lists, len(kept), kept, gone, slots, near, lists)
        for array, merged in zip(near[2:], lists[2:], strict=True):
            array[kept] = merged
        parts = np.full((len(self), 2), -1)
        parts[:, 0] = np.arange(len(self))
        _cluster_kernels.merge_slots(kept, gone, slots, self.tree.scale, parts)
        self._move_members(kept, gone, parts)
        self._update_moments(kept)
        self.fitted = False

    def _move_members(self, kept: np.ndarray, gone: np.ndarray, parts: np.ndarray) -> None:
        """Put the members of merged clusters side by side, behind all others if there is room, else with all others."""
        slots = self.slots
        begin, size = slots.begin.copy(), slots.size.copy()
        slots.size[kept] += slots.size[gone]
        slots.size[gone] = 0
        which, moved = kept, self.points
        if self.n_placed + int(slots.size[kept].sum()) > len(moved.rows):
            which, moved = np.flatnonzero(slots.alive), _cluster_kernels.Points(*map(np.empty_like, self.points))
            self.n_placed = 0
        ends = self.n_placed + np.cumsum(slots.size[which])
        slots.begin[which] = ends - slots.size[which]
        self.n_placed = int(ends[-1])
        known = (parts, begin, size, slots, self.points)
        self._share_out(_cluster_kernels.move_members, len(which), which, *known, moved)
        self.points = moved

    def freeze(self, which: np.ndarray) -> None:
        """Take out clusters that merge no more."""
        self.slots.alive[which] = False
        self.near.nearest[which] = -1
        self.fitted = False

    def snapshot(self) -> tuple[Members, Clusters, np.ndarray]:
        """Return what is alive by ascending representative, and the slots in that order."""
        slots = self.slots
        which = np.flatnonzero(slots.alive)
        which = which[np.argsort(slots.representative[which])]
        size = slots.size[which]
        rows = self.points.rows[concatenated_ranges(slots.begin[which], size)]
        members = Members(self.members.points[rows], self.members.weights[rows], np.concatenate([[0], np.cumsum(size)]))
        clusters = Clusters(slots.representative[which], slots.codes[which], slots.weight[which])
        return members, clusters, which

    def rebuilt(self) -> tuple[Forest, np.ndarray]:
        """Return a new forest of what is alive, with all that was found out, and the present slot of each of its."""
        members, clusters, which = self.snapshot()
        means = replace(self.means, mean=self.slots.mean[which])
        new = Forest(members, clusters, self.rule, self.pool, self.prunes, means)
        old = which[new.cluster_of_slot]
        place = np.full(len(self) + 1, -1)
        place[old] = np.arange(len(new))
        listed = self.near.slot[old]
        current = np.append(self.slots.owner, len(self))[listed]
        fresh = (current == listed) & (self.near.version[old] == np.append(self.slots.version, -1)[listed])
        new.near = _search_kernels.Near(
            nearest=place[self.near.nearest[old]],
            distance=self.near.distance[old],
            slot=np.where(listed >= 0, place[current], -1).astype(np.int32),
            value=self.near.value[old],
            version=np.where(fresh, 0, -1).astype(np.int32),
            radius=self.near.radius[old],
        )
        return new, old
