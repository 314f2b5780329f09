"""average_linkage against the definition, against its laws and against SciPy."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy

import naive
from codeprior.clustering.cut import cut
from codeprior.clustering.linkage import average_linkage
from codeprior.errors import InputError

CASES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def codebooks(draw, largest=60):
    """Vectors of any kind that a codebook may hold: generic, with copies, rounded, on a line, far from the origin."""
    n = draw(st.one_of(st.integers(1, 12), st.integers(1, largest)))
    dim = draw(st.integers(1, 32))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = rng.normal(size=(n, dim))
    kind = draw(st.sampled_from(["generic", "clustered", "copies", "rounded", "binary", "sphere", "far", "tiny"]))
    if kind == "clustered":
        vectors = vectors * 0.1 + 3 * rng.normal(size=(5, dim))[rng.integers(0, 5, n)]
    elif kind == "copies":
        vectors = vectors[rng.integers(0, n, n)]
    elif kind == "rounded":
        vectors = np.round(vectors * 2) / 4
    elif kind == "binary":
        vectors = np.sign(vectors[:, :8])
    elif kind == "sphere":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    elif kind == "far":
        vectors += 100
    elif kind == "tiny":
        vectors *= 1e-12
    return vectors.astype(draw(st.sampled_from([np.float32, np.float64])))


# Small codebooks go straight to the matrix; these make them take the ways of the large ones.
_NEAR = {"linkage.TREE_DIMENSIONS": 0, "linkage.NEAR_ABOVE": 1}
_NEAR_IN_PIECES = {"_near.NEIGHBOURS": 3, "_near.ROWS": 4, "_near.COLUMNS": 9, "_near.ROWS_PER_CALL": 5}
_TREE = {"linkage.TREE_DIMENSIONS": 99}
PATHS = {
    "matrix": {},
    "matrix, in rounds": {"_matrix.FINISH_BELOW": 3, "_matrix.PAIRS_A_ROUND": 1000},
    "matrix, pairs in small calls": {"_matrix.PAIR_ENTRIES": 300},
    "search": {**_TREE, "linkage.MATRIX_CLUSTERS": 2},
    "near, then matrix": _NEAR,
    "few near in pieces, then matrix in pieces": {**_NEAR, **_NEAR_IN_PIECES, "_sums.ROWS": 3, "_sums.COLUMNS": 5},
    "near for two rounds, then matrix": {**_NEAR, "_near.ROUNDS": 2},
    "near, then scan": {**_NEAR, "linkage.LARGEST_MATRIX": 2},
    "scan": {"linkage.LARGEST_MATRIX": 2, "linkage.TREE_DIMENSIONS": 0},
    "scan, then matrix": {"linkage.LARGEST_MATRIX": 12, "linkage.TREE_DIMENSIONS": 0},
    "search, then matrix": {**_TREE, "linkage.MATRIX_CLUSTERS": 12},
    "search, then matrix in small calls": {**_TREE, "linkage.MATRIX_CLUSTERS": 12, "_sums.DISTANCES_PER_CALL": 200},
}


def on_path(path, vectors, *arguments, **options):
    with contextlib.ExitStack() as patches:
        for name, value in PATHS[path].items():
            patches.enter_context(mock.patch(f"codeprior.clustering.{name}", value))
        return average_linkage(vectors, *arguments, **options)


paths = st.sampled_from(list(PATHS))


@st.composite
def problems(draw, largest=60):
    vectors = draw(codebooks(largest))
    n = len(vectors)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = draw(st.sampled_from([None, rng.uniform(0.1, 10, n), rng.integers(1, 4, n).astype(float)]))
    bound = draw(st.one_of(st.none(), st.integers(1, n)))
    n_clusters = draw(st.one_of(st.just(1), st.integers(1, n)))
    strict = draw(st.booleans())
    return vectors, {"n_clusters": n_clusters, "weights": weights, "max_cluster_size": bound, "strict": strict}


@CASES
@given(problems(largest=200), paths)
def test_every_merge_is_a_minimum_of_the_definition(problem, path):
    vectors, options = problem
    Z = on_path(path, vectors, **options)
    assert naive.replay(Z, naive.instance_distances(vectors), **options) is None
    assert (np.diff(Z[:, 2]) >= 0).all()


@CASES
@given(problems(largest=30), paths)
def test_equals_the_greedy_definition_where_there_are_no_ties(problem, path):
    vectors, options = problem
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=vectors.shape)  # generic: no two distances within rounding of each other
    Z = on_path(path, vectors, **options)
    expected = naive.greedy_average_linkage(naive.instance_distances(vectors), **options)
    assert Z.shape == expected.shape
    np.testing.assert_array_equal(Z[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    np.testing.assert_allclose(Z[:, 2], expected[:, 2], rtol=1e-11)  # 41 bits, and sums in another order


@CASES
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.one_of(st.none(), st.integers(1, 10)), st.booleans(), paths)
def test_ties_go_to_the_lowest_representatives(n, seed, bound, strict, path):
    # Whole numbers on a line: all distances and their sums are exact, so ties are ties in any order of summation.
    vectors = np.random.default_rng(seed).integers(0, 12, (n, 1)).astype(np.float64)
    Z = on_path(path, vectors, max_cluster_size=bound, strict=strict)
    expected = naive.greedy_average_linkage(naive.instance_distances(vectors), max_cluster_size=bound, strict=strict)
    np.testing.assert_array_equal(Z, expected)


@CASES
@given(problems(largest=200), paths)
def test_same_bits_for_one_thread_and_two(problem, path):
    vectors, options = problem
    one = on_path(path, vectors, n_threads=1, **options)
    two = on_path(path, vectors, n_threads=2, **options)
    assert one.tobytes() == two.tobytes()


@CASES
@given(problems(), paths)
def test_stopping_early_gives_the_head_of_the_complete_tree(problem, path):
    vectors, options = problem
    part = on_path(path, vectors, **options)
    whole = on_path(path, vectors, **{**options, "n_clusters": 1})
    np.testing.assert_array_equal(part, whole[: len(part)])
    assert len(part) == min(len(whole), len(vectors) - options["n_clusters"])


@CASES
@given(codebooks())
def test_metrics_agree_on_the_same_distances(vectors):
    def euclidean(x, y):
        return np.sqrt(((x[:, None].astype(float) - y[None]) ** 2).sum(axis=-1))

    from_vectors = average_linkage(vectors, metric=euclidean)
    from_matrix = average_linkage(euclidean(vectors, vectors), metric="precomputed")
    np.testing.assert_array_equal(from_vectors, from_matrix)
    assert naive.replay(from_matrix, naive.instance_distances(vectors)) is None


def clouds(kind, n, dim, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, dim))
    if kind == "clustered":
        vectors = vectors * 0.2 + rng.normal(size=(n // 32, dim))[rng.integers(0, n // 32, n)]
    elif kind == "uniform":
        vectors = rng.uniform(size=(n, dim))
    elif kind == "spherical":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    elif kind == "half in the middle":  # as where training starts them: a cluster that is the nearest of all others
        vectors[rng.permutation(n)[: n // 2]] /= n
    return vectors.astype(np.float32)


def assert_equal_to_scipy(vectors):
    n = len(vectors)
    expected = hierarchy.linkage(vectors.astype(np.float64), "average")
    Z = average_linkage(vectors)
    np.testing.assert_allclose(Z[:, 2], expected[:, 2], rtol=1e-5)
    for n_clusters in (1, 2, 10, n // 32, n // 8, n // 2, n - 1):
        np.testing.assert_array_equal(cut(Z, n, n_clusters), cut(expected, n, n_clusters))
        np.testing.assert_array_equal(average_linkage(vectors, n_clusters), Z[: n - n_clusters])


@pytest.mark.parametrize("kind", ["clustered", "uniform", "spherical"])
@pytest.mark.parametrize("dim", [2, 8, 32])
def test_equals_scipy_at_1024(kind, dim):
    assert_equal_to_scipy(clouds(kind, 1024, dim))


@pytest.mark.parametrize(
    ("kind", "dim"),
    [("clustered", 8), ("uniform", 3), ("spherical", 32), ("half in the middle", 8), ("half in the middle", 64)],
)
def test_equals_scipy_at_4096(kind, dim):
    assert_equal_to_scipy(clouds(kind, 4096, dim))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dim"), [("clustered", 8), ("uniform", 8), ("spherical", 32)])
def test_equals_scipy_at_16384(kind, dim):
    assert_equal_to_scipy(clouds(kind, 16384, dim))


def test_one_code_has_no_merges():
    assert average_linkage(np.ones((1, 3))).shape == (0, 4)


def test_two_codes_merge_at_their_distance():
    np.testing.assert_array_equal(average_linkage(np.array([[0.0, 3.0], [4.0, 0.0]])), [[0, 1, 5, 2]])


def test_three_codes_give_the_mean_of_two_distances():
    Z = average_linkage(np.array([[0.0], [1.0], [5.0]]))
    np.testing.assert_array_equal(Z, [[0, 1, 1, 2], [2, 3, 4.5, 3]])


@pytest.mark.parametrize("exponent", [-1000, -500, 500, 1010])
def test_very_large_and_very_small_vectors_give_the_same_tree(exponent):
    vectors = clouds("clustered", 1500, 8).astype(np.float64)
    Z, far = average_linkage(vectors), average_linkage(np.ldexp(vectors, exponent))
    np.testing.assert_array_equal(Z[:, [0, 1, 3]], far[:, [0, 1, 3]])
    np.testing.assert_allclose(np.ldexp(far[:, 2], -exponent), Z[:, 2], rtol=1e-11)  # 41 bits
    distances = naive.instance_distances(vectors[:100])
    Z = average_linkage(np.ldexp(distances, exponent), metric="precomputed")
    np.testing.assert_array_equal(np.ldexp(Z[:, 2], -exponent), average_linkage(distances, metric="precomputed")[:, 2])


@pytest.mark.parametrize("exponent", [-1000, -300, 300, 1000])
def test_weights_of_any_scale_give_the_same_tree(exponent):
    vectors, weights = clouds("clustered", 200, 4), np.random.default_rng(0).uniform(0.01, 1, 200)
    expected = average_linkage(vectors, weights=weights)
    np.testing.assert_array_equal(average_linkage(vectors, weights=np.ldexp(weights, exponent)), expected)


def test_distances_that_all_but_mirror_each_other_are_averaged():
    distances = naive.instance_distances(clouds("uniform", 40, 3))
    noise = np.random.default_rng(0).uniform(-1e-9, 1e-9, distances.shape)
    with mock.patch("codeprior.clustering.linkage.BLOCK", 16):
        Z = average_linkage(np.abs(distances + noise), metric="precomputed")
        turned = average_linkage(np.abs(distances + noise).T, metric="precomputed")
    np.testing.assert_array_equal(Z, turned)
    np.testing.assert_allclose(Z[:, 2], average_linkage(distances, metric="precomputed")[:, 2], atol=1e-9)


def test_input_is_not_modified():
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    distances = naive.instance_distances(vectors)
    for array, metric in ((vectors, "euclidean"), (distances, "precomputed")):
        before = array.copy()
        average_linkage(array, metric=metric)
        np.testing.assert_array_equal(array, before)


def test_equal_rows_merge_first_at_height_zero():
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(140, 4)).astype(np.float32)
    vectors = np.concatenate([distinct, np.repeat(distinct[:3], 20, axis=0)])
    Z = average_linkage(vectors)
    assert (Z[:60, 2] == 0).all()
    assert Z[60, 2] > 0
    assert naive.replay(Z, naive.instance_distances(vectors)) is None


def test_a_frozen_cluster_merges_no_more_and_k_is_reached():
    vectors = clouds("clustered", 512, 4)
    for n_clusters in (2, 16, 100):
        bound = 512 // n_clusters
        Z = average_linkage(vectors, n_clusters, max_cluster_size=bound)
        assert len(Z) == 512 - n_clusters
        assert Z[:, 3].max() <= 2 * bound


def test_strict_bound_is_never_exceeded():
    Z = average_linkage(clouds("clustered", 512, 4), 16, max_cluster_size=32, strict=True)
    assert Z[:, 3].max() <= 32
    assert len(Z) < 512 - 16  # not every set of sizes can be packed: more clusters are left than asked for


@pytest.mark.parametrize("dim", [8, 256])
def test_ctrl_c_ends_work_of_minutes(dim):
    code = f"""
