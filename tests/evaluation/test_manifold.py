import numpy as np
import pytest
import torch

from codeprior.errors import InputError
from codeprior.evaluation import manifold
from codeprior.evaluation.adm import precision_and_recall_float16
from codeprior.evaluation.manifold import precision_and_recall


def brute_force(reference, samples, k):
    """The definition, pair by pair in float64."""

    def distances(a, b):
        return np.array([[((x - y) ** 2).sum() for y in b.astype(np.float64)] for x in a.astype(np.float64)])

    def share_inside(queries, centres):
        radii = np.sort(distances(centres, centres), axis=1)[:, k]  # the smallest is the image itself
        return (distances(queries, centres) <= radii).any(axis=1).mean()

    return share_inside(samples, reference), share_inside(reference, samples)


@pytest.mark.parametrize("kind", ["overlapping", "apart", "copies", "lattice", "far from the origin"])
@pytest.mark.parametrize(("tile", "spare"), [(2048, 5), (7, 5), (20, 0)])
def test_precision_and_recall_equal_the_definition(kind, tile, spare, monkeypatch):
    monkeypatch.setattr(manifold.tiles, "__defaults__", (tile,))
    monkeypatch.setattr(manifold, "SPARE", spare)
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(60, 5)).astype(np.float32)
    samples = (0.8 * generator.normal(size=(45, 5)) + 0.3).astype(np.float32)
    if kind == "apart":
        samples += 20
    elif kind == "copies":
        reference[10:30] = reference[0]
        samples[:20] = reference[:20]
    elif kind == "lattice":  # ties at the radius everywhere
        reference, samples = np.round(reference), np.round(samples)
    elif kind == "far from the origin":
        reference, samples = reference + 1000, samples + 1000
    assert precision_and_recall(reference, samples, 3) == pytest.approx(brute_force(reference, samples, 3), abs=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("measure", [precision_and_recall, precision_and_recall_float16])
def test_precision_and_recall_are_the_same_on_a_cuda_device(measure):
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(3000, 64)).astype(np.float32)
    samples = np.round(0.9 * generator.normal(size=(5000, 64)) + 0.1, 1).astype(np.float32)
    expected = measure(reference, samples)
    tolerance = 0 if measure is precision_and_recall else 2e-3  # sums are rounded to float16 in another order
    assert measure(reference, samples, device="cuda") == pytest.approx(expected, abs=tolerance)


def test_equal_sets_have_precision_and_recall_of_one():
    features = np.random.default_rng(1).normal(size=(50, 7))
    assert precision_and_recall(features, features) == (1.0, 1.0)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="more than 3 rows of equal features, got \\(3, 2\\) of the samples"):
        precision_and_recall(np.zeros((9, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match="got \\(9, 3\\) of the samples"):
        precision_and_recall(np.zeros((9, 2)), np.zeros((9, 3)))
