"""The upper part of a tree of clusters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codeprior.errors import InputError
from codeprior.plots.style import BLACK, BLUE, GREY, PALE, PALETTE, finished, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def dendrogram(
    Z: np.ndarray,
    path: Path | str | None = None,
    *,
    n_clusters: int | None = None,
    n_leaves: int = 40,
    ylabel: str = "distance at the merge",
) -> Figure:
    """Draw the upper part of a complete tree, down to `n_leaves` branches.

    Parameters
    ----------
    Z : ndarray of shape (V - 1, 4)
        A complete linkage matrix in SciPy's layout, with heights that never decrease.
    path : path, optional
        Where to write the picture: .png, .svg or .pdf.
    n_clusters : int, optional
        Mark the cut into so many clusters, and colour them, where the part shown has it.
    n_leaves : int
        Branches to show.
    ylabel : str
        What the heights are, by the method: for average linkage the mean distance of the two clusters.

    Returns
    -------
    Figure
        Heights upwards; under each branch, the number of its codes.

    Raises
    ------
    InputError
        If the tree is not complete, has fewer than two leaves, or its heights decrease.
    """
    Z = np.asarray(Z, dtype=np.float64)
    if Z.ndim != 2 or Z.shape[1] != 4 or not len(Z):
        raise InputError(f"a dendrogram needs a tree of two codes or more, got Z of shape {Z.shape}")
    n_codes = len(Z) + 1
    if Z[-1, 3] != n_codes:
        raise InputError(
            f"a dendrogram needs the complete tree, but the last of {len(Z)} merges makes a cluster of {Z[-1, 3]:.0f} "
            "codes; extract with the complete tree"
        )
    if np.any(np.diff(Z[:, 2]) < 0):
        raise InputError("a dendrogram needs heights that never decrease; those of centroid linkage do")
    n_leaves = min(n_leaves, n_codes)
    upper = Z[n_codes - n_leaves :]
    height_of_cut = None
    if n_clusters is not None and 1 < n_clusters <= n_leaves:
        below = Z[n_codes - n_clusters - 1, 2] if n_clusters < n_codes else 0.0
        height_of_cut = (below + Z[n_codes - n_clusters, 2]) / 2

    with styled():
        from matplotlib.collections import LineCollection

        fig, axes = new_figure(max(6.0, 0.22 * n_leaves + 1.2), 4.6)
        drawn = _upper_tree(Z, n_leaves)
        floor, top = float(upper[0, 2]), float(upper[-1, 2])
        bottom = max(0.0, floor - 0.12 * (top - floor)) if top > floor else 0.0
        lines, colours = _branches(drawn, bottom, height_of_cut)
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=1.5, capstyle="projecting"))
        axes.set_xlim(-0.7, n_leaves - 0.3)
        axes.set_ylim(bottom, top + 0.05 * (top - bottom or 1.0))
        axes.set_xticks(range(n_leaves), [f"{size:,}" for size in drawn.sizes], rotation=90, fontsize=8)
        axes.tick_params(axis="x", length=0)
        shown = (
            f"the last {n_leaves - 1:,} of {n_codes - 1:,} merges" if n_leaves < n_codes else f"{n_codes - 1:,} merges"
        )
        axes.set(title=f"Tree of clusters: {shown}", xlabel="codes in each branch", ylabel=ylabel)
        if height_of_cut is not None:
            axes.axhline(height_of_cut, color=BLACK, linewidth=1, linestyle=(0, (4, 3)))
            text = f"{n_clusters:,}\nclusters"
            axes.annotate(text, (1.01, height_of_cut), xycoords=axes.get_yaxis_transform(), va="center", fontsize=9)
        axes.grid(axis="y", color=PALE, linewidth=0.6)
    return finished(fig, path)


@dataclass
class _Tree:
    """The upper part of a dendrogram: places and heights of its nodes, merges bottom-up, branches left to right."""

    x: dict[int, float]
    height: dict[int, float]
    merges: list[tuple[int, int, int]]
    """(node, left child, right child)"""
    leaves: list[int]
    sizes: list[int]
    """Codes in each of the branches."""


def _upper_tree(Z: np.ndarray, n_leaves: int) -> _Tree:
    """Lay out the last ``n_leaves - 1`` merges; what lies below them is a branch at height 0."""
    n_codes = len(Z) + 1
    root = 2 * n_codes - 2
    first = root + 2 - n_leaves  # the id of the first merge shown
    children = {n_codes + row: (int(Z[row, 0]), int(Z[row, 1])) for row in range(first - n_codes, len(Z))}
    leaves: list[int] = []
    pending = [root]
    while pending:  # not recursive: a chain of merges is as deep as it is long
        node = pending.pop()
        if node in children:
            pending += reversed(children[node])
        else:
            leaves.append(node)
    x = {node: float(place) for place, node in enumerate(leaves)}
    height = dict.fromkeys(leaves, 0.0)
    for node, (a, b) in children.items():
        x[node], height[node] = (x[a] + x[b]) / 2, float(Z[node - n_codes, 2])
    sizes = [1 if node < n_codes else int(Z[node - n_codes, 3]) for node in leaves]
    return _Tree(x, height, [(node, a, b) for node, (a, b) in children.items()], leaves, sizes)


def _branches(tree: _Tree, bottom: float, cut: float | None) -> tuple[list[list[tuple[float, float]]], list[str]]:
    """Give the lines of a dendrogram and their colours: a colour for each cluster below the cut, grey above it."""
    colour = _cluster_colours(tree, cut)
    lines: list[list[tuple[float, float]]] = []
    colours: list[str] = []
    for node, a, b in tree.merges:
        top = tree.height[node]
        lines.append([(tree.x[a], top), (tree.x[b], top)])
        colours.append(colour[node])
        for child in (a, b):
            low = max(tree.height[child], bottom)
            turn = min(max(cut, low), top) if cut is not None and colour[node] != colour[child] else top
            lines += [[(tree.x[child], low), (tree.x[child], turn)], [(tree.x[child], turn), (tree.x[child], top)]]
            colours += [colour[child], colour[node]]
    return lines, colours


def _cluster_colours(tree: _Tree, cut: float | None) -> dict[int, str]:
    if cut is None:
        return dict.fromkeys(tree.height, BLUE)
    colour = dict.fromkeys(tree.height, GREY)
    clusters = []
    parent = {child: node for node, a, b in tree.merges for child in (a, b)}
    for node, height in tree.height.items():
        if height < cut and (node not in parent or tree.height[parent[node]] >= cut):
            clusters.append(node)
    for place, node in enumerate(sorted(clusters, key=tree.x.__getitem__)):  # so that neighbours differ
        colour[node] = PALETTE[place % (len(PALETTE) - 1)]
    for node, a, b in reversed(tree.merges):
        if colour[node] != GREY:
            colour[a] = colour[b] = colour[node]
    return colour