import numpy as np
from codeprior.clustering.linkage import average_linkage
vectors = np.random.default_rng(0).normal(size=(150_000, {dim})).astype(np.float32)
average_linkage(vectors, progress=lambda *told: print("under way", flush=True))
"""
    # A process started in the background may ignore the signal: then Python leaves it so.
    restored = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", restored + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "under way\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert said.endswith("KeyboardInterrupt\n")


def test_progress_ends_at_the_merges_wanted():
    seen = []
    average_linkage(clouds("uniform", 300, 3), 20, progress=lambda *told: seen.append(told))
    assert seen[-1] == ("merges", 280, 280)
    assert {work for work, _, _ in seen} == {"distances", "merges"}
    for work in ("distances", "merges"):
        steps = [(done, total) for told, done, total in seen if told == work]
        assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vectors": np.ones(3)}, r"shape \(V, E\).*\(3,\)"),
        ({"vectors": np.ones((0, 3))}, "shape"),
        ({"vectors": np.ones((3, 3)), "n_clusters": 0}, "between 1 and 3 .*got 0"),
        ({"vectors": np.ones((3, 3)), "n_clusters": 4}, "between 1 and 3 .*got 4"),
        ({"vectors": np.array([[0.0], [np.nan], [np.inf]])}, "2 non-finite vectors, first at index 1"),
        ({"vectors": np.ones((3, 3)), "weights": np.array([1.0, 0.0, 2.0])}, "positive.*got 0.0 at index 1"),
        ({"vectors": np.ones((3, 3)), "weights": np.array([1.0, 2.0, -2.0])}, "positive.*index 2"),
        ({"vectors": np.ones((3, 3)), "weights": np.ones(2)}, r"shape \(3,\)"),
        ({"vectors": np.ones((3, 3)), "weights": np.array(["a", "b", "c"])}, "must be numbers"),
        ({"vectors": np.ones((3, 3)), "weights": np.array([1.0, 1e-70, 2.0])}, "within a factor of 1e.60"),
        ({"vectors": np.ones((3, 3)), "max_cluster_size": 0}, "max_cluster_size"),
        ({"vectors": np.ones((3, 3)), "max_cluster_size": 1.5}, "whole number"),
        ({"vectors": np.ones((3, 3)), "n_clusters": 1.5}, "between 1 and 3 .*got 1.5"),
        ({"vectors": None}, "shape"),
        ({"vectors": [[0.0], [1.0, 2.0]]}, "rows differ"),
        ({"vectors": np.ones((3, 3)), "metric": lambda x, y: np.full((3, 3), np.nan)}, "finite"),
        ({"vectors": np.ones((3, 3)), "n_threads": 0}, "n_threads"),
        ({"vectors": np.ones((3, 3)), "metric": "cosine"}, "metric"),
        ({"vectors": np.ones((3, 2)), "metric": "precomputed"}, "square"),
        ({"vectors": np.array([[0.0, 1.0], [2.0, 0.0]]), "metric": "precomputed"}, "symmetric"),
        ({"vectors": np.array([[0.0, -1.0], [-1.0, 0.0]]), "metric": "precomputed"}, "negative"),
        ({"vectors": np.ones((3, 3)), "metric": lambda x, y: np.ones(3)}, "metric must return shape"),
        ({"vectors": np.array([["a"]])}, "real numbers"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_given(arguments, message):
    with pytest.raises(InputError, match=message):
        average_linkage(**arguments)
