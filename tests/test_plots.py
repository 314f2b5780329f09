"""Pictures: every kind is written, the same bytes each time, and what can be read back from them is right."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.cluster import hierarchy

from codeprior import plots
from codeprior.clustering.curve import tree_curve
from codeprior.clustering.linkage import average_linkage
from codeprior.errors import InputError

CODES = np.random.default_rng(0).normal(size=(300, 3))
Z = average_linkage(CODES)
LABELS = {"k-means": np.arange(300) % 30, "DCPE": hierarchy.fcluster(Z, 30, "maxclust")}
IMAGES = np.random.default_rng(1).integers(0, 256, size=(2, 3, 8, 6, 3), dtype=np.uint8)
STEPS = np.arange(0, 1000, 10)

PICTURES = {
    "cluster_sizes": lambda path: plots.cluster_sizes(LABELS, path),
    "small_cluster_sizes": lambda path: plots.cluster_sizes({"pairs": np.arange(300) // 2}, path),
    "dendrogram": lambda path: plots.dendrogram(Z, path, n_clusters=9),
    "whole_dendrogram": lambda path: plots.dendrogram(average_linkage(CODES[:2]), path, n_clusters=2),
    "curves_over_k": lambda path: plots.curves_over_k({"DCPE": tree_curve(Z, 300)}, path, n_clusters=150),
    "curves_with_entropy": lambda path: plots.curves_over_k(
        {"used": tree_curve(Z, 300, usage=np.arange(300)), "plain": tree_curve(Z, 300)}, path
    ),
    "image_grid": lambda path: plots.image_grid(
        IMAGES, ["first", "second"], path, column_labels=["a very wide label", "b", ""], title="A title wider than all"
    ),
    "loss_curves": lambda path: plots.loss_curves(
        {"plain": (STEPS, np.exp(-STEPS / 300)), "gaps": (STEPS[:50], np.where(STEPS[:50] % 70, 0.5, np.nan))}, path
    ),
    "one_loss": lambda path: plots.loss_curves({"one": (np.array([0]), np.array([2.5]))}, path),
}


@pytest.fixture(scope="module", params=PICTURES)
def drawn(request, tmp_path_factory):
    """A figure and the folder in which its picture was written; drawn once, for it takes a while."""
    folder = tmp_path_factory.mktemp("pictures") / "new"
    return PICTURES[request.param](folder / "picture.png"), folder


def test_a_picture_is_written_as_what_its_name_says(drawn):
    fig, folder = drawn
    assert [path.name for path in folder.iterdir()] == ["picture.png"]
    with Image.open(folder / "picture.png") as picture:
        assert picture.format == "PNG"
        np.testing.assert_allclose(picture.size, fig.bbox.size, atol=1)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_is_the_same_file_every_time(kind, tmp_path):
    for name in ("1", "2"):
        PICTURES["dendrogram"](str(tmp_path / f"{name}.{kind}"))
    assert (tmp_path / f"1.{kind}").read_bytes() == (tmp_path / f"2.{kind}").read_bytes()


def test_no_text_of_a_picture_is_cut_off_or_hides_another(drawn):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fig, _ = drawn
    renderer = FigureCanvasAgg(fig).get_renderer()
    texts = list(fig.texts)
    for axes in fig.axes:
        if axes.axison:
            texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            texts += [text for axis in (axes.xaxis, axes.yaxis) for text in _shown_tick_labels(axis)]
            texts += axes.get_legend().get_texts() if axes.get_legend() else []
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text().strip()]
    assert boxes
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= fig.bbox.x1 + 1, text
        assert box.y1 <= fig.bbox.y1 + 1, text
        for other, other_box in boxes[:i]:
            wide = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            high = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert min(wide, high) <= 1, (text, other)


def _shown_tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    if not axis.get_tick_params().get("labelleft", True) or not axis.get_tick_params().get("labelbottom", True):
        return []
    return [
        tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 6), (70, 100)])
def test_every_pixel_of_every_image_is_in_the_grid(channels, size, tmp_path):
    images = np.random.default_rng(2).integers(0, 256, size=(2, 3, *size, channels), dtype=np.uint8)
    path = tmp_path / "grid.png"
    plots.image_grid(images, ["a", "the second row"], path, column_labels=["x", "y", "z"], title="t")
    picture = np.asarray(Image.open(path).convert("RGB"))
    factor = max(1, -(-64 // size[1]))
    for image in images.reshape(6, *size, channels):
        large = np.broadcast_to(image, (*size, 3)).repeat(factor, axis=0).repeat(factor, axis=1)
        starts = np.argwhere((picture[: 1 - len(large), : 1 - large.shape[1]] == large[0, 0]).all(axis=2))
        assert any(np.array_equal(picture[y : y + len(large), x : x + large.shape[1]], large) for y, x in starts), (
            "an image was moved or resampled"
        )


def test_flat_images_fall_into_rows():
    flat = plots.image_grid(IMAGES.reshape(6, 8, 6, 3), ["a", "b"])
    np.testing.assert_array_equal(
        flat.axes[0].images[0].get_array(), plots.image_grid(IMAGES, ["a", "b"]).axes[0].images[0].get_array()
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 60), st.integers(2, 70), st.integers(0, 2**32 - 1), st.data())
def test_the_upper_tree_is_the_end_of_the_linkage(n, shown, seed, data):
    x = np.random.default_rng(seed).normal(size=(n, 2))
    Z = average_linkage(x)
    shown = min(n, shown)
    tree = plots.tree._upper_tree(Z, shown)
    assert len(tree.leaves) == shown
    assert sum(tree.sizes) == n
    assert [tree.height[node] for node, _, _ in tree.merges] == Z[n - shown :, 2].tolist()
    k = data.draw(st.integers(1, shown))
    if k > 1:
        cut = (Z[n - k, 2] + (Z[n - k - 1, 2] if k < n else 0)) / 2
        colours = plots.tree._cluster_colours(tree, cut)
        parent = {child: node for node, a, b in tree.merges for child in (a, b)}
        tops = [
            node
            for node in tree.height
            if colours[node] != plots.style.GREY and colours[parent[node]] == plots.style.GREY
        ]
        assert len(tops) == k
        by_place = [colours[node] for node in sorted(tops, key=tree.x.get)]
        assert all(a != b for a, b in itertools.pairwise(by_place))


def test_branches_of_a_deep_chain_are_laid_out_without_recursion():
    n = 3000
    chain = np.column_stack([np.r_[0, n : 2 * n - 2], np.arange(1, n), np.arange(1, n), np.arange(2, n + 1)])
    assert len(plots.tree._upper_tree(chain.astype(float), n).leaves) == n


def test_the_smallest_things_are_drawn_without_a_warning(tmp_path):
    copies = average_linkage(np.zeros((5, 2)))
    plots.dendrogram(copies, tmp_path / "copies.png", n_clusters=3)
    plots.curves_over_k({"copies": tree_curve(copies, 5)}, tmp_path / "copies_curve.png")
    plots.curves_over_k({"one": tree_curve(np.empty((0, 4)), 1, usage=[3])}, tmp_path / "one.png", n_clusters=1)
    plots.cluster_sizes({"one code": np.array([0])}, tmp_path / "one_size.png")
    plots.cluster_sizes({"one cluster": np.zeros(500, dtype=int)}, tmp_path / "one_cluster.png")
    plots.image_grid(IMAGES[:1, :1], [""], tmp_path / "one_image.png", title="$5 and $6")
    assert len(list(tmp_path.iterdir())) == 6


def test_smoothing_is_a_mean_that_fades_to_both_sides():
    steps, values = np.array([0.0, 1.0, 2.0, 5.0]), np.array([1.0, np.nan, 3.0, -2.0])
    fade = np.exp(-np.abs(steps[:, None] - steps[None, :]) / 1.5) * np.isfinite(values)
    expected = np.where(np.isfinite(values), fade @ np.nan_to_num(values) / fade.sum(axis=1), np.nan)
    np.testing.assert_allclose(plots.curves._exponential_mean(steps, values, 1.5), expected, rtol=1e-12)
    np.testing.assert_array_equal(plots.curves._exponential_mean(steps, values, 0), values)


def test_matplotlib_waits_for_the_first_picture_and_pyplot_is_never_needed():
    code = (
        "import sys, numpy as np, codeprior.plots as p; assert 'matplotlib' not in sys.modules;"
        "p.loss_curves({'a': (np.arange(3), np.arange(3))}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(InputError, match=r"a picture is one of \.png, \.svg, \.pdf, got .*\.bmp"):
        plots.loss_curves({"a": (STEPS, STEPS)}, tmp_path / "loss.bmp")
    with pytest.raises(InputError, match="a picture shows 1 to 7 lines, each in its colour, got 0"):
        plots.cluster_sizes({})
    with pytest.raises(InputError, match="losses of 'a' must be steps and as many values"):
        plots.loss_curves({"a": (STEPS, STEPS[1:])})
    with pytest.raises(InputError, match="needs the complete tree"):
        plots.dendrogram(Z[:100])
    with pytest.raises(InputError, match="a tree of two codes or more"):
        plots.dendrogram(np.empty((0, 4)))
    with pytest.raises(InputError, match="heights that never decrease"):
        plots.dendrogram(np.array([[0, 1, 2.0, 2], [2, 3, 1.0, 3]]))
    with pytest.raises(InputError, match=r"images must be uint8 .*got float64"):
        plots.image_grid(IMAGES.astype(float), ["a", "b"])
    with pytest.raises(InputError, match="and 3 labels"):
        plots.image_grid(IMAGES, ["a", "b", "c"])
    with pytest.raises(InputError, match="column_labels must be 3"):
        plots.image_grid(IMAGES, ["a", "b"], column_labels=["x"])
    assert not list(tmp_path.iterdir())
