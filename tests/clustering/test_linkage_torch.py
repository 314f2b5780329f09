"""Average linkage on torch devices: every way through it, on the CPU, against the definition and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy

import naive
from codeprior.clustering import _torch
from codeprior.clustering._torch_clusters import Groups, distances
from codeprior.clustering._torch_list import near_points
from codeprior.clustering._torch_matrix import rounds_to_most
from codeprior.clustering._torch_plan import Plan
from codeprior.clustering.linkage import average_linkage
from codeprior.errors import InputError

CPU = torch.device("cpu")
# The sizes at which the work changes hands, set so that small codebooks take every way.
PLANS = {
    "matrix, then CPU": Plan(matrix_most=8192, cpu_at=8),
    "matrix": Plan(matrix_most=8192, cpu_at=0, cpu_most=0),
    "CPU": Plan(matrix_most=8192),
    "list": Plan(matrix_most=0, neighbours=3.0, block=1 << 12),
    "list, then matrix": Plan(matrix_most=20, cpu_at=0, cpu_most=0, neighbours=2.0, block=1 << 12),
    "short list": Plan(matrix_most=0, neighbours=16.0, block=1 << 11, listed_most=20),
}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def one_thread():
    """The steps are large on a GPU and small here: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linkage(vectors, n_clusters=1, weights=None, max_cluster_size=None, strict=False, plan="matrix, then CPU"):
    return _torch._linkage(vectors, n_clusters, weights, max_cluster_size, strict, CPU, PLANS[plan])


def blobs(n, dim, seed, spread=0.3):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 50), dim))
    vectors = centres[rng.integers(0, len(centres), n)] + spread * rng.normal(size=(n, dim))
    return vectors.astype(np.float32)


@st.composite
def problems(draw):
    n = draw(st.one_of(st.integers(1, 12), st.integers(1, 60)))
    dim = draw(st.sampled_from([1, 2, 8, 32, 40]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = rng.normal(size=(n, dim))
    kind = draw(st.sampled_from(["generic", "clustered", "copies", "rounded", "far", "tiny"]))
    if kind == "clustered":
        vectors = 0.1 * vectors + 3 * rng.normal(size=(5, dim))[rng.integers(0, 5, n)]
    elif kind == "copies":
        vectors = vectors[rng.integers(0, n, n)]
    elif kind == "rounded":
        vectors = np.round(vectors * 2) / 4
    elif kind == "far":
        vectors += 100
    elif kind == "tiny":
        vectors *= 1e-30
    options = {
        "n_clusters": draw(st.one_of(st.just(1), st.integers(1, n))),
        "weights": draw(st.sampled_from([None, rng.uniform(0.1, 10, n)])),
        "max_cluster_size": draw(st.one_of(st.none(), st.integers(1, n))),
        "strict": draw(st.booleans()),
    }
    return vectors.astype(draw(st.sampled_from([np.float32, np.float64]))), options


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems())
def test_every_merge_is_a_minimum_of_the_definition(plan, problem):
    vectors, options = problem
    untouched = vectors.copy()
    Z = linkage(vectors, plan=plan, **options)
    assert naive.replay(Z, naive.instance_distances(vectors), **options) is None
    assert (np.diff(Z[:, 2]) >= 0).all()
    assert np.array_equal(vectors, untouched)


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems())
def test_as_many_merges_as_on_the_cpu_path(plan, problem):
    vectors, options = problem
    assert linkage(vectors, plan=plan, **options).shape == average_linkage(vectors, n_threads=1, **options).shape


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("seed", range(2))
def test_tree_is_that_of_the_cpu_path_where_nothing_ties(plan, seed):
    rng = np.random.default_rng(seed)
    vectors, weights = rng.normal(size=(90, 5)), rng.uniform(0.1, 3, 90)
    for options in [
        {},
        {"n_clusters": 30},
        {"weights": weights},
        {"max_cluster_size": 7},
        {"max_cluster_size": 7, "strict": True, "weights": weights, "n_clusters": 30},
    ]:
        ours = linkage(vectors, plan=plan, **options)
        expected = average_linkage(vectors, n_threads=1, **options)
        assert np.array_equal(ours[:, [0, 1, 3]], expected[:, [0, 1, 3]])
        # Heights have 41 bits: sums in another order may round to neighbouring ones.
        np.testing.assert_allclose(ours[:, 2], expected[:, 2], rtol=1e-11)


