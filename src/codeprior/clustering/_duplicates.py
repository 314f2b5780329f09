"""Equal vectors: they merge first, at height 0, before anything is searched."""

from __future__ import annotations

import numpy as np

from ._matrix import Clusters, SizeRule, singletons
from ._merges import MergeLog
from .distance import duplicate_groups


def merge_duplicates(vectors: np.ndarray, weights: np.ndarray | None, rule: SizeRule, log: MergeLog) -> Clusters:
    """Merge equal vectors at height 0, each into the lowest code that still takes some in; return all clusters.

    As the greedy rule does: lowest representatives first; where the size rule forbids another copy, the next one
    begins a new cluster.
    """
    n_codes = len(vectors)
    first = duplicate_groups(vectors)
    if (first == np.arange(n_codes)).all():
        return singletons(n_codes, weights)
    codes = np.argsort(first, kind="stable")  # group after group, each by ascending code
    group_start = np.flatnonzero(np.diff(first[codes], prepend=-1))
    rank = np.arange(n_codes) - np.repeat(group_start, np.diff(group_start, append=n_codes))
    capacity = rule.at_most or (rule.frozen_above + 1 if rule.frozen_above else n_codes)
    is_head = rank % capacity == 0
    head = np.repeat(codes[is_head], np.diff(np.flatnonzero(is_head), append=n_codes))
    log.add(head[~is_head], codes[~is_head], np.zeros(n_codes - np.count_nonzero(is_head)))

    representatives = np.sort(codes[is_head])
    cluster = np.searchsorted(representatives, head)
    code_weights = None if weights is None else weights[codes]
    return Clusters(
        representatives=representatives,
        sizes=np.bincount(cluster),
        weights=np.bincount(cluster, code_weights).astype(np.float64),
    )
