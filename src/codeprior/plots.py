"""Pictures of clusterings, images and losses, as PNG or SVG: arrays in, a figure out.

Matplotlib is imported by the first picture, without pyplot: no window, no state that two pictures share, and the same
bytes for the same data. Colours are those of Okabe and Ito, which people with any colour vision tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codeprior.artifact import write_atomically
from codeprior.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from codeprior.clustering.curve import Curve

BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#222222",
)
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK)
GREY, PALE = "#666666", "#D9D9D9"

FORMATS = (".png", ".svg", ".pdf")
DPI = 150

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": BLACK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "codeprior",  # else the ids of an SVG differ from run to run
    "svg.fonttype": "path",
}


def cluster_sizes(
    labels: Mapping[str, np.ndarray],
    path: Path | str | None = None,
    *,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw how large the clusters of several clusterings are (DCPE's Fig. 4).

    Parameters
    ----------
    labels : mapping of str to ndarray of shape (V,), int
        Labels by the name of the method, at most seven.
    path : path, optional
        Where to write the picture: .png, .svg or .pdf.
    colours : mapping of str to str, optional
        Colour of each name; the palette's in their order by default.

    Returns
    -------
    Figure
        Left: how many clusters have which size. Right: the sizes themselves, largest cluster first.
    """
    _check_names(labels)
    sizes = {name: np.sort(np.unique(np.asarray(x), return_counts=True)[1])[::-1] for name, x in labels.items()}
    largest = max(int(s[0]) for s in sizes.values())
    with _styled():
        fig, (left, right) = _figure(9.6, 4.2, 1, 2)
        edges = _size_bins(min(int(s[-1]) for s in sizes.values()), largest)
        tops = []
        for (name, size), default in zip(sizes.items(), PALETTE, strict=False):
            colour = (colours or {}).get(name) or default
            counts, _ = np.histogram(size, edges)
            tops.append(counts.max())
            left.stairs(counts, edges, fill=True, color=colour, alpha=0.22)
            left.stairs(counts, edges, color=colour, linewidth=1.8, label=name)
            ranks = np.arange(1, len(size) + 1)
            right.step(ranks, size, where="mid", color=colour, label=name)
        first = next(iter(sizes.values()))
        mean = first.sum() / len(first)
        left.set(title="Clusters of each size", xlabel="codes in a cluster", ylabel="clusters")
        left.set_ylim(0, 1.08 * max(tops))
        left.yaxis.get_major_locator().set_params(integer=True)
        _thousands(left.yaxis)
        if largest > _EVERY_SIZE:
            _log_axis(left.xaxis, "x", left)
        else:
            left.set_xticks(_whole_ticks(largest))
        left.set_xlim(edges[0], edges[-1])
        right.axhline(mean, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        right.annotate(
            f"mean {mean:,.3g}",
            (1, mean),
            xycoords=right.get_yaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=GREY,
            fontsize=9,
        )
        right.set(title="From the largest cluster to the smallest", xlabel="rank", ylabel="codes in the cluster")
        _log_axis(right.xaxis, "x", right)
        _log_axis(right.yaxis, "y", right)
        right.set_xlim(1, max(len(s) for s in sizes.values()) * 1.1)
        right.set_ylim(0.8, largest * 2)
        _legend(right, loc="upper right")
        for axes in (left, right):
            _grid(axes)
    return _finish(fig, path)


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

    with _styled():
        from matplotlib.collections import LineCollection

        fig, axes = _figure(max(6.0, 0.22 * n_leaves + 1.2), 4.6)
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
    return _finish(fig, path)


def curves_over_k(
    curves: Mapping[str, Curve | None], path: Path | str | None = None, *, n_clusters: int | None = None
) -> Figure:
    """Draw what each number of clusters costs and keeps, for one or several trees.

    Parameters
    ----------
    curves : mapping of str to Curve or None
        From `codeprior.clustering.curve.tree_curve`, by name, at most seven. None, for what has no tree, keeps its
        colour: names have the same as in `cluster_sizes`.
    path : path, optional
        Where to write the picture: .png, .svg or .pdf.
    n_clusters : int, optional
        Mark this number.

    Returns
    -------
    Figure
        The largest cluster and clusters of a single code over the number of clusters (logarithmic), and, where a curve
        has them, the mean distance within clusters and the entropy of the induced distribution.
    """
    _check_names(curves)
    coloured = [(name, curve, colour) for (name, curve), colour in zip(curves.items(), PALETTE, strict=False) if curve]
    drawn = [curve for _, curve, _ in coloured]
    panels = [
        ("mean_distance", "Mean distance within clusters", "distance"),
        ("largest", "Largest cluster", "codes"),
        ("singletons", "Clusters of a single code", "clusters"),
        ("entropy_nats", "Entropy of the clusters' usage", "nats"),
    ]
    panels = [panel for panel in panels if any(getattr(curve, panel[0]) is not None for curve in drawn)]
    rows = 2 if len(panels) == 4 else 1
    with _styled():
        fig, axes_of = _figure(9.6 if rows == 2 else 12, 3.2 * rows, rows, len(panels) // rows, sharex=True)
        for axes, (field, title, unit) in zip(np.ravel(axes_of), panels, strict=True):
            for name, curve, colour in coloured:
                values = getattr(curve, field)
                if values is not None:
                    axes.plot(curve.n_clusters, values, color=colour, label=name)
            axes.set(title=title, ylabel=unit)
            _log_axis(axes.xaxis, "x", axes)
            if field == "largest":
                _log_axis(axes.yaxis, "y", axes)
                axes.set_ylim(0.8, None)
            else:
                axes.set_ylim(0, None)
                _thousands(axes.yaxis)
            fewest = min(int(curve.n_clusters[0]) for curve in drawn)
            most = max(int(curve.n_clusters[-1]) for curve in drawn)
            axes.set_xlim(fewest, max(most, fewest + 1))
            _grid(axes)
            if field == "singletons" and len(curves) > 1:
                _legend(axes, loc="upper left")
            if n_clusters is not None:
                axes.axvline(n_clusters, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for axes in np.atleast_2d(axes_of)[-1]:
            axes.set_xlabel("clusters")
        first = np.ravel(axes_of)[0]
        if n_clusters is not None:
            first.annotate(
                f"{n_clusters:,} ",
                (n_clusters, 1),
                xycoords=first.get_xaxis_transform(),
                ha="right",
                va="top",
                color=GREY,
                fontsize=9,
            )
    return _finish(fig, path)


def image_grid(
    images: np.ndarray,
    row_labels: Sequence[str],
    path: Path | str | None = None,
    *,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    pixels: int = 64,
) -> Figure:
    """Lay images out in labelled rows, each image pixel an exact square of picture pixels.

    Parameters
    ----------
    images : ndarray of shape (R, n, H, W, C) or (R * n, H, W, C), uint8
        Images row by row, with one or three channels.
    row_labels : sequence of R str
        What each row shows.
    path : path, optional
        Where to write the picture: .png, .svg or .pdf.
    column_labels : sequence of n str, optional
        What each column shows.
    title : str, optional
        A line above all.
    pixels : int
        Small images are enlarged by a whole factor until they are at least so many picture pixels wide.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If the images are not uint8 in rows of equal length.
    """
    images = np.asarray(images)
    n_rows = len(row_labels)
    if images.ndim == 4 and n_rows and len(images) % n_rows == 0:
        images = images.reshape(n_rows, -1, *images.shape[1:])
    if images.dtype != np.uint8 or images.ndim != 5 or len(images) != n_rows or images.shape[-1] not in (1, 3):
        raise InputError(
            f"images must be uint8 of shape (rows, n, H, W, 1 or 3) with a label for each row, got {images.dtype} "
            f"{images.shape} and {n_rows} labels"
        )
    if 0 in images.shape:
        raise InputError(f"an image grid needs images, got shape {images.shape}")
    n_columns = images.shape[1]
    if column_labels is not None and len(column_labels) != n_columns:
        raise InputError(f"column_labels must be {n_columns}, one for each column, got {len(column_labels)}")
    factor = max(1, -(-pixels // images.shape[3]))
    gap = 4
    canvas, tops, lefts = _tile(images, factor, gap)
    height, width = canvas.shape[:2]
    cell_height, cell_width = images.shape[2] * factor, images.shape[3] * factor

    with _styled():
        from matplotlib.figure import Figure

        head_points = 9.0
        if column_labels:  # no wider than their columns
            head_points *= min(1.0, cell_width / max(1.0, *(_text_width(text, head_points) for text in column_labels)))
        line = round(15 * DPI / 72)
        margin = max(2 * gap, *(round(_text_width(label, 10)) + 6 * gap for label in row_labels if label), 0)
        head = round(line * ((title is not None) * 1.4 + (column_labels is not None)))
        title_width = _text_width(title, 11, "bold") if title else 0
        total_width = max(margin + width, gap + round(title_width)) + 2 * gap
        total_height = head + height + 2 * gap

        fig = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)

        def write(x: float, y: float, text: str, **style: Any) -> None:
            fig.text(x / total_width, 1 - y / total_height, text, **style)

        place = (margin / total_width, gap / total_height, width / total_width, height / total_height)
        axes = fig.add_axes(place)
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        top_of_images = head + gap
        for top, label in zip(tops, row_labels, strict=True):
            write(margin - 2 * gap, top_of_images + top + cell_height / 2, label, ha="right", va="center")
        for left, label in zip(lefts, column_labels or [], strict=False):
            style = {"fontsize": head_points, "color": GREY, "ha": "center", "va": "baseline"}
            write(margin + left + cell_width / 2, top_of_images - 0.35 * line, label, **style)
        if title is not None:
            write(2 * gap, 0.9 * line, title, ha="left", va="baseline", fontsize=11, fontweight="bold")
    return _finish(fig, path)


def loss_curves(
    losses: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: Path | str | None = None,
    *,
    ylabel: str = "loss, nats a token",
    title: str = "Loss",
    smoothing: float | None = None,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw losses over training steps.

    Parameters
    ----------
    losses : mapping of str to (steps, values)
        Two arrays of equal length for each name, at most seven. Values that are not finite leave a gap.
    path : path, optional
        Where to write the picture: .png, .svg or .pdf.
    ylabel, title : str
        What is drawn, with its unit.
    smoothing : float, optional
        Steps over which an exponential mean fades to either side; a hundredth of the longest run by default, 0 for
        none. The values themselves stay visible, pale, behind their mean.
    colours : mapping of str to str, optional
        Colour of each name; the palette's in their order by default.

    Returns
    -------
    Figure
    """
    _check_names(losses)
    runs = {name: _check_run(name, *run) for name, run in losses.items()}
    span = max(float(np.ptp(steps)) for steps, _ in runs.values())
    smoothing = span / 100 if smoothing is None else smoothing
    with _styled():
        fig, axes = _figure(7.2, 4.2)
        for (name, (steps, values)), default in zip(runs.items(), PALETTE, strict=False):
            colour = (colours or {}).get(name) or default
            smooth = _exponential_mean(steps, values, smoothing)
            if smoothing > 0:
                axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(steps, smooth, color=colour, label=f"{name}  ({smooth[np.isfinite(smooth)][-1]:.3f})")
        finite = np.concatenate([values[np.isfinite(values)] for _, values in runs.values()])
        # The first steps tower over all others; show the rest, and what of the first fits.
        low, high = finite.min(), np.quantile(finite, 0.99)
        axes.set_ylim(low - 0.05 * (high - low or 1), high + 0.12 * (high - low or 1))
        axes.set(title=title, xlabel="step", ylabel=ylabel)
        axes.margins(x=0.01)
        _thousands(axes.xaxis)
        _grid(axes)
        _legend(axes, loc="upper right")
    return _finish(fig, path)


def score_curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[Any], np.ndarray, np.ndarray]]],
    path: Path | str | None = None,
    *,
    xlabel: str,
) -> Figure:
    """Draw scores over a setting, a panel a score.

    Parameters
    ----------
    panels : mapping of str to mapping of str to (places, means, deviations)
        Under the name of each score, its lines by their names, at most seven: where they were measured, numbers or
        texts; the means there; their standard deviations over seeds, NaN where there is no such.
    path : path, optional
        Where to write the picture: .png, .svg or .pdf.
    xlabel : str
        What the places are.

    Returns
    -------
    Figure
    """
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with _styled():
        fig, axes_of = _figure(5.2 * n_columns, 3.3 * n_rows, n_rows, n_columns)
        flat = np.ravel(axes_of)
        for axes, (title, lines) in zip(flat, panels.items(), strict=False):
            _check_names(lines)
            for (name, (places, means, deviations)), colour in zip(lines.items(), PALETTE, strict=False):
                axes.plot(places, means, color=colour, marker="o", markersize=4, label=name)
                if np.isfinite(deviations).any():
                    axes.errorbar(places, means, np.nan_to_num(deviations), color=colour, capsize=3, linewidth=1)
            axes.set(title=title, xlabel=xlabel)
            _grid(axes)
        for axes in flat[len(panels) :]:
            axes.set_axis_off()
        if max(map(len, panels.values())) > 1:
            _legend(flat[0], loc="best")
    return _finish(fig, path)


_EVERY_SIZE = 40  # up to this size each has a bar of its own


def _size_bins(smallest: int, largest: int) -> np.ndarray:
    if largest <= _EVERY_SIZE:
        return np.arange(1, largest + 2) - 0.5
    per_decade = 10
    n_bins = max(4, round(per_decade * np.log10((largest + 1) / smallest)))
    return np.unique(np.round(np.geomspace(smallest, largest + 1, n_bins + 1))) - 0.5


def _whole_ticks(largest: int) -> np.ndarray:
    return np.arange(1, largest + 1, max(1, round(largest / 12)))


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


def _tile(images: np.ndarray, factor: int, gap: int) -> tuple[np.ndarray, list[int], list[int]]:
    """Enlarge images by a whole factor and put them on white; gives the picture, the rows' tops and columns' lefts."""
    images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    n_rows, n_columns, height, width, _ = images.shape
    tops = [row * (height + gap) for row in range(n_rows)]
    lefts = [column * (width + gap) for column in range(n_columns)]
    canvas = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, dtype=np.uint8)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            canvas[top : top + height, left : left + width] = images[row, column]
    return canvas, tops, lefts


def _exponential_mean(steps: np.ndarray, values: np.ndarray, span: float) -> np.ndarray:
    """Mean of the values around each one, fading with the number of steps to either side; NaN where the value is."""
    smooth = np.full(len(values), np.nan)
    there = np.isfinite(values)
    if span <= 0 or not there.any():
        return np.where(there, values, smooth)
    found = values[there]
    fades = np.exp(-np.abs(np.diff(steps[there])) / span)
    # Each value is in the mean so far and in the mean from the end, hence once too often in their sum.
    totals = _faded_sums(found, fades) + _faded_sums(found[::-1], fades[::-1])[::-1] - found
    ones = np.ones(len(found))
    weights = _faded_sums(ones, fades) + _faded_sums(ones, fades[::-1])[::-1] - 1
    smooth[there] = totals / weights
    return smooth


def _faded_sums(values: np.ndarray, fades: np.ndarray) -> np.ndarray:
    """Running sums in which all that went before is multiplied by a fade at each step."""
    sums = [float(values[0])]
    for value, fade in zip(values[1:].tolist(), fades.tolist(), strict=True):
        sums.append(sums[-1] * fade + value)
    return np.array(sums)


def _check_run(name: str, steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if steps.ndim != 1 or steps.shape != values.shape or not np.isfinite(values).any():
        raise InputError(
            f"losses of {name!r} must be steps and as many values, at least one finite, got shapes {steps.shape} and "
            f"{values.shape}"
        )
    return steps, values


def _check_names(things: Mapping[str, Any]) -> None:
    if not 1 <= len(things) <= len(PALETTE):
        raise InputError(f"a picture shows 1 to {len(PALETTE)} lines, each in its colour, got {len(things)}")


def _styled() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, sharex: bool = False) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.04)  # type: ignore[union-attr, call-arg]
    return fig, fig.subplots(rows, columns, sharex=sharex)


def _grid(axes: Axes) -> None:
    """Add a grid, when the limits are known: short logarithmic axes get ticks between the powers of ten."""
    from matplotlib.ticker import LogLocator

    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log" and high / low < 400:
            axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
    axes.grid(color=PALE, linewidth=0.6)
    axes.tick_params(length=3)


def _legend(axes: Axes, loc: Any) -> None:
    axes.legend(loc=loc, handlelength=1.4, labelcolor=BLACK, fontsize=9.5)


def _log_axis(axis: Any, which: str, axes: Axes) -> None:
    """Make an axis logarithmic with plain numbers: 1, 10, 100, 1,000."""
    from matplotlib.ticker import LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis.set_major_locator(LogLocator(base=10, numticks=12))
    axis.set_minor_formatter(NullFormatter())
    _thousands(axis)


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width of a line of text in pixels at `DPI`."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    return float(TextPath((0, 0), text, size=points, prop=FontProperties(weight=weight)).get_extents().width) * DPI / 72


def _finish(fig: Figure, path: Path | str | None) -> Figure:
    """Write the picture, if asked to, without anything that differs from run to run."""
    if path is None:
        return fig
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a picture is one of {', '.join(FORMATS)}, got {path}")
    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
    with _styled(), write_atomically(path) as temporary:
        fig.savefig(temporary, format=path.suffix.lower()[1:], dpi=DPI, facecolor="white", metadata=metadata)
    return fig