@pytest.mark.parametrize("plan", ["matrix, then CPU", "CPU", "list, then matrix"])
@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("kind", ["clustered", "uniform", "sphere", "far from the origin"])
def test_tree_is_that_of_scipy(plan, dim, kind):
    rng = np.random.default_rng(dim)
    vectors = blobs(200, dim, seed=dim) if kind == "clustered" else rng.random((200, dim)).astype(np.float32)
    if kind == "sphere":
        vectors = rng.normal(size=(200, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if kind == "far from the origin":
        vectors += 1000
    expected = hierarchy.linkage(vectors.astype(np.float64), "average")
    for n_clusters in (1, 100, 190):
        ours = linkage(vectors, n_clusters, plan=plan)
        assert np.array_equal(ours[:, [0, 1, 3]], expected[: 200 - n_clusters, [0, 1, 3]])
        np.testing.assert_allclose(ours[:, 2], expected[: 200 - n_clusters, 2], rtol=1e-10)


@pytest.mark.parametrize("plan", PLANS)
def test_of_equal_distances_the_lowest_codes_merge_first(plan):
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [5, 5]], dtype=np.float32)
    diagonal = (2 + 2 * math.sqrt(2)) / 4
    Z = linkage(corners, 2, plan=plan)
    np.testing.assert_allclose(Z, [[0, 1, 1, 2], [2, 3, 1, 2], [5, 6, diagonal, 4]], rtol=1e-12)


@pytest.mark.parametrize("plan", PLANS)
def test_copies_merge_first_and_in_the_order_of_their_codes(plan):
    vectors = np.array([[1.0], [2], [1], [1], [2], [9]])
    Z = linkage(vectors, 2, plan=plan)
    assert Z.tolist() == [[0, 2, 0, 2], [3, 6, 0, 3], [1, 4, 0, 2], [7, 8, 1, 5]]


@pytest.mark.parametrize("plan", PLANS)
def test_neighbours_on_a_line_with_growing_gaps_merge_one_a_round(plan):
    positions = np.cumsum(np.arange(1.0, 80.0) ** 1.1)[:, None]
    expected = hierarchy.linkage(positions, "average")
    np.testing.assert_allclose(linkage(positions, plan=plan), expected, rtol=1e-10)


@pytest.mark.parametrize("plan", PLANS)
def test_half_of_the_codes_in_a_clump_a_millionth_wide(plan):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(80, 8))
    vectors[40:] = vectors[0] + 1e-6 * rng.normal(size=(40, 8))
    expected = hierarchy.linkage(vectors, "average")
    np.testing.assert_allclose(linkage(vectors, plan=plan), expected, rtol=1e-9)


@pytest.mark.parametrize("n_codes", [1, 2, 3])
@pytest.mark.parametrize("plan", PLANS)
def test_very_few_codes(n_codes, plan):
    vectors = np.arange(n_codes, dtype=np.float32)[:, None] ** 2
    assert linkage(vectors, n_codes, plan=plan).shape == (0, 4)
    assert linkage(vectors, plan=plan)[:, 2].tolist() == [1.0, 3.5][: n_codes - 1]


@pytest.mark.parametrize("plan", PLANS)
def test_no_merge_where_the_bound_allows_none(plan):
    vectors = np.random.default_rng(0).normal(size=(30, 3))
    assert linkage(vectors, max_cluster_size=1, strict=True, plan=plan).shape == (0, 4)


