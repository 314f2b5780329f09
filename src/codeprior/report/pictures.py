"""The pictures of the report, as data URIs: grids of samples, strips of replacements, plots."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codeprior.artifact import Manifest
from codeprior.errors import InputError
from codeprior.npz import MappedNpz
from codeprior.plots import PALETTE, cluster_sizes, loss_curves
from codeprior.report.format import NO_BREAK, number, percent, score
from codeprior.report.gather import Findings, read_meta, read_metrics
from codeprior.report.names import Names, method_name
from codeprior.report.scores import score_names, that_compare

TILE = 64  # pixels a side that small images are enlarged to, by a whole factor
LARGEST_TILE = 128  # and large ones reduced to
GAP = 4
GRID_ROWS, GRID_COLUMNS = 12, 10


@dataclass(frozen=True)
class Strip:
    """A row of images and what it shows."""

    label: str
    note: str
    image: str


@dataclass(frozen=True)
class Grid:
    """A grid of images, a class a row."""

    title: str
    color: str
    rows: list[str]
    image: str
    note: str = ""


def mosaic(images: np.ndarray) -> str:
    """Images (R, C, H, W, 3) uint8 side by side, gaps transparent: a data URI."""
    n_rows, n_columns, height, width = images.shape[:4]
    factor = max(1, TILE // max(height, width))
    if factor > 1:
        images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    elif max(height, width) > LARGEST_TILE:
        flat = [_reduced(image) for image in images.reshape(-1, height, width, 3)]
        images = np.stack(flat).reshape(n_rows, n_columns, *flat[0].shape)
    height, width = images.shape[2:4]
    canvas = np.zeros((n_rows * (height + GAP) - GAP, n_columns * (width + GAP) - GAP, 4), dtype=np.uint8)
    for row in range(n_rows):
        for column in range(n_columns):
            top, left = row * (height + GAP), column * (width + GAP)
            canvas[top : top + height, left : left + width, :3] = images[row, column]
            canvas[top : top + height, left : left + width, 3] = 255
    buffer = io.BytesIO()
    if factor > 1:
        Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
        return data_uri(buffer.getvalue(), "image/png")
    Image.fromarray(canvas).save(buffer, "WEBP", quality=88, alpha_quality=100)
    return data_uri(buffer.getvalue(), "image/webp")


def _reduced(image: np.ndarray) -> np.ndarray:
    scale = LARGEST_TILE / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def data_uri(content: bytes, kind: str) -> str:
    """A file's content as a URI that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def sample_grid(names: Names, samples: Manifest) -> Grid | None:
    """The first samples of each class (of evenly spaced classes where there are many); None if there are no images."""
    path = samples.path("samples.npz")
    if not path.exists():
        return None
    arrays = MappedNpz(path)
    labels = arrays["arr_1"]
    classes = np.unique(labels)
    classes = classes[np.unique(np.linspace(0, len(classes) - 1, min(GRID_ROWS, len(classes))).round().astype(int))]
    n_columns = min(GRID_COLUMNS, *(int((labels == label).sum()) for label in classes))
    rows = np.stack([np.flatnonzero(labels == label)[:n_columns] for label in classes])
    classes_named = _class_names(names.findings, samples)
    return Grid(
        names.label(samples),
        names.color(samples),
        [classes_named[label] if label < len(classes_named) else str(label) for label in classes],
        mosaic(arrays["arr_0"][rows]),
        _scores(names.findings, samples),
    )


def _scores(findings: Findings, samples: Manifest) -> str:
    """The scores of samples, for the line under their grid: by the reference that judged most of them, if it did."""
    for evaluation in chain(*that_compare(findings.of("evaluation"))):
        if evaluation.inputs.get("samples") == samples.digest:
            results = evaluation.results
            parts = [f"{name}{NO_BREAK}{score(results[name])}" for name in score_names([results], "FD")]
            if results.get("class_consistency") is not None:
                parts.insert(0, f"{percent(results['class_consistency'])} of the class asked for")
            return " · ".join(parts)
    return ""


def _class_names(findings: Findings, samples: Manifest) -> list[str]:
    codes = findings.source(findings.source(samples, "checkpoint"), "codes")
    return [str(name).replace("_", " ") for name in read_meta(codes)["class_names"]] if codes else []


def replacement_strips(test: Manifest) -> tuple[list[Strip], list[str]]:
    """The examples of a replacement test, a strip a row of its table, and the class of each column."""
    path = test.path("examples.npz")
    if not path.exists():
        return [], []
    with np.load(path, allow_pickle=False) as arrays:
        images = dict(zip(arrays["rows"].tolist(), arrays["images"], strict=True))
        names = [str(name).replace("_", " ") for name in arrays["class_names"]]
    rows = {row["prior"]: row for row in test.results["rows"]}
    strips = []
    for name, strip in images.items():
        row = rows.get("none" if name == "reconstruction" else name)
        label = name if row is None or row["method"] is None else f"{method_name(row['method'])}, {row['n_clusters']}"
        note = "" if row is None else f"{number(row['psnr_db'])} dB"
        strips.append(Strip(label, note, mosaic(strip[None])))
    return strips, names


def sizes_plot(names: Names) -> str | None:
    """Cluster sizes of the priors, one of each method: that with most clusters."""
    chosen, colours = {}, {}
    for method in names.methods[: len(PALETTE)]:
        priors = [file.prior for file in names.findings.priors if file.prior.method == method]
        if priors:
            chosen[method_name(method)] = max(priors, key=lambda prior: prior.n_clusters).token_to_cluster
            colours[method_name(method)] = names.method_color(method)
    return plot(lambda path: cluster_sizes(chosen, path, colours=colours)) if chosen else None


def loss_plots(names: Names) -> list[tuple[str, str]]:
    """Losses of all models over the steps, held out and training: (description, data URI)."""
    plots = [
        ("Loss on held-out images", _loss_plot(names, "heldout_nats_per_token", "Held-out images", smoothing=0)),
        ("Loss on training images", _loss_plot(names, "train_nats_per_token", "Training images, with dropout")),
    ]
    return [(description, picture) for description, picture in plots if picture]


def _loss_plot(names: Names, key: str, title: str, smoothing: float | None = None) -> str | None:
    curves, colours = {}, {}
    for model in names.models[: len(PALETTE)]:
        points = [(line["step"], line[key]) for line in read_metrics(model) if line.get(key) is not None]
        if len(points) > 1:
            steps, values = np.array(points, dtype=np.float64).T
            curves[names.label(model)] = (steps, values)
            colours[names.label(model)] = names.color(model)

    def draw(path: Path) -> None:
        loss_curves(curves, path, ylabel="nats per token", title=title, smoothing=smoothing, colours=colours)

    return plot(draw) if curves else None


def plot(draw: Callable[[Path], Any]) -> str | None:
    """A plot as a data URI; None where there is nothing that could be drawn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.svg"
        try:
            draw(path)
        except InputError:
            return None
        return data_uri(path.read_bytes(), "image/svg+xml")
