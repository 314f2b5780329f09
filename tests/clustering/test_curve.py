"""Figures of clusterings: the curve from one tree against brute force at every cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from codeprior.clustering.agglomerative import LINKAGES, agglomerative_linkage
from codeprior.clustering.curve import (
    agreement,
    induced_entropy,
    size_statistics,
    tree_curve,
    with_mean_distances,
    within_cluster_distance,
)
from codeprior.clustering.linkage import average_linkage
from codeprior.errors import InputError

seeds = st.integers(0, 2**32 - 1)


def random_codes(seed, n, coarse):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, size=(n, 3)).astype(float) if coarse else rng.normal(size=(n, 3))


def naive_figures(distances, labels, usage, weights):
    """Every figure by its definition, from all pairs."""
    shared = (labels[:, None] == labels[None, :]) & ~np.eye(len(labels), dtype=bool)
    pair_weights = np.outer(weights, weights) * shared
    sizes = np.bincount(labels)
    share = np.array([usage[labels == c].sum() for c in range(labels.max() + 1)]) / usage.sum()
    return {
        "mean_distance": (distances * pair_weights).sum() / pair_weights.sum() if shared.any() else 0.0,
        "largest": sizes.max(),
        "singletons": (sizes == 1).sum(),
        "entropy_nats": -sum(p * np.log(p) for p in share if p > 0),
    }


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), seeds, st.booleans(), st.booleans(), st.data())
def test_every_point_of_the_curve_equals_its_definition(n, seed, coarse, weighted, data):
    rng = np.random.default_rng(seed)
    x = random_codes(seed, n, coarse)
    weights = rng.uniform(0.1, 5, size=n) if weighted else None
    usage = rng.integers(0, 9, size=n) * rng.integers(0, 2, size=n)
    usage[0] += 1
    last = data.draw(st.integers(1, n))
    Z = average_linkage(x, last, weights=weights)
    curve = tree_curve(Z, n, usage=usage, weights=weights)
    np.testing.assert_array_equal(curve.n_clusters, np.arange(last, n + 1))
    distances = naive.instance_distances(x)
    for row, k in enumerate(curve.n_clusters):
        expected = naive_figures(distances, naive.labels_of(Z, n, k), usage, np.ones(n) if weights is None else weights)
        found = curve.at(k)
        assert found["n_clusters"] == k
        assert found["largest"] == curve.largest[row] == expected["largest"]
        assert found["singletons"] == expected["singletons"]
        # Heights are rounded to 12 digits; the sums of either side to a few more.
        np.testing.assert_allclose(found["mean_distance"], expected["mean_distance"], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found["entropy_nats"], expected["entropy_nats"], rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), seeds, st.sampled_from(list(LINKAGES)), st.data())
def test_with_the_vectors_the_curve_of_any_tree_has_mean_distances(n, seed, linkage, data):
    x = random_codes(seed, n, coarse=False)
    Z = agglomerative_linkage(x, linkage)[: n - data.draw(st.integers(1, n))]
    before = Z.copy()
    curve = tree_curve(with_mean_distances(Z, x), n)
    np.testing.assert_array_equal(Z, before)
    for k, found in zip(curve.n_clusters, curve.mean_distance, strict=True):
        np.testing.assert_allclose(found, within_cluster_distance(x, naive.labels_of(Z, n, k)), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), seeds, st.booleans(), st.data())
def test_any_labels_have_the_mean_distance_of_their_pairs(n, seed, coarse, data):
    k = data.draw(st.integers(1, n))
    x = random_codes(seed, n, coarse)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, size=n)
    usage = rng.integers(0, 5, size=n) + 1
    expected = naive_figures(naive.instance_distances(x), np.unique(labels, return_inverse=True)[1], usage, np.ones(n))
    np.testing.assert_allclose(within_cluster_distance(x, labels), expected["mean_distance"], rtol=1e-12)
    np.testing.assert_allclose(induced_entropy(labels, usage), expected["entropy_nats"], rtol=1e-12, atol=1e-14)


def test_large_clusters_are_measured_block_by_block():
    x = np.random.default_rng(0).normal(size=(1500, 2))
    expected = naive.instance_distances(x).sum() / (1500 * 1499)
    np.testing.assert_allclose(within_cluster_distance(x, np.zeros(1500, dtype=int)), expected, rtol=1e-12)


def test_along_the_tree_clusters_grow_and_tell_less():
    x = np.random.default_rng(1).normal(size=(500, 4))
    usage = np.random.default_rng(2).integers(0, 100, size=500)
    curve = tree_curve(average_linkage(x), 500, usage=usage)
    assert np.all(np.diff(curve.largest) <= 0)
    assert np.all(np.diff(curve.singletons) >= 0)
    assert np.all(np.diff(curve.entropy_nats) >= -1e-12)
    assert curve.entropy_nats[0] == pytest.approx(0, abs=1e-12)
    assert curve.mean_distance[-1] == 0
    assert tree_curve(average_linkage(x), 500).entropy_nats is None


def test_size_statistics_count_codes():
    statistics = size_statistics(np.array([5, 5, 5, 2, 9, 9]))
    assert (statistics.n_clusters, statistics.smallest, statistics.largest, statistics.singletons) == (3, 1, 3, 1)
    assert (statistics.mean, statistics.median) == (2.0, 2.0)
    assert statistics.std == pytest.approx(np.std([3, 1, 2]))


def test_agreement_ignores_the_names_of_clusters():
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert agreement(labels, np.array([7, 7, 3, 3, 5, 5])).ari == pytest.approx(1)
    crossed = agreement(labels, np.array([0, 1, 0, 1, 0, 1]))
    assert crossed.ari < 0
    assert crossed.nmi == pytest.approx(0, abs=1e-12)


def test_what_does_not_fit_is_refused():
    Z = average_linkage(np.eye(4))
    curve = tree_curve(Z, 4)
    with pytest.raises(InputError, match="between 1 and 4, got 5"):
        curve.at(5)
    with pytest.raises(InputError, match="fewer merges than the 3 codes"):
        tree_curve(Z, 3)
    with pytest.raises(InputError, match="do not exist yet"):
        tree_curve(Z[1:], 4)
    with pytest.raises(InputError, match="a tree of live codes needs usage"):
        tree_curve(Z, 4, usage=np.ones(5))
    with pytest.raises(InputError, match="not all zero"):
        tree_curve(Z, 4, usage=np.zeros(4))
    with pytest.raises(InputError, match="positive"):
        tree_curve(Z, 4, weights=np.zeros(4))
    with pytest.raises(InputError, match="labels must be 4 whole numbers"):
        agreement(np.zeros(4, dtype=int), np.zeros(3, dtype=int))
    with pytest.raises(InputError, match="whole numbers"):
        size_statistics(np.zeros(4))
