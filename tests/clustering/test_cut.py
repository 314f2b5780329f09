"""Labels from the first merges of a tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy

import naive
from codeprior.clustering.cut import cut
from codeprior.errors import InputError


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.data())
def test_equals_the_plain_definition(n, seed, data):
    vectors = np.random.default_rng(seed).normal(size=(n, 2))
    Z = hierarchy.linkage(vectors, "average") if n > 1 else np.empty((0, 4))
    n_clusters = data.draw(st.integers(1, n))
    np.testing.assert_array_equal(cut(Z, n, n_clusters), naive.labels_of(Z, n, n_clusters))


def test_merges_are_applied_in_order_when_heights_decrease():
    Z = np.array([[0, 1, 2.0, 2], [2, 4, 1.5, 3], [3, 5, 9.0, 4]])
    np.testing.assert_array_equal(cut(Z, 4, 3), [0, 0, 1, 2])
    np.testing.assert_array_equal(cut(Z, 4, 2), [0, 0, 0, 1])


def test_labels_are_numbered_by_first_appearance():
    labels = cut(np.array([[1, 3, 1.0, 2], [0, 2, 2.0, 2]]), 5, 3)
    np.testing.assert_array_equal(labels, [0, 1, 0, 1, 2])
    assert labels.dtype == np.int64


@pytest.mark.parametrize(
    ("n_codes", "n_clusters", "message"),
    [(3, 0, "between 1 and 3"), (3, 4, "between 1 and 3"), (4, 1, "at least 2 .*got 1")],
)
def test_impossible_cuts_are_refused(n_codes, n_clusters, message):
    with pytest.raises(InputError, match=message):
        cut(np.array([[0, 1, 1.0, 2], [2, 3, 2.0, 3]]), n_codes, n_clusters)


def test_a_wrong_matrix_is_refused():
    with pytest.raises(InputError, match=r"shape \(M, 4\)"):
        cut(np.zeros((3, 3)), 4, 2)
