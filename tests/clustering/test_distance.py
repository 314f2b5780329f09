"""Checks of vectors, normalization, duplicates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from codeprior.clustering.distance import (
    check_vectors,
    duplicate_groups,
    mean_distance,
    normalize_rows,
    squared_distances,
)
from codeprior.errors import InputError


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_vectors_are_kept_without_a_copy(dtype):
    vectors = np.ones((3, 2), dtype=dtype)
    assert check_vectors(vectors) is vectors


def test_other_types_become_float64():
    assert check_vectors(np.ones((3, 2), dtype=np.int8)).dtype == np.float64
    assert check_vectors(np.ones((3, 2), dtype=np.float16)).dtype == np.float64


def test_non_finite_vectors_are_counted_and_the_first_is_named():
    vectors = np.ones((500, 3))
    vectors[407:419, 1] = np.nan
    with pytest.raises(InputError, match="12 non-finite vectors, first at index 407; is the checkpoint complete"):
        check_vectors(vectors)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_normalized_rows_have_length_one_at_any_scale(scale):
    vectors = (np.random.default_rng(0).normal(size=(40, 8)) * scale).astype(np.float32)
    lengths = np.linalg.norm(normalize_rows(vectors), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=3e-7)  # float32 rows


def test_a_zero_row_cannot_be_normalized():
    with pytest.raises(InputError, match="1 zero vector, first at index 2"):
        normalize_rows(np.array([[1.0, 0], [0, 2], [0, 0]]))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
def test_duplicates_point_to_the_first_equal_row(n, dim, seed, dtype):
    vectors = np.random.default_rng(seed).integers(-1, 2, (n, dim)).astype(dtype)
    vectors[vectors == 0] *= -1.0  # some zeros are negative
    expected = [int(np.flatnonzero((vectors == row).all(axis=1))[0]) for row in vectors]
    np.testing.assert_array_equal(duplicate_groups(vectors), expected)


def test_squared_distances_are_the_squares_of_the_distances():
    x = np.random.default_rng(0).normal(size=(30, 5))
    np.testing.assert_allclose(squared_distances(x, x), naive.instance_distances(x) ** 2, atol=1e-13)


def test_mean_distance_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(17, 5))
    everything = naive.instance_distances(np.concatenate([x, y]))
    assert mean_distance(x, y, block=8) == pytest.approx(everything[:30, 30:].mean())
