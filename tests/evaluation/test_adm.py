import numpy as np
import pytest

from codeprior.evaluation import adm
from codeprior.evaluation.adm import precision_and_recall_float16, scores_text
from codeprior.evaluation.manifold import precision_and_recall


def as_the_original(reference: np.ndarray, samples: np.ndarray, k: int, block: int) -> tuple[float, float]:
    """ADM's evaluator in NumPy: whole matrices, each step in float16; blocks that overflow are made in float32."""

    def pairwise(u, v):
        square_u, square_v = (np.square(a).astype(np.float32).sum(axis=1).astype(u.dtype) for a in (u, v))
        products = (u.astype(np.float32) @ v.astype(np.float32).T).astype(u.dtype)
        return np.maximum(square_u[:, None] - u.dtype.type(2) * products + square_v[None, :], u.dtype.type(0))

    def distances(a, b):
        out = np.empty((len(a), len(b)), np.float32)
        for i in range(0, len(a), block):
            for j in range(0, len(b), block):
                u, v = a[i : i + block], b[j : j + block]
                with np.errstate(over="ignore", invalid="ignore"):
                    half = pairwise(u.astype(np.float16), v.astype(np.float16))
                out[i : i + block, j : j + block] = half if np.isfinite(half).all() else pairwise(u, v)
        return out

    radii = [np.sort(distances(a, a), axis=1)[:, k] for a in (reference, samples)]
    between = distances(reference, samples)
    precision = (between <= radii[0][:, None]).any(axis=0).mean()
    return float(precision), float((between <= radii[1][None, :]).any(axis=1).mean())


def features(kind: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(90, 8)).astype(np.float32)
    samples = (0.9 * generator.normal(size=(130, 8)) + 0.3).astype(np.float32)
    scale = {"small": 1, "some blocks overflow": np.where(np.arange(90) < 30, 90, 1)[:, None], "all overflow": 300}
    reference = (reference * scale[kind]).astype(np.float32)
    return reference, samples * np.float32(300 if kind == "all overflow" else 1)


@pytest.mark.parametrize("kind", ["small", "some blocks overflow", "all overflow"])
def test_float16_distances_are_those_of_the_original(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adm, "BLOCK", 40)
    monkeypatch.setattr(adm, "TILE", 16)
    reference, samples = features(kind)
    expected = as_the_original(reference, samples, 3, 40)
    assert precision_and_recall_float16(reference, samples) == pytest.approx(expected, abs=1e-12)


def test_rounding_to_float16_counts_near_misses_as_inside() -> None:
    """The sample at -30.003 is just beyond the radius of the image at 0, whose third neighbour is at 30."""
    reference = np.array([[0], [10], [20], [30]], np.float32)
    samples = np.array([[-30.003], [-100], [-120], [-140]], np.float32)
    assert precision_and_recall(reference, samples)[0] == 0
    assert precision_and_recall_float16(reference, samples)[0] == 0.25


def test_the_text_is_what_the_original_prints() -> None:
    text = scores_text({"FID": 3.9425574129223264, "IS": 215.8370361328125, "sFID": None, "precision": 0.8265})
    assert text == "Inception Score: 215.8370361328125\nFID: 3.9425574129223264\nPrecision: 0.8265\n"
