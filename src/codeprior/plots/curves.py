"""Numbers over the number of clusters, over training steps, over a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codeprior.errors import InputError
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

    from codeprior.clustering.curve import Curve


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
    check_names(curves)
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
    with styled():
        fig, axes_of = new_figure(9.6 if rows == 2 else 12, 3.2 * rows, rows, len(panels) // rows, sharex=True)
        for axes, (field, title, unit) in zip(np.ravel(axes_of), panels, strict=True):
            for name, curve, colour in coloured:
                values = getattr(curve, field)
                if values is not None:
                    axes.plot(curve.n_clusters, values, color=colour, label=name)
            axes.set(title=title, ylabel=unit)
            make_logarithmic(axes.xaxis, "x", axes)
            if field == "largest":
                make_logarithmic(axes.yaxis, "y", axes)
                axes.set_ylim(0.8, None)
            else:
                axes.set_ylim(0, None)
                write_thousands(axes.yaxis)
            fewest = min(int(curve.n_clusters[0]) for curve in drawn)
            most = max(int(curve.n_clusters[-1]) for curve in drawn)
            axes.set_xlim(fewest, max(most, fewest + 1))
            add_grid(axes)
            if field == "singletons" and len(curves) > 1:
                add_legend(axes, loc="upper left")
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
    return finished(fig, path)


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
    check_names(losses)
    runs = {name: _check_run(name, *run) for name, run in losses.items()}
    span = max(float(np.ptp(steps)) for steps, _ in runs.values())
    smoothing = span / 100 if smoothing is None else smoothing
    with styled():
        fig, axes = new_figure(7.2, 4.2)
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
        write_thousands(axes.xaxis)
        add_grid(axes)
        add_legend(axes, loc="upper right")
    return finished(fig, path)


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
    with styled():
        fig, axes_of = new_figure(5.2 * n_columns, 3.3 * n_rows, n_rows, n_columns)
        flat = np.ravel(axes_of)
        for axes, (title, lines) in zip(flat, panels.items(), strict=False):
            check_names(lines)
            for (name, (places, means, deviations)), colour in zip(lines.items(), PALETTE, strict=False):
                axes.plot(places, means, color=colour, marker="o", markersize=4, label=name)
                if np.isfinite(deviations).any():
                    axes.errorbar(places, means, np.nan_to_num(deviations), color=colour, capsize=3, linewidth=1)
            axes.set(title=title, xlabel=xlabel)
            add_grid(axes)
        for axes in flat[len(panels) :]:
            axes.set_axis_off()
        if max(map(len, panels.values())) > 1:
            add_legend(flat[0], loc="best")
    return finished(fig, path)


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
