"""Complete, Ward's and centroid linkage against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

import naive
from codeprior import machine
from codeprior.clustering.agglomerative import LINKAGES, agglomerative_linkage
from codeprior.clustering.cut import cut
from codeprior.errors import InputError

every_linkage = pytest.mark.parametrize("linkage", LINKAGES)


@every_linkage
@settings(deadline=None, max_examples=40)
@given(st.integers(2, 120), st.integers(1, 10), st.integers(0, 2**32 - 1), st.sampled_from([1, 2]))
def test_the_tree_is_scipys(linkage, n, width, seed, n_threads):
    x = np.random.default_rng(seed).normal(size=(n, width))
    Z = agglomerative_linkage(x, linkage, n_threads=n_threads)
    expected = hierarchy.linkage(x, linkage)
    np.testing.assert_array_equal(Z[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    np.testing.assert_allclose(Z[:, 2], expected[:, 2], rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_with_ties_everywhere_each_merge_of_complete_linkage_is_a_minimum(n, seed):
    x = np.random.default_rng(seed).integers(0, 4, (n, 2)).astype(float)
    Z = agglomerative_linkage(x, "complete")
    distances = naive.instance_distances(x)
    clusters = {i: [i] for i in range(n)}
    for t, (left, right, height, _) in enumerate(Z):
        between = {
            (a, b): distances[np.ix_(clusters[a], clusters[b])].max() for a in clusters for b in clusters if a < b
        }
        assert height == between[left, right] == min(between.values())
        clusters[n + t] = clusters.pop(int(left)) + clusters.pop(int(right))


@every_linkage
def test_equal_codes_merge_first(linkage):
    x = np.repeat(np.random.default_rng(0).normal(size=(20, 4)), 3, axis=0)
    Z = agglomerative_linkage(x, linkage)
    assert (Z[:40, 2] == 0).all()
    assert (np.bincount(cut(Z, 60, 20)) == 3).all()


def test_the_heights_of_centroid_linkage_may_fall():
    assert (np.diff(agglomerative_linkage(np.random.default_rng(0).normal(size=(300, 3)), "centroid")[:, 2]) < 0).any()


def test_complete_linkage_takes_any_distances():
    distances = naive.instance_distances(np.random.default_rng(1).normal(size=(70, 3)))
    expected = hierarchy.linkage(squareform(distances), "complete")
    np.testing.assert_allclose(agglomerative_linkage(distances, "complete", metric="precomputed"), expected)


def test_progress_ends_at_the_last_merge():
    seen = []
    agglomerative_linkage(
        np.random.default_rng(1).normal(size=(70, 3)), "ward", progress=lambda *told: seen.append(told)
    )
    assert seen[-1] == ("merges", 69, 69)


def test_one_code_has_no_merges():
    assert agglomerative_linkage(np.ones((1, 2)), "ward").shape == (0, 4)


def test_mistakes_are_said(monkeypatch):
    x = np.ones((30, 2))
    with pytest.raises(InputError, match="linkage must be one of complete, ward, centroid, got 'single'"):
        agglomerative_linkage(x, "single")
    with pytest.raises(InputError, match="'ward' linkage is Euclidean, got metric 'precomputed'"):
        agglomerative_linkage(x, "ward", metric="precomputed")
    monkeypatch.setattr(machine, "available_bytes", lambda: 3000)
    with pytest.raises(InputError, match="every distance between 30 codes"):
        agglomerative_linkage(x, "ward")
