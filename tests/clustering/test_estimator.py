"""DCPE as scikit-learn knows it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.cluster import hierarchy
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import naive
from codeprior import DCPE
from codeprior.clustering.distance import normalize_rows
from codeprior.errors import InputError


@pytest.fixture
def codes():
    return np.random.default_rng(0).normal(size=(80, 5))


@parametrize_with_checks([DCPE(), DCPE(n_clusters=2, complete_tree=False), DCPE(max_cluster_size=60)])
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


def test_it_agrees_with_scikit_learns_average_linkage(codes):
    theirs = AgglomerativeClustering(9, linkage="average", compute_distances=True).fit(codes)
    ours = DCPE(9).fit(codes)
    assert adjusted_rand_score(theirs.labels_, ours.labels_) == 1
    np.testing.assert_allclose(ours.distances_, theirs.distances_, rtol=1e-11)
    assert ours.children_.shape == theirs.children_.shape
    assert ours.n_leaves_ == theirs.n_leaves_
    assert ours.n_clusters_ == 9


def test_it_clones_pickles_and_works_at_the_end_of_a_pipeline(codes):
    fitted = DCPE(0.25, normalize=True).fit(codes)
    assert fitted.n_clusters_ == 20
    assert clone(fitted).get_params() == fitted.get_params()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).labels_, fitted.labels_)
    pipeline = make_pipeline(StandardScaler(), DCPE(7))
    np.testing.assert_array_equal(
        pipeline.fit_predict(codes), DCPE(7).fit_predict(StandardScaler().fit_transform(codes))
    )


def test_normalize_clusters_directions(codes):
    scaled = codes * np.random.default_rng(1).uniform(0.1, 10, size=(80, 1))
    expected = DCPE(9).fit_predict(normalize_rows(codes))
    np.testing.assert_array_equal(DCPE(9, normalize=True).fit_predict(scaled), expected)


def test_a_row_of_weight_zero_takes_no_part_and_joins_its_nearest_cluster(codes):
    weights = np.random.default_rng(2).uniform(1, 3, size=80)
    weights[[3, 40, 41]] = 0
    heavy = weights > 0
    fitted = DCPE(6).fit(codes, sample_weight=weights)
    alone = DCPE(6).fit(codes[heavy], sample_weight=weights[heavy])
    assert adjusted_rand_score(fitted.labels_[heavy], alone.labels_) == 1
    np.testing.assert_array_equal(fitted.linkage_, alone.linkage_)
    assert fitted.n_leaves_ == 77
    distances = naive.instance_distances(codes)
    for row in np.flatnonzero(~heavy):
        members = [heavy & (fitted.labels_ == c) for c in range(6)]
        means = [np.average(distances[row, m], weights=weights[m]) for m in members]
        assert fitted.labels_[row] == np.argmin(means)


def test_a_weight_of_two_is_a_row_given_twice(codes):
    weights = np.random.default_rng(3).integers(1, 4, size=80)
    repeated = DCPE(6).fit(np.repeat(codes, weights, axis=0))
    first_copies = np.concatenate([[0], np.cumsum(weights)[:-1]])
    weighted = DCPE(6).fit(codes, sample_weight=weights)
    assert adjusted_rand_score(weighted.labels_, repeated.labels_[first_copies]) == 1


def test_distances_may_be_given(codes):
    by_matrix = DCPE(9, metric="precomputed").fit(naive.instance_distances(codes))
    by_rows = DCPE(9).fit(codes)
    np.testing.assert_array_equal(by_matrix.labels_, by_rows.labels_)
    assert by_matrix.__sklearn_tags__().input_tags.pairwise
    with pytest.raises(InputError, match="normalize needs vectors"):
        DCPE(9, metric="precomputed", normalize=True).fit(naive.instance_distances(codes))


def test_the_linkage_is_one_that_scipy_draws(codes):
    fitted = DCPE(9).fit(codes)
    assert hierarchy.is_valid_linkage(fitted.linkage_)
    assert len(hierarchy.dendrogram(fitted.linkage_, no_plot=True)["leaves"]) == 80


def test_a_single_code_is_a_cluster():
    fitted = DCPE(1).fit([[1.0, 2.0]])
    np.testing.assert_array_equal(fitted.labels_, [0])
    assert fitted.linkage_.shape == (0, 4)


def test_wrong_input_is_one_clear_line(codes):
    with pytest.raises(ValueError, match="minimum of 81 is required"):
        DCPE(81).fit(codes)
    with pytest.raises(InputError, match=r"or a share such as 0\.5, got 1\.5"):
        DCPE(1.5).fit(codes)
    with pytest.raises(ValueError, match="NaN"):
        DCPE(2).fit([[np.nan], [1.0]])
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        DCPE(2).fit(codes, sample_weight=np.full(80, -1.0))
    with pytest.raises(ValueError, match="at least one non-zero"):
        DCPE(2).fit(codes, sample_weight=np.zeros(80))
