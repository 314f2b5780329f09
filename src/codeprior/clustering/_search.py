"""Average linkage by searching for near clusters: little memory, for dimensions where a tree of boxes prunes well.

The mean distance of two clusters is at least the distance of their means (Jensen), so a tree over the means finds all
clusters that can be nearest, and their distances are then summed instance by instance. A search also keeps a list of
the nearest few clusters and the distance that all others exceed. Merging makes no cluster nearer than the nearer of its
parts, so lists survive merges as lower bounds, and most clusters never search again.
"""

from __future__ import annotations

import numpy as np

from . import _kernels
from ._forest import Forest
from ._matrix import Clusters, SizeRule
from ._members import Members
from ._merges import MergeLog
from ._parallel import RowPool


def merge_by_search(
    members: Members,
    clusters: Clusters,
    log: MergeLog,
    rule: SizeRule,
    pool: RowPool,
    stop_below: int,
    prunes: bool,
) -> tuple[Members, Clusters] | None:
    """Merge until fewer than `stop_below` clusters are left, and return them; None if nothing wanted is left to do."""
    forest = Forest(members, clusters, rule, pool, prunes)
    stale = np.ones(len(forest), dtype=bool)
    fresh_start = True
    n_alive = len(forest)
    while n_alive >= max(stop_below, 2):
        bound = log.bound() * (1 + 1e-9)
        forest.find_nearest(np.flatnonzero(stale), bound, use_lists=not fresh_start)
        slots, near = forest.slots, forest.near
        reachable = np.where(near.distance <= bound, near.nearest, -1)
        partner = np.empty(len(forest), dtype=np.int64)
        if not _kernels.mutual_pairs(reachable, partner):
            if fresh_start or (reachable < 0).all():
                return None
            # Rounding may have left a circle of outdated nearest clusters: search all again, which finds a pair.
            stale, fresh_start = slots.alive.copy(), True
            continue
        fresh_start = False
        kept = np.flatnonzero(partner > np.arange(len(forest)))
        gone = partner[kept]
        swap = slots.size[gone] > slots.size[kept]
        kept, gone = np.where(swap, gone, kept), np.where(swap, kept, gone)
        a, b = slots.representative[kept], slots.representative[gone]
        log.add(np.minimum(a, b), np.maximum(a, b), near.distance[kept])
        forest.merge(kept, gone)
        stale = (partner >= 0) | ((near.nearest >= 0) & (partner[near.nearest] >= 0))
        full = kept[~rule.may_merge(slots.codes[kept])]
        forest.freeze(full)
        near.nearest[gone] = -1
        stale &= slots.alive
        n_alive -= len(kept) + len(full)
        if max(stop_below, 2) <= n_alive < len(forest) * 3 // 8:
            forest, old_slots = forest.rebuilt()
            stale = stale[old_slots]
    remaining, clusters, _ = forest.snapshot()
    return remaining, clusters
