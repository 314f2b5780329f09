"""One door to every method: what each takes, live and dead codes, shares, and trees in the order of their merges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy

import naive
from codeprior import machine
from codeprior.clustering.balanced import balanced_kmeans
from codeprior.clustering.kmeans import centroid_free_kmeans, kmeans
from codeprior.clustering.methods import METHODS, cluster, live_codes, resolve_n_clusters
from codeprior.errors import InputError

every_method = pytest.mark.parametrize("method", METHODS)
seeds = st.integers(0, 2**32 - 1)


def usage_for(method, n, dead=()):
    """Counts where the method needs them or codes are dead, else None."""
    if method != "kmeans++-weighted" and not len(dead):
        return None
    usage = np.arange(n) % 7 + 1
    usage[list(dead)] = 0
    return usage


def same_partition(labels, other):
    return len(set(zip(labels, other, strict=True))) == len(set(labels)) == len(set(other))


@every_method
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.integers(1, 3), seeds, st.data())
def test_any_method_gives_n_clusters_numbered_by_first_appearance(method, n, width, seed, data):
    k = data.draw(st.integers(1, n))
    x = np.random.default_rng(seed).integers(0, 3, size=(n, width)).astype(np.float32)
    before = x.copy()
    result = cluster(x, k, method=method, seed=seed, usage=usage_for(method, n))
    _, first = np.unique(result.labels, return_index=True)
    assert result.labels.dtype == np.int64
    assert result.n_clusters == len(first) == k
    assert np.all(np.diff(first) > 0)
    assert result.live.all()
    assert (result.linkage is not None) == METHODS[method].tree
    np.testing.assert_array_equal(x, before)


@every_method
@settings(deadline=None, max_examples=15)
@given(st.integers(2, 40), seeds, st.data())
def test_dead_codes_change_nothing_for_the_live_and_join_the_nearest_cluster(method, n, seed, data):
    dead = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n - 1))))
    x = np.random.default_rng(seed).normal(size=(n, 3))
    live = np.setdiff1d(np.arange(n), dead)
    k = data.draw(st.integers(1, len(live)))
    usage = usage_for(method, n, dead)
    result = cluster(x, k, method=method, seed=seed, usage=usage)
    alone = cluster(x[live], k, method=method, seed=seed, usage=usage[live])
    np.testing.assert_array_equal(result.live, usage > 0)
    assert same_partition(result.labels[live], alone.labels)
    assert result.n_clusters == k
    if METHODS[method].tree:
        np.testing.assert_array_equal(result.linkage, alone.linkage)
    distances = naive.instance_distances(x)
    for code in dead:
        means = [distances[code, live[result.labels[live] == c]].mean() for c in range(k)]
        assert means[result.labels[code]] == pytest.approx(min(means), rel=1e-12)


@pytest.mark.parametrize(
    ("method", "direct"),
    [
        ("kmeans", lambda x, usage: kmeans(x, 9, seed=4)),
        ("kmeans++", lambda x, usage: kmeans(x, 9, seed=4, init="k-means++")),
        ("kmeans++-weighted", lambda x, usage: kmeans(x, 9, seed=4, init="k-means++", weights=usage)),
        ("balanced-kmeans", lambda x, usage: balanced_kmeans(x, 9, seed=4)),
        ("kmeans-instance", lambda x, usage: centroid_free_kmeans(x, 9, seed=4)),
    ],
)
def test_the_door_adds_nothing_to_the_function_behind_it(method, direct):
    x = np.random.default_rng(0).normal(size=(120, 4))
    usage = np.random.default_rng(1).integers(1, 50, size=120)
    np.testing.assert_array_equal(cluster(x, 9, method=method, seed=4, usage=usage).labels, direct(x, usage))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 30), seeds)
def test_dcpe_is_the_greedy_definition(n, seed):
    x = np.random.default_rng(seed).integers(0, 4, size=(n, 2)).astype(float)
    Z = naive.greedy_average_linkage(naive.instance_distances(x))
    result = cluster(x, 0.5, method="dcpe")
    np.testing.assert_allclose(result.linkage, Z, rtol=1e-9)
    np.testing.assert_array_equal(result.labels, naive.labels_of(Z, n, resolve_n_clusters(0.5, n)))


@pytest.mark.parametrize("method", ["ward", "complete", "dcpe"])
def test_monotone_trees_are_cut_as_scipy_cuts_them(method):
    x = np.random.default_rng(3).normal(size=(200, 5))
    Z = hierarchy.linkage(x, {"dcpe": "average"}.get(method, method))
    assert same_partition(cluster(x, 23, method=method).labels, hierarchy.fcluster(Z, 23, "maxclust"))


def test_centroid_linkage_merges_the_two_nearest_means_even_when_heights_decrease():
    x = np.random.default_rng(1).normal(size=(60, 2))
    groups = {i: [i] for i in range(60)}
    heights = []
    for merged in range(60, 100):
        ids = sorted(groups)
        means = np.array([x[groups[i]].mean(axis=0) for i in ids])
        distances = naive.instance_distances(means) + np.diag(np.full(len(ids), np.inf))
        a, b = np.unravel_index(np.argmin(distances), distances.shape)
        heights.append(distances[a, b])
        groups[merged] = groups.pop(ids[a]) + groups.pop(ids[b])
    expected = np.empty(60, dtype=int)
    for number, members in enumerate(groups.values()):
        expected[members] = number
    assert np.any(np.diff(heights) < 0)  # an inversion is what this test is about
    assert same_partition(cluster(x, 20, method="centroid").labels, expected)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.tree])
def test_an_incomplete_tree_is_the_beginning_of_the_complete_one(method):
    x = np.random.default_rng(2).normal(size=(80, 3))
    complete = cluster(x, 30, method=method)
    short = cluster(x, 30, method=method, complete_tree=False)
    assert complete.linkage.shape == (79, 4)
    np.testing.assert_array_equal(short.linkage, complete.linkage[:50])
    np.testing.assert_array_equal(short.labels, complete.labels)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.seeded])
def test_methods_without_a_seed_do_not_depend_on_the_order_of_codes(method):
    x = np.random.default_rng(5).normal(size=(90, 3))
    order = np.random.default_rng(6).permutation(90)
    assert same_partition(cluster(x[order], 12, method=method).labels, cluster(x, 12, method=method).labels[order])


def test_the_papers_rule_freezes_clusters_that_exceed_the_bound():
    x = np.random.default_rng(7).normal(size=(200, 3))
    frozen = cluster(x, 20, max_cluster_size=10)
    assert frozen.n_clusters == 20
    assert np.bincount(frozen.labels).max() <= 20
    assert naive.replay(frozen.linkage, naive.instance_distances(x), 20, max_cluster_size=10) is None
    strict = cluster(x, 20, max_cluster_size=10, strict=True)
    assert np.bincount(strict.labels).max() <= 10
    assert strict.n_clusters == len(np.unique(strict.labels)) >= 20


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.any_metric])
@pytest.mark.parametrize("dead", [(), (0, 5, 6)])
def test_a_metric_may_be_a_function_or_a_matrix(method, dead):
    x = np.random.default_rng(8).normal(size=(40, 3))
    usage = usage_for(method, 40, dead)

    def cityblock(a, b):
        return np.abs(a[:, None] - b[None]).sum(axis=2)

    by_function = cluster(x, 8, method=method, metric=cityblock, usage=usage)
    by_matrix = cluster(cityblock(x, x), 8, method=method, metric="precomputed", usage=usage)
    np.testing.assert_array_equal(by_function.labels, by_matrix.labels)
    np.testing.assert_allclose(by_function.linkage, by_matrix.linkage, rtol=1e-12)
    plain = cluster(naive.instance_distances(x), 8, method=method, metric="precomputed", usage=usage)
    np.testing.assert_array_equal(plain.labels, cluster(x, 8, method=method, usage=usage).labels)


def test_a_share_is_that_part_of_all_codes():
    assert resolve_n_clusters(0.5, 16384) == 8192
    assert resolve_n_clusters(0.5, 1) == 1
    assert resolve_n_clusters(0.001, 10) == 1
    assert resolve_n_clusters(np.int64(7), 10) == 7
    assert cluster(np.eye(6), 0.5, usage=[1, 1, 1, 1, 0, 0]).n_clusters == 3
    for wrong in (0, 11, -1, 1.0, 0.0, 2.5, True, "0.5", None, float("nan")):
        with pytest.raises(InputError, match=r"a whole number between 1 and 10 .*or a share such as 0\.5, got"):
            resolve_n_clusters(wrong, 10)


def test_too_few_live_codes_are_counted():
    with pytest.raises(InputError, match=r"at most 2, the number of live codes \(the other 2 of 4 were never used\)"):
        cluster(np.eye(4), 3, usage=[5, 0, 0, 1])


def test_what_a_method_does_not_take_is_refused_with_those_that_do():
    x = np.eye(4)
    with pytest.raises(InputError, match=r"method must be one of dcpe, kmeans, .*got 'dbscan'"):
        cluster(x, 2, method="dbscan")
    with pytest.raises(InputError, match="'ward' takes no weights; these do: dcpe, kmeans"):
        cluster(x, 2, method="ward", weights=np.ones(4))
    with pytest.raises(InputError, match="'kmeans' takes no max_cluster_size; this does: dcpe"):
        cluster(x, 2, method="kmeans", max_cluster_size=2)
    with pytest.raises(InputError, match="'kmeans' is Euclidean, got metric 'precomputed'; these take any: dcpe"):
        cluster(x, 2, method="kmeans", metric="precomputed")
    with pytest.raises(InputError, match="metric must be 'euclidean', 'precomputed' or a callable, got 'cosine'"):
        cluster(x, 2, metric="cosine")
    with pytest.raises(InputError, match="must be square, got shape"):
        cluster(np.ones((4, 2)), 2, metric="precomputed", usage=[1, 1, 1, 0])
    with pytest.raises(InputError, match="weighs each code by its usage; pass usage"):
        cluster(x, 2, method="kmeans++-weighted")
    with pytest.raises(InputError, match="usage must be one count for each of the 4 codes"):
        cluster(x, 2, usage=np.ones(3))
    with pytest.raises(InputError, match="usage must be counts of zero or more, got -1 for code 2"):
        live_codes(np.array([1, 1, -1, 1]), 4)


def test_what_does_not_fit_in_memory_is_said_before_it_is_tried(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: 45_000)
    x = np.random.default_rng(0).normal(size=(108, 3))
    with pytest.raises(InputError, match=r"'ward' linkage holds every distance between 108 codes and takes 0.046 MB"):
        cluster(x, 2, method="ward")
    assert cluster(x[:100], 2, method="ward").n_clusters == 2


def test_a_clustering_cannot_be_changed_by_name():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cluster(np.eye(3), 2).labels = np.zeros(3)
