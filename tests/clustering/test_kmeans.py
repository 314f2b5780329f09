"""The k-means family: equal to its plain definitions, always exactly n_clusters clusters, the same on any threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

import naive
from codeprior.clustering import assignment
from codeprior.clustering._parallel import RowPool
from codeprior.clustering.assignment import (
    by_first_appearance,
    cluster_means,
    fill_empty_clusters,
    nearest_centres,
    nearest_clusters,
)
from codeprior.clustering.balanced import balanced_kmeans, balanced_order
from codeprior.clustering.kmeans import _draw_distinct, _plusplus_seeds, centroid_free_kmeans, kmeans
from codeprior.errors import InputError

seeds = st.integers(0, 2**32 - 1)

FAMILY = {
    "random": lambda x, k, seed: kmeans(x, k, seed=seed),
    "k-means++": lambda x, k, seed: kmeans(x, k, seed=seed, init="k-means++"),
    "balanced": lambda x, k, seed: balanced_kmeans(x, k, seed=seed),
    "centroid-free": lambda x, k, seed: centroid_free_kmeans(x, k, seed=seed),
}
every_member = pytest.mark.parametrize("method", FAMILY.values(), ids=FAMILY)


def coarse_codes(seed, n, width, values=4):
    """Codes on a coarse grid: duplicates and ties everywhere."""
    return np.random.default_rng(seed).integers(0, values, size=(n, width)).astype(np.float32)


def naive_nearest(distances):
    """The first of the nearest columns."""
    return np.array([min(range(len(row)), key=lambda j: (row[j], j)) for row in distances])


def naive_lloyd(x, start, weights):
    """Labels when none changes any more; None if a cluster dies on the way, where plain Lloyd has no answer."""
    centres = x[start]
    labels = None
    while True:
        before, labels = labels, naive_nearest(((x[:, None] - centres[None]) ** 2).sum(axis=2))
        if before is not None and np.array_equal(before, labels):
            return labels
        if len(np.unique(labels)) < len(start):
            return None
        centres = np.array(
            [np.average(x[labels == c], axis=0, weights=weights[labels == c]) for c in range(len(start))]
        )


def naive_balanced(x, start, iterations):
    """The best of so many greedy assignments; returns its labels."""
    n, k = len(x), len(start)
    centres = x[start]
    errors = []
    for _ in range(iterations):
        distances = ((x[:, None] - centres[None]) ** 2).sum(axis=2)
        members = [[] for _ in range(k)]
        for code in sorted(range(n), key=lambda i: (distances[i].min(), i)):
            for cluster in sorted(range(k), key=lambda c: (distances[code, c], c)):
                large = sum(len(m) > n // k for m in members)
                if len(members[cluster]) < n // k or (len(members[cluster]) == n // k and large < n % k):
                    members[cluster].append(code)
                    break
        centres = np.array([x[m].mean(axis=0) for m in members])
        labels = np.empty(n, dtype=int)
        for cluster, m in enumerate(members):
            labels[m] = cluster
        errors.append((((x - centres[labels]) ** 2).sum(), labels))
    return min(errors, key=lambda e: e[0])[1]


def naive_mean_distances(distances, labels, weights):
    return np.stack(
        [np.average(distances[:, labels == c], axis=1, weights=weights[labels == c]) for c in range(labels.max() + 1)],
        axis=1,
    )


def naive_walk(x):
    """IAR's order of one cluster: from the middle outwards, to the right and to the left in turn."""
    near = lambda i, others: min(others, key=lambda j: (((x[i] - x[j]) ** 2).sum(), j))  # noqa: E731
    remaining = list(range(len(x)))
    middle = min(remaining, key=lambda i: (((x[i] - x.mean(axis=0)) ** 2).sum(), i))
    sequence = [middle]
    remaining.remove(middle)
    turn = 0
    while remaining:
        chosen = near(sequence[-1] if turn % 2 == 0 else sequence[0], remaining)
        sequence = [*sequence, chosen] if turn % 2 == 0 else [chosen, *sequence]
        remaining.remove(chosen)
        turn += 1
    return sequence


