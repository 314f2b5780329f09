import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from codeprior.errors import InputError
from codeprior.evaluation.metrics import LLAMAGEN_RANGE, class_consistency, inception_score, psnr_db, ssim


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    originals = generator.integers(0, 256, size=(5, 12, 9, 3), dtype=np.uint8)
    noisy = np.clip(
        originals + generator.normal(0, [[[[5]]], [[[10]]], [[[20]]], [[[40]]], [[[80]]]], originals.shape), 0, 255
    )
    return originals, noisy.astype(np.uint8)


def test_psnr_and_ssim_of_each_image_are_those_of_scikit_image(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    originals, images = pairs
    expected_psnr = [peak_signal_noise_ratio(a, b) for a, b in zip(originals, images, strict=True)]
    expected_ssim = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(originals, images, strict=True)]
    np.testing.assert_allclose(psnr_db(originals, images), expected_psnr, rtol=1e-12)
    np.testing.assert_allclose(ssim(originals, images), expected_ssim, atol=1e-12)


def test_equal_images_score_finitely_and_best(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    originals, images = pairs
    assert psnr_db(originals, originals) == pytest.approx(58.92, abs=0.01)
    assert (psnr_db(originals, images) < 58.92).all()
    np.testing.assert_allclose(ssim(originals, originals), 1)


def test_images_that_differ_in_shape_or_kind_are_refused(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    originals, images = pairs
    for others in (images[:, :10], images.astype(np.float32), images[0]):
        with pytest.raises(InputError, match="equal uint8 images"):
            psnr_db(originals, others)
    with pytest.raises(InputError, match="at least 7 x 7"):
        ssim(originals[:, :6], images[:, :6])


def test_llamagen_s_ssim_is_that_of_twice_the_range(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """It passes data_range=2.0 for images in [0, 1], and so gets more."""
    originals, images = pairs
    scaled = [(a / 255.0, b / 255.0) for a, b in zip(originals, images, strict=True)]
    expected = [structural_similarity(a, b, data_range=2.0, channel_axis=-1) for a, b in scaled]
    found = ssim(originals, images, LLAMAGEN_RANGE)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (found > ssim(originals, images)).all()


def test_inception_score_of_certain_and_balanced_classes_is_their_number() -> None:
    assert inception_score(np.eye(10)[np.arange(30) % 10]) == pytest.approx(10)


def test_inception_score_of_equal_distributions_is_one() -> None:
    assert inception_score(np.tile([0.2, 0.5, 0.3], (8, 1))) == pytest.approx(1)


def test_inception_score_over_runs_depends_on_the_order_and_over_all_does_not() -> None:
    """Two classes: in the order of the classes each run of ten images holds one of them alone."""
    ordered = np.eye(2)[np.arange(20) // 10]
    mixed = np.eye(2)[np.arange(20) % 2]
    assert inception_score(ordered, 10) == pytest.approx(1)
    assert inception_score(mixed, 10) == inception_score(ordered) == pytest.approx(2)
    assert inception_score(ordered[:15], 10) == pytest.approx(1)  # a run of ten, a run of five


@pytest.mark.filterwarnings("ignore:Metric .InceptionScore. will save:UserWarning")
@pytest.mark.filterwarnings("ignore:std:UserWarning")  # of its one split
def test_inception_score_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = torch.randn(64, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2

    class Head(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return logits

    metric = InceptionScore(feature=Head(), splits=1, normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(torch.zeros(64, 3, 2, 2))
    assert inception_score(logits.softmax(dim=1).numpy()) == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_class_consistency_counts_the_images_taken_for_their_class() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    assert class_consistency(probabilities, np.array([0, 1, 0, 0])) == 0.75
