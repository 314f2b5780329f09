import numpy as np
import pytest
import scipy.linalg
import torch

from codeprior.errors import InputError
from codeprior.evaluation.statistics import (
    Gaussian,
    bootstrap_sd,
    frechet_distance,
    gaussian_distance,
    kernel_distance,
    mean_and_covariance,
)


def test_mean_and_covariance_are_the_definition() -> None:
    features = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    mean, covariance = mean_and_covariance(features)
    centred = features.astype(np.float64) - mean
    np.testing.assert_allclose(mean, features.astype(np.float64).sum(axis=0) / 7, rtol=1e-14)
    np.testing.assert_allclose(covariance, centred.T @ centred / 6, rtol=1e-12)


def test_distance_of_gaussians_with_commuting_covariances_is_the_closed_form() -> None:
    """With covariances of one eigenbasis the roots may be taken axis by axis."""
    generator = np.random.default_rng(1)
    basis, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    sd_a, sd_b, mean_a, mean_b = generator.uniform(0.1, 3, size=(4, 6))
    distance = gaussian_distance(mean_a, basis * sd_a**2 @ basis.T, mean_b, basis * sd_b**2 @ basis.T)
    assert distance == pytest.approx(((mean_a - mean_b) ** 2).sum() + ((sd_a - sd_b) ** 2).sum(), rel=1e-10)


def test_distance_of_two_lines_is_the_closed_form() -> None:
    """One feature: (difference of means)^2 + (difference of standard deviations)^2."""
    generator = np.random.default_rng(2)
    a, b = generator.normal(3, 2, size=(40, 1)), generator.normal(-1, 0.5, size=(60, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n_images", [40, 400])  # about as many images as features, and more
def test_distance_is_the_definition_with_a_matrix_root(n_images: int) -> None:
    """As ADM's evaluator writes it for FID and, of spatial features, for sFID."""
    generator = np.random.default_rng(9)
    a = generator.normal(size=(n_images, 35)) @ generator.normal(size=(35, 35))
    b = np.maximum(generator.normal(size=(500, 35)), 0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    traces = np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    expected = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + traces
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n_images", [9, 200])  # fewer images than features, and more
def test_distance_agrees_with_torchmetrics(n_images: int) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flatten(torch.nn.Module):
        num_features = 27

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1).double()

    generator = torch.Generator().manual_seed(3)
    real = torch.rand(n_images, 3, 3, 3, generator=generator)
    fake = 0.8 * torch.rand(n_images + 5, 3, 3, 3, generator=generator) ** 2
    metric = FrechetInceptionDistance(feature=Flatten(), normalize=True, input_img_size=(3, 3, 3))
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    ours = frechet_distance(fake.flatten(1).numpy(), real.flatten(1).numpy())
    # torchmetrics sums the moments in another order; roots of eigenvalues near 0 keep half the digits.
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6, abs=1e-6)


def test_distance_to_itself_is_zero_also_with_fewer_images_than_features() -> None:
    features = np.random.default_rng(4).normal(size=(10, 64))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)  # sqrt of rounding errors


def test_distance_of_finite_samples_is_biased_upwards_and_falls_with_their_number() -> None:
    generator = np.random.default_rng(5)
    few, many = (frechet_distance(*generator.normal(size=(2, n, 16))) for n in (50, 2000))
    assert few > 10 * many > 0


def test_bootstrap_spread_shrinks_with_the_number_of_images_and_repeats_by_seed() -> None:
    features = np.random.default_rng(6).normal(size=(2, 800, 4))
    spreads = [bootstrap_sd(*features[:, :n], np.random.default_rng(7)) for n in (40, 800, 800)]
    assert spreads[0] > 2 * spreads[1] > 0
    assert spreads[1] == spreads[2]


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(5), np.full((4, 2), np.nan)])
def test_features_that_have_no_covariance_are_refused(features: np.ndarray) -> None:
    with pytest.raises(InputError, match="features"):
        mean_and_covariance(features)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features")
def test_kernel_distance_agrees_with_torchmetrics() -> None:
    """All images in one subset, so that the draw does not matter."""
    from torchmetrics.image.kid import KernelInceptionDistance

    class Flatten(torch.nn.Module):
        num_features = 27

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1).double()

    generator = torch.Generator().manual_seed(5)
    real, fake = torch.rand(40, 3, 3, 3, generator=generator), torch.rand(40, 3, 3, 3, generator=generator) ** 2
    metric = KernelInceptionDistance(feature=Flatten(), subsets=2, subset_size=40, normalize=True)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    mean, sd = kernel_distance(real.flatten(1).numpy(), fake.flatten(1).numpy(), np.random.default_rng(0), 2, 40)
    assert mean == pytest.approx(float(metric.compute()[0]), rel=1e-5)
    assert sd == pytest.approx(0, abs=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_on_average() -> None:
    generator = np.random.default_rng(6)
    a, b = generator.normal(size=(2, 3000, 8))
    mean, sd = kernel_distance(a, b, generator, n_subsets=30, subset_size=200)
    assert abs(mean) < sd


def test_the_root_of_few_images_and_that_of_their_covariance_give_the_same_distance() -> None:
    generator = np.random.default_rng(8)
    few, many = generator.normal(size=(9, 12)), generator.normal(size=(40, 12))
    a, b = Gaussian.of(few), Gaussian.of(many)
    assert a.root is not None
    assert b.root is None
    bare = Gaussian(a.mean, a.covariance)  # of which the root is taken by eigenvectors
    assert a.distance(b) == pytest.approx(bare.distance(b), rel=1e-6)
    assert b.distance(a) == pytest.approx(a.distance(b), rel=1e-9)
