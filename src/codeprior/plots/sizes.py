"""How large clusters are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codeprior.plots.style import (
    GREY,
    PALETTE,
    add_grid,
    add_legend,
    check_names,
    finished,
    make_logarithmic,
    new_figure,
    styled,
    write_thousands,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EVERY_SIZE = 40  # up to this size each has a bar of its own


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
    check_names(labels)
    sizes = {name: np.sort(np.unique(np.asarray(x), return_counts=True)[1])[::-1] for name, x in labels.items()}
    largest = max(int(s[0]) for s in sizes.values())
    with styled():
        fig, (left, right) = new_figure(9.6, 4.2, 1, 2)
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
        write_thousands(left.yaxis)
        if largest > _EVERY_SIZE:
            make_logarithmic(left.xaxis, "x", left)
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
        make_logarithmic(right.xaxis, "x", right)
        make_logarithmic(right.yaxis, "y", right)
        right.set_xlim(1, max(len(s) for s in sizes.values()) * 1.1)
        right.set_ylim(0.8, largest * 2)
        add_legend(right, loc="upper right")
        for axes in (left, right):
            add_grid(axes)
    return finished(fig, path)


def _size_bins(smallest: int, largest: int) -> np.ndarray:
    if largest <= _EVERY_SIZE:
        return np.arange(1, largest + 2) - 0.5
    per_decade = 10
    n_bins = max(4, round(per_decade * np.log10((largest + 1) / smallest)))
    return np.unique(np.round(np.geomspace(smallest, largest + 1, n_bins + 1))) - 0.5


def _whole_ticks(largest: int) -> np.ndarray:
    return np.arange(1, largest + 1, max(1, round(largest / 12)))