@settings(deadline=None, max_examples=25)
@given(st.integers(10, 80), st.integers(1, 8), st.integers(1, 9), seeds, st.booleans())
def test_kmeans_is_plain_lloyd_from_the_codes_drawn(n, width, k, seed, weighted):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) + 8 * rng.integers(0, 3, size=(n, 1))
    weights = rng.uniform(0.1, 5, size=n) if weighted else np.ones(n)
    expected = naive_lloyd(x, _draw_distinct(x, k, seed), weights)
    assume(expected is not None)
    labels = kmeans(x, k, seed=seed, weights=weights if weighted else None)
    np.testing.assert_array_equal(labels, by_first_appearance(expected))


SEARCHES = {"all": (10**9, 0), "tree": (1, 10**9), "products": (1, 0)}  # _FEW_CENTRES, _NARROW


@pytest.fixture(params=SEARCHES, scope="module")
def search(request):
    """Find nearest centres in one of the three ways, whatever the sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "_FEW_CENTRES", SEARCHES[request.param][0])
        patch.setattr(assignment, "_NARROW", SEARCHES[request.param][1])
        yield request.param


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 6), seeds, st.booleans())
def test_every_search_finds_the_lowest_of_the_nearest_centres(search, n, k, width, seed, coarse):
    rng = np.random.default_rng(seed)
    x = coarse_codes(seed, n, width).astype(float) if coarse else rng.normal(size=(n, width))
    centres = coarse_codes(seed + 1, k, width).astype(float) if coarse else x[rng.integers(0, n, size=k)] / 3
    with RowPool(2) as pool:
        nearest, sqdist = nearest_centres(x, centres, pool)
    expected = ((x[:, None] - centres[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(nearest, naive_nearest(expected))
    np.testing.assert_allclose(sqdist, expected.min(axis=1), rtol=1e-12, atol=1e-24)


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_ends_where_scikit_learn_ends_from_the_same_codes(search, weighted):
    rng = np.random.default_rng(11)
    x = rng.normal(size=(900, 6)) + 3 * rng.integers(0, 3, size=(900, 1))
    weights = rng.uniform(0.5, 2, size=900) if weighted else None
    theirs = KMeans(60, init=x[_draw_distinct(x, 60, 3)], n_init=1, tol=0, max_iter=300).fit(x, sample_weight=weights)
    np.testing.assert_array_equal(kmeans(x, 60, seed=3, weights=weights), by_first_appearance(theirs.labels_))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 60), st.integers(1, 6), seeds, st.sampled_from([1, 3]), st.data())
def test_each_seed_of_kmeans_plusplus_is_the_best_of_a_few_drawn_by_squared_distance(n, width, seed, n_threads, data):
    k = data.draw(st.integers(1, n - 1))
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(n, width)), rng.uniform(0.5, 2, size=n)
    with pytest.MonkeyPatch.context() as patch, RowPool(n_threads) as pool:
        patch.setattr("codeprior.clustering.kmeans._SEED_ROWS", 7)
        found = _plusplus_seeds(x, weights, k, seed, pool, None)
    draws = np.random.default_rng(seed)
    chances, expected, closest = weights, [], np.full(n, np.inf)
    for _ in range(k):
        heads = np.cumsum(chances)
        drawn = np.searchsorted(heads, draws.random(2 + int(np.log(k)) if expected else 1) * heads[-1], side="right")
        left = [np.minimum(closest, ((x - x[i]) ** 2).sum(axis=1)) for i in drawn]
        best = min(range(len(drawn)), key=lambda i: (left[i] * weights).sum())
        expected.append(drawn[best])
        closest = left[best]
        chances = closest * weights
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 6), seeds, st.integers(1, 5), st.data())
def test_balanced_kmeans_equals_the_plain_greedy_assignment(n, width, seed, iterations, data):
    k = data.draw(st.integers(1, n))
    x = np.random.default_rng(seed).normal(size=(n, width))
    start = np.random.default_rng(seed).permutation(n)[:k]
    labels = balanced_kmeans(x, k, seed=seed, max_iterations=iterations)
    np.testing.assert_array_equal(labels, by_first_appearance(naive_balanced(x, start, iterations)))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 3), seeds, st.data())
def test_balanced_kmeans_breaks_ties_towards_lower_codes_and_centres(n, width, seed, data):
    k = data.draw(st.integers(1, n))
    x = coarse_codes(seed, n, width).astype(np.float64)  # whole numbers: distances to the first centres are exact
    start = np.random.default_rng(seed).permutation(n)[:k]
    labels = balanced_kmeans(x, k, init=start, max_iterations=1)
    np.testing.assert_array_equal(labels, by_first_appearance(naive_balanced(x, start, 1)))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 60), st.integers(1, 6), seeds, st.booleans(), st.data())
def test_centroid_free_kmeans_ends_where_no_code_is_nearer_to_another_clusters_members(n, width, seed, weighted, data):
    k = data.draw(st.integers(1, min(n, 8)))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width))
    weights = rng.uniform(0.1, 5, size=n) if weighted else np.ones(n)
    distances = naive.instance_distances(x)

    expected = naive_nearest(distances[:, _draw_distinct(x, k, seed)])
    seen = []
    while not any(np.array_equal(expected, before) for before in seen) and len(np.unique(expected)) == k:
        seen.append(expected)
        expected = naive_nearest(naive_mean_distances(distances, expected, weights))
    assume(len(np.unique(expected)) == k)
    labels = centroid_free_kmeans(x, k, seed=seed, weights=weights)
    np.testing.assert_array_equal(labels, by_first_appearance(expected))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 4), seeds, st.data())
def test_nearest_clusters_are_those_of_smallest_mean_distance(n_members, n_rows, width, seed, data):
    k = data.draw(st.integers(1, n_members))
    members, rows = coarse_codes(seed, n_members, width), coarse_codes(seed + 1, n_rows, width)
    labels = np.random.default_rng(seed).permutation(np.arange(n_members) % k)
    found = nearest_clusters(rows, members, labels)
    distances = naive.instance_distances(np.concatenate([rows, members]))[:n_rows, n_rows:]
    means = naive_mean_distances(distances, labels, np.ones(n_members))
    # Equal means may differ in the last digit here and there: the one found must be a minimum up to that.
    np.testing.assert_allclose(means[np.arange(n_rows), found], means.min(axis=1), rtol=1e-12, atol=1e-12)


def test_of_two_clusters_equally_near_the_lower_is_taken():
    members = np.array([[1.0], [-1.0], [-1.0], [1.0]])
    np.testing.assert_array_equal(nearest_clusters(np.array([[0.0]]), members, np.array([1, 0, 0, 1])), [0])


def test_clusters_of_copies_at_the_row_itself_are_all_seen():
    # The means of many copies are off by rounding, so a bound without slack would miss the lower cluster.
    row = np.array([[0.1, 0.7, 0.3]])
    np.testing.assert_array_equal(nearest_clusters(row, np.repeat(row, 9, axis=0), np.array([0] * 7 + [1, 2])), [0])


@every_member
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 3), seeds, st.data())
def test_there_are_always_exactly_n_clusters_numbered_by_first_appearance(method, n, width, seed, data):
    k = data.draw(st.integers(1, n))
    labels = method(coarse_codes(seed, n, width, values=2), k, seed)
    assert labels.dtype == np.int64
    assert labels.shape == (n,)
    _, first = np.unique(labels, return_index=True)
    assert len(first) == k
    assert np.all(np.diff(first) > 0)
    assert labels[0] == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 100), seeds, st.data())
def test_balanced_sizes_differ_by_at_most_one(n, seed, data):
    k = data.draw(st.integers(1, n))
    sizes = np.bincount(balanced_kmeans(coarse_codes(seed, n, 2), k, seed=seed))
    assert len(sizes) == k
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_equal_codes_share_a_cluster_while_enough_others_differ(init):
    x = coarse_codes(0, 200, 3)
    labels = kmeans(x, 20, seed=1, init=init)
    for row in np.unique(x, axis=0):
        assert len(np.unique(labels[(x == row).all(axis=1)])) == 1


@every_member
def test_the_same_seed_gives_the_same_labels_and_leaves_the_input_alone(method):
    x = np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
    before = x.copy()
    np.testing.assert_array_equal(method(x, 17, 5), method(x, 17, 5))
    np.testing.assert_array_equal(x, before)
    assert not np.array_equal(method(x, 17, 5), method(x, 17, 6))


@pytest.mark.parametrize("method", [kmeans, balanced_kmeans, centroid_free_kmeans])
@pytest.mark.parametrize("k", [9, 300])
def test_threads_change_nothing(method, k, monkeypatch):
    monkeypatch.setattr(assignment, "_STEPS_PER_BLOCK", 10_000)  # many blocks of rows
    x = np.random.default_rng(0).normal(size=(500, 5))
    one = method(x, k, seed=0, max_iterations=3, n_threads=1)
    np.testing.assert_array_equal(one, method(x, k, seed=0, max_iterations=3, n_threads=4))


@every_member
def test_well_separated_groups_are_found_once_each_has_a_seed(method):
    x = np.repeat(np.eye(3) * 100, 10, axis=0) + np.random.default_rng(0).normal(size=(30, 3))
    found = [method(x, 3, seed) for seed in range(15)]
    assert any(np.array_equal(labels, np.repeat(np.arange(3), 10)) for labels in found)


def test_weights_pull_the_centres():
    x = np.array([[0.0], [4.0], [5.0], [10.0]])
    light, heavy = np.ones(4), np.array([1.0, 1.0, 1.0, 1e6])
    even = {tuple(kmeans(x, 2, seed=s, weights=light)) for s in range(20)}
    pulled = {tuple(kmeans(x, 2, seed=s, weights=heavy)) for s in range(20)}
    assert (0, 1, 1, 1) in even
    assert pulled <= {(0, 0, 0, 1)}


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 5), seeds, st.booleans(), st.data())
def test_balanced_order_is_the_walk_of_each_cluster_in_turn(n, width, seed, coarse, data):
    k = data.draw(st.integers(1, n))
    rng = np.random.default_rng(seed)
    x = coarse_codes(seed, n, width).astype(float) if coarse else rng.normal(size=(n, width))
    labels = by_first_appearance(rng.integers(0, k, size=n))
    mapping = balanced_order(x, labels)
    expected = []
    for cluster in range(labels.max() + 1):
        members = np.flatnonzero(labels == cluster)
        expected.extend(members[naive_walk(x[members])])
    reordered = np.empty_like(x)
    reordered[mapping] = x
    np.testing.assert_array_equal(np.sort(mapping), np.arange(n))
    np.testing.assert_array_equal(reordered, x[expected])
    if not coarse:  # equidistant codes may swap by a last digit of the mean; without them the order is the twin's
        np.testing.assert_array_equal(np.argsort(mapping), expected)


def test_the_middle_of_a_cluster_takes_its_middle_place():
    x = np.array([[3.0], [0.0], [1.1], [-1.5]])  # the mean is 0.65: code 2; then 1 to its right, 0 to its left, 3
    np.testing.assert_array_equal(np.argsort(balanced_order(x, np.zeros(4, dtype=int))), [0, 2, 1, 3])


def test_an_empty_cluster_takes_the_farthest_code_that_is_not_its_clusters_last():
    x = np.array([[0.0], [1.0], [9.0], [100.0]])
    labels = np.array([0, 0, 0, 2])
    np.testing.assert_array_equal(fill_empty_clusters(x, labels, 3), [0, 0, 1, 2])
    np.testing.assert_array_equal(labels, [0, 0, 0, 2])


def test_cluster_means_are_weighted():
    means = cluster_means(np.array([[0.0], [1.0], [5.0]]), np.array([0, 0, 1]), 2, np.array([1.0, 3.0, 2.0]))
    np.testing.assert_array_equal(means, [[0.75], [5.0]])


@every_member
@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_wrong_number_of_clusters_is_named(method, k):
    with pytest.raises(InputError, match=rf"n_clusters must be between 1 and 4 .*got {k}"):
        method(np.eye(4), k, 0)


@every_member
def test_bad_vectors_are_refused(method):
    x = np.eye(4)
    x[2, 1] = np.nan
    with pytest.raises(InputError, match="non-finite vector, first at index 2"):
        method(x, 2, 0)
    with pytest.raises(InputError, match="one row a code"):
        method(np.zeros(4), 2, 0)


def test_bad_arguments_are_refused():
    x = np.eye(4)
    with pytest.raises(InputError, match="init must be one of random, k-means"):
        kmeans(x, 2, seed=0, init="best")
    with pytest.raises(InputError, match="positive"):
        kmeans(x, 2, seed=0, weights=np.array([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="positive"):
        centroid_free_kmeans(x, 2, weights=np.array([1.0, np.inf, 1.0, 1.0]))
    with pytest.raises(InputError, match="one code for each of the 2 clusters, got 3"):
        balanced_kmeans(x, 2, init=np.array([0, 1, 2]))
    with pytest.raises(InputError, match="labels must be one for each of the 4 codes"):
        balanced_order(x, np.zeros(3, dtype=int))
    for method in (kmeans, balanced_kmeans, centroid_free_kmeans):
        with pytest.raises(InputError, match="max_iterations must be a whole number of at least 1, got 0"):
            method(x, 2, seed=0, max_iterations=0)