def test_two_runs_are_equal_to_the_last_bit():
    vectors = blobs(100, 8, seed=1)
    for plan in PLANS:
        assert np.array_equal(linkage(vectors, plan=plan), linkage(vectors, plan=plan))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_no_near_pair_of_points_is_overlooked(precision, offset):
    x = torch.as_tensor(blobs(300, 16, seed=0) + np.float32(offset)).double()
    x /= 2.0 ** math.ceil(math.log2(float(x.abs().max())))
    order = torch.arange(len(x))
    groups = Groups(x, order, torch.arange(len(x) + 1), order, torch.ones(len(x)).double())
    distance = torch.as_tensor(naive.instance_distances(x.numpy()))
    height = float(distance.flatten().kthvalue(5000).values)
    expected = {(int(i), int(j)) for i, j in (distance <= height).nonzero() if i < j}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        blocks = list(near_points(groups, torch.ones(len(x)), 0, height, 4096))
    finally:
        torch.set_float32_matmul_precision(before)
    found = [tuple(pair) for pair in torch.cat(blocks, dim=1).T.tolist()]
    assert expected <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("dim", [3, 32, 33, 256])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_distances_have_twelve_digits_whatever_their_size(dim, offset):
    rng = np.random.default_rng(dim)
    x = rng.normal(size=(50, dim))
    x[25:] = x[:25] * (1 + 10.0 ** -rng.uniform(1, 9, size=(25, 1)))
    x = (x + offset) / 2048
    ours = distances(torch.as_tensor(x), torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(ours, naive.instance_distances(x), rtol=1e-12, atol=0)


def test_largest_number_that_rounds_to_a_height():
    height = naive.tie_rounded(np.random.default_rng(0).lognormal(sigma=20, size=2000))
    most = rounds_to_most(torch.as_tensor(height)).numpy()
    assert np.array_equal(naive.tie_rounded(most), height)
    assert (naive.tie_rounded(np.nextafter(most, np.inf)) > height).all()


def test_one_door_for_all_devices():
    vectors = blobs(60, 4, seed=2)
    Z = _torch.average_linkage_torch(vectors, 10, device="cpu")
    assert np.array_equal(Z[:, [0, 1, 3]], average_linkage(vectors, 10)[:, [0, 1, 3]])


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(InputError, match=device):
        average_linkage(blobs(10, 2, seed=0), device=device)


def test_too_little_memory_is_one_sentence(monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(_torch, "_linkage", full)
    monkeypatch.setattr(_torch, "free_bytes", lambda _: 3 * 2**30)
    with pytest.raises(InputError, match=r"too little memory for 10 codes of dimension 2: 3\.0 GiB are free"):
        _torch.average_linkage_torch(blobs(10, 2, seed=0), device="cpu")


# -- with a GPU -----------------------------------------------------------------------------------------------------


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dim", [8, 64])
def test_gpu_gives_the_tree_of_the_cpu(plan, dim):
    n = 100 if plan == "short list" else 400  # millions of orders
    vectors = blobs(n, dim, seed=3)
    rng = np.random.default_rng(3)
    for weights, bound, strict in [(None, None, False), (rng.uniform(0.1, 3, n), 9, True), (None, 9, False)]:
        for n_clusters in (1, n // 2):
            ours = _torch._linkage(vectors, n_clusters, weights, bound, strict, torch.device("cuda"), PLANS[plan])
            expected = linkage(vectors, n_clusters, weights, bound, strict, plan)
            assert np.array_equal(ours[:, [0, 1, 3]], expected[:, [0, 1, 3]])
            np.testing.assert_allclose(ours[:, 2], expected[:, 2], rtol=1e-11)


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dim", [8, 256])
@pytest.mark.parametrize("kind", ["clustered", "sphere"])
def test_gpu_gives_the_tree_of_scipy_for_4096_codes(dim, kind):
    vectors = blobs(4096, dim, seed=4)
    if kind == "sphere":
        vectors = np.random.default_rng(4).normal(size=(4096, dim))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    expected = hierarchy.linkage(vectors.astype(np.float64), "average")
    for n_clusters in (1, 2048):
        ours = average_linkage(vectors, n_clusters, device="cuda")
        assert np.array_equal(ours[:, [0, 1, 3]], expected[: 4096 - n_clusters, [0, 1, 3]])
        np.testing.assert_allclose(ours[:, 2], expected[: 4096 - n_clusters, 2], rtol=1e-10)


@GPU
@pytest.mark.gpu
def test_two_gpu_runs_are_equal_to_the_last_bit():
    vectors = blobs(100_000, 8, seed=5)
    first = average_linkage(vectors, 40_000, device="cuda")
    assert np.array_equal(first, average_linkage(vectors, 40_000, device="cuda"))


@GPU
@pytest.mark.gpu
@pytest.mark.slow
def test_matrix_and_list_agree_on_65536_codes():
    vectors = blobs(65_536, 8, seed=6)
    ours = average_linkage(vectors, 32_768, device="cuda")
    by_list = Plan(matrix_most=0, block=1 << 26)
    listed = _torch._linkage(vectors, 32_768, None, None, False, torch.device("cuda"), by_list)
    assert np.array_equal(ours[:, [0, 1, 3]], listed[:, [0, 1, 3]])
