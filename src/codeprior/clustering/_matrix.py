"""Average linkage by rounds on a matrix of distance sums: merge all reciprocal nearest pairs, rewrite, repeat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _kernels, _matrix_kernels
from ._merges import MergeLog
from ._parallel import RowPool

# Most clusters that a matrix is made for straight away: it takes 8 bytes for each pair of them, both ways.
LARGEST_MATRIX = 20480
BLOCK_ENTRIES = 2_000_000  # of the next matrix, made before they overwrite the present one
FINISH_BELOW = 256  # clusters: rounds cost more than merging one pair after the other
PAIRS_A_ROUND = 64  # one pair in more clusters, and they do too: one in the middle may be the nearest of all others
PAIR_ENTRIES = 50_000_000  # of the matrix, that a call may go through: Ctrl-C waits for calls to end
CALL_ENTRIES = 500_000  # a millisecond or two: small enough to share out, large enough to be worth a thread


@dataclass
class Clusters:
    """The clusters that may still merge, by ascending representative: the order in which ties are decided."""

    representatives: np.ndarray  # int64: lowest code
    sizes: np.ndarray  # int64: number of codes
    weights: np.ndarray  # float64: sum of instance weights

    def __len__(self) -> int:
        return len(self.representatives)

    def allowed(self, rule: SizeRule) -> Clusters:
        """Return those that may take part in a merge at all."""
        return self.only(rule.may_merge(self.sizes))

    def only(self, which: np.ndarray) -> Clusters:
        """Return some of them, by a mask or by their places."""
        return Clusters(self.representatives[which], self.sizes[which], self.weights[which])

    def merged(self, low: np.ndarray, high: np.ndarray) -> Clusters:
        """Return them after those at `high` went into those at `low`; their own places are still there."""
        sizes, weights = self.sizes.copy(), self.weights.copy()
        sizes[low] += sizes[high]
        weights[low] += weights[high]
        return Clusters(self.representatives, sizes, weights)


@dataclass(frozen=True)
class SizeRule:
    """`max_cluster_size` in two readings; a bound of 0 is none."""

    frozen_above: int = 0  # clusters with more codes than this merge no more
    at_most: int = 0  # no merge makes a cluster with more codes than this

    def may_merge(self, sizes: np.ndarray) -> np.ndarray:
        """Return for each cluster whether it may take part in a merge at all."""
        if self.at_most:
            return sizes < self.at_most
        if self.frozen_above:
            return sizes <= self.frozen_above
        return np.ones(len(sizes), dtype=bool)


def singletons(n_codes: int, weights: np.ndarray | None) -> Clusters:
    """Return a cluster for each code."""
    return Clusters(
        representatives=np.arange(n_codes),
        sizes=np.ones(n_codes, dtype=np.int64),
        weights=np.ones(n_codes) if weights is None else weights,
    )


def merge_by_matrix(
    sums: np.ndarray,
    clusters: Clusters,
    log: MergeLog,
    rule: SizeRule,
    pool: RowPool,
) -> None:
    """Merge until nothing wanted is left. `sums` (n, n) holds w_i w_j D(i, j) and is overwritten.

    Average linkage is reducible: a merged cluster is never nearer than the nearer of its parts, so a mutually nearest
    pair stays one until it merges, and all of them may merge in one round. Only clusters that merged, or whose nearest
    did, search again.
    """
    n = len(clusters)
    memory = sums.reshape(-1)
    nearest = np.full(n, -1, dtype=np.int64)
    distance = np.full(n, np.inf)
    stale = np.ones(n, dtype=bool)
    rows_per_call = max(1, 4_000_000 // max(n, 1))
    found = (clusters.weights, clusters.sizes, rule.at_most, stale, nearest, distance)
    pool.run(_matrix_kernels.nearest_in_matrix, n, rows_per_call, sums, *found)
    while n > FINISH_BELOW:
        partner = np.empty(n, dtype=np.int64)
        if not _kernels.mutual_pairs(nearest, partner):
            if stale.all() or not np.isfinite(distance).any():
                return
            # Rounding may have left a circle of outdated nearest clusters: search all again, which finds a pair.
            stale = np.ones(n, dtype=bool)
            found = (clusters.weights, clusters.sizes, rule.at_most, stale, nearest, distance)
            pool.run(_matrix_kernels.nearest_in_matrix, n, rows_per_call, sums, *found)
            continue
        low = np.flatnonzero(partner > np.arange(n))
        if len(low) * PAIRS_A_ROUND < n:
            break
        high = partner[low]
        log.add(clusters.representatives[low], clusters.representatives[high], distance[low])
        merged = partner >= 0
        outdated = merged.copy()
        outdated[nearest >= 0] |= merged[nearest[nearest >= 0]]
        clusters = clusters.merged(low, high)

        # A cluster whose nearest is beyond the bound has no wanted merge left, nor a place in the matrix.
        keep = rule.may_merge(clusters.sizes) & (distance <= log.bound() * (1 + 1e-9)) & np.isfinite(distance)
        keep[high] = False
        second = np.full(n, -1, dtype=np.int64)
        second[low] = high
        first = np.flatnonzero(keep)
        second = second[first]
        place = np.full(n + 1, -1, dtype=np.int64)
        place[first] = np.arange(len(first))
        nearest, distance, stale = place[nearest[first]], distance[first], outdated[first]
        clusters = clusters.only(first)

        m = len(first)
        single, paired = np.flatnonzero(second < 0), np.flatnonzero(second >= 0)
        columns = [single, first[single], paired, first[paired], second[paired]]
        columns = [indices.astype(np.uint32) for indices in columns]
        block_rows = max(1, BLOCK_ENTRIES // max(m, 1))
        chunk = max(1, CALL_ENTRIES // max(m, 1))
        block = np.empty((min(block_rows, m), m))
        following = memory[: m * m].reshape(m, m)
        for offset in range(0, m, block_rows):
            rows = min(block_rows, m - offset)
            found = (clusters.weights, clusters.sizes, rule.at_most, stale, nearest, distance)
            target = following[offset : offset + rows]
            # Rows of the present matrix that are still needed begin at first[offset]: once the next matrix lags far
            # enough behind, it can be written in place.
            clear = (offset + rows) * m <= first[offset] * n
            rows_out = target if clear else block
            pool.run(_matrix_kernels.merge_rows, rows, chunk, offset, sums, first, second, *columns, rows_out, *found)
            if not clear:
                target[:] = block[:rows]
        sums, n = following, m
    merge_by_pairs(sums, clusters, log, rule)


def merge_by_pairs(sums: np.ndarray, clusters: Clusters, log: MergeLog, rule: SizeRule) -> None:
    """Merge the nearest pair, again and again, until nothing wanted is left; `sums` and `clusters` are overwritten."""
    n = len(clusters)
    alive, stale = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    state = (alive, stale, np.empty(n, dtype=np.int64), np.empty(n), np.empty(n))
    formed = log.heights_of(clusters.representatives)
    most = max(1, min(n, PAIR_ENTRIES // max(n, 1)))
    low, high, heights = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64), np.empty(most)
    made = most
    while made == most:
        rules = (rule.frozen_above, rule.at_most, log.bound() * (1 + 1e-9))
        of_clusters = (clusters.weights, clusters.sizes, formed)
        made = _matrix_kernels.merge_pairs(sums, *of_clusters, *rules, state, low, high, heights)
        log.add(clusters.representatives[low[:made]], clusters.representatives[high[:made]], heights[:made])
