"""Images in labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codeprior.errors import InputError
from codeprior.plots.style import DPI, GREY, finished, styled, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    with styled():
        from matplotlib.figure import Figure

        head_points = 9.0
        if column_labels:  # no wider than their columns
            head_points *= min(1.0, cell_width / max(1.0, *(text_width(text, head_points) for text in column_labels)))
        line = round(15 * DPI / 72)
        margin = max(2 * gap, *(round(text_width(label, 10)) + 6 * gap for label in row_labels if label), 0)
        head = round(line * ((title is not None) * 1.4 + (column_labels is not None)))
        title_width = text_width(title, 11, "bold") if title else 0
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
    return finished(fig, path)


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
