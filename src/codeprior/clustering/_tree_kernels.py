# mypy: disallow-untyped-defs=False
"""Compiled loops that make a tree of boxes over cluster means.

A leaf holds WIDTH means, an inner node WIDTH boxes, both with the WIDTH values of one dimension side by side, so that
one vector instruction treats a whole node. Means and boxes are float32 and only decide what is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._kernels import kernel
from ._vectors import WIDTH

FAR = np.float32(1e18)  # where there is no mean: its square is still finite


class Tree(NamedTuple):
    """Slots ``leaf * WIDTH`` and on are in a leaf; children ``node * WIDTH`` and on of the level below in a node."""

    leaves: np.ndarray  # float32 (leaves, E, WIDTH)
    low: np.ndarray  # float32 (nodes of all levels, E, WIDTH): lower corners of the children's boxes
    high: np.ndarray  # float32: upper corners
    level_start: np.ndarray  # int64: nodes of level l begin at ``level_start[l - 1]``; the last level is one node
    scale: float  # of tree coordinates over distances
    margin: float  # by how much a distance in the tree may be too large, ...
    relative: float  # ... and by which factor


@kernel
def select(keys, items, start, stop, middle):
    """Reorder ``keys[start:stop]`` and `items` alike so that no key before `middle` exceeds one from there on."""
    low = start
    high = stop - 1
    while high > low:
        a = keys[low]
        b = keys[(low + high) >> 1]
        c = keys[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i = low
        j = high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                items[i], items[j] = items[j], items[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            return


@kernel
def split_range(coordinates, order, keys, start, stop):
    """Split ``order[start:stop]`` along its widest dimension; return where: a power of two of leaves from `start`."""
    dim = coordinates.shape[1]
    widest = np.float32(-1.0)
    axis = 0
    for p in range(dim):
        low = coordinates[order[start], p]
        high = low
        for i in range(start, stop):
            v = coordinates[order[i], p]
            low = min(low, v)
            high = max(high, v)
        if high - low > widest:
            widest = high - low
            axis = p
    half = WIDTH
    while 2 * half < stop - start:
        half *= 2
    for i in range(start, stop):
        keys[i] = coordinates[order[i], axis]
    select(keys, order, start, stop, start + half)
    return start + half


@kernel
def order_ranges(first, last, coordinates, order, keys, bounds):
    """Order each range ``bounds[i]:bounds[i + 1]``, first <= i < last, so that aligned groups of leaves are boxes."""
    stack = np.empty((64, 2), dtype=np.int64)
    for r in range(first, last):
        stack[0, 0] = bounds[r]
        stack[0, 1] = bounds[r + 1]
        depth = 1
        while depth:
            depth -= 1
            start = stack[depth, 0]
            stop = stack[depth, 1]
            if stop - start <= WIDTH:
                continue
            middle = split_range(coordinates, order, keys, start, stop)
            stack[depth, 0] = start
            stack[depth, 1] = middle
            stack[depth + 1, 0] = middle
            stack[depth + 1, 1] = stop
            depth += 2


@kernel
def fill_leaves(start, stop, coordinates, alive, leaves):
    """Lay out the coordinates of slots for the leaves of the range; slots that are not alive are FAR."""
    n, dim = coordinates.shape
    for leaf in range(start, stop):
        for lane in range(WIDTH):
            slot = leaf * WIDTH + lane
            here = slot < n and alive[slot]
            for p in range(dim):
                leaves[leaf, p, lane] = coordinates[slot, p] if here else FAR


@kernel
def fit_leaf_boxes(start, stop, leaves, low, high):
    """Fill the nodes of the range with the boxes of their leaves; an empty leaf has its box FAR away."""
    dim = leaves.shape[1]
    for node in range(start, stop):
        for lane in range(WIDTH):
            leaf = node * WIDTH + lane
            for p in range(dim):
                a = FAR
                b = -FAR
                if leaf < leaves.shape[0]:
                    for i in range(WIDTH):
                        v = leaves[leaf, p, i]
                        a = min(a, v)
                        b = max(b, v if v < FAR else -FAR)
                low[node, p, lane] = a
                high[node, p, lane] = b if a < FAR else FAR


@kernel
def fit_node_boxes(start, stop, child_start, child_stop, offset, low, high):
    """Fill nodes ``offset + start .. offset + stop`` with the boxes of the nodes of the level below."""
    dim = low.shape[1]
    for i in range(start, stop):
        for lane in range(WIDTH):
            child = child_start + i * WIDTH + lane
            for p in range(dim):
                a = FAR
                b = -FAR
                if child < child_stop:
                    for k in range(WIDTH):
                        if low[child, p, k] < FAR:
                            a = min(a, low[child, p, k])
                            b = max(b, high[child, p, k])
                low[offset + i, p, lane] = a
                high[offset + i, p, lane] = b if a < FAR else FAR
