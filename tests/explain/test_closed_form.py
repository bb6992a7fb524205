"""Closed forms against numerical integration (scipy) and against samples."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import entr, expit

from pneumo_ray.explain.closed_form import probability_moments, rectified, rectified_covariance

GRID = [(-4.0, 0.5), (-1.0, 1.0), (0.0, 2.0), (0.3, 0.1), (2.0, 1.5), (30.0, 1.0)]


@pytest.mark.parametrize(("mean", "std"), GRID)
def test_rectified_moments_are_those_of_numerical_integration(mean: float, std: float) -> None:
    def moment(power: int, centre: float = 0.0) -> float:
        inside = integrate.quad(
            lambda x: (x - centre) ** power * stats.norm.pdf(x, mean, std),
            0,
            max(0.0, mean) + 12 * std,
            points=[max(0.0, mean)],
            epsabs=1e-14,
        )[0]
        return inside + (-centre) ** power * stats.norm.cdf(0, mean, std)

    found_mean, found_var = rectified(torch.tensor(mean), torch.tensor(std))
    expected = moment(1)
    assert found_mean.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert found_var.item() == pytest.approx(moment(2, expected), rel=1e-5, abs=1e-12)


def test_rectified_moments_do_not_cancel_far_from_zero() -> None:
    """Where ReLU changes nothing the variance is that of the variable, however large the mean."""
    mean, var = rectified(torch.tensor([1e6, -1e6, 0.0, 5.0]), torch.tensor([1e-3, 1e-3, 0.0, 0.0]))
    assert mean.tolist() == pytest.approx([1e6, 0, 0, 5])
    assert var.tolist() == pytest.approx([1e-6, 0, 0, 0], rel=1e-6, abs=1e-200)


@pytest.mark.parametrize("correlation", [-0.999, -0.6, 0.0, 0.3, 0.9, 0.9999])
def test_rectified_covariance_is_that_of_numerical_integration(correlation: float) -> None:
    """`E[X+ Y+]` by the conditional mean of Y given x, which is again a rectified normal, under quadrature over x."""
    mean, std = np.array([0.4, -0.5]), np.array([1.0, 0.7])
    rest = std[1] * np.sqrt(1 - correlation**2)

    def product(x: float) -> float:
        centre = mean[1] + correlation * std[1] * (x - mean[0]) / std[0]
        z = centre / rest
        return x * (centre * stats.norm.cdf(z) + rest * stats.norm.pdf(z)) * stats.norm.pdf(x, mean[0], std[0])

    both = integrate.quad(product, 0, 12, epsabs=1e-13, limit=400)[0]
    single = [m * stats.norm.cdf(m / s) + s * stats.norm.pdf(m / s) for m, s in zip(mean, std, strict=True)]
    covariance = np.array([[1.0, correlation * std.prod()], [correlation * std.prod(), std[1] ** 2]])
    found = rectified_covariance(torch.tensor(mean).float(), torch.tensor(covariance).float())
    assert found[0, 1].item() == pytest.approx(both - single[0] * single[1], abs=2e-5)
    torch.testing.assert_close(found, found.mT)
    assert found.diagonal().tolist() == pytest.approx(
        rectified(torch.tensor(mean), torch.tensor(std))[1].tolist(), rel=1e-5
    )


def test_rectified_covariance_is_that_of_samples() -> None:
    """Ten cells of rank four, some alike and some opposite; 200,000 draws and 6 standard errors."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(10, 4, generator=generator)
    root[1], root[2] = root[0], -root[0]
    mean = torch.randn(10, generator=generator)
    mean[1] = mean[0]
    drawn = (mean + torch.randn(200_000, 4, generator=generator) @ root.mT).relu().double()
    found = rectified_covariance(mean, root @ root.mT).double()
    centred = drawn - drawn.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    error = (products.mean(0) - found) / (products.std(0) / 200_000**0.5)
    assert error.abs().max() < 6
    weights = torch.rand(10, generator=generator, dtype=torch.float64)
    assert (weights @ found @ weights).sqrt().item() == pytest.approx((drawn @ weights).std().item(), rel=0.01)


def test_a_negligible_spread_has_no_covariance() -> None:
    found = rectified_covariance(torch.tensor([1.0, -1.0, 0.0]), torch.zeros(3, 3))
    assert torch.equal(found, torch.zeros(3, 3))


@pytest.mark.parametrize("mean", [-45.0, -6.0, -0.4, 0.0, 3.0, 20.0])
@pytest.mark.parametrize("std", [1e-4, 0.05, 0.69, 0.71, 2.0, 9.0, 60.0])
def test_probability_moments_are_those_of_numerical_integration(mean: float, std: float) -> None:
    """Twenty Gauss-Hermite nodes err by 1e-2 at a deviation of 9; these rules by less than 1e-6 at any, relatively."""

    def expected(function) -> float:
        def integrand(z: float) -> float:
            return function(mean + std * z) * stats.norm.pdf(z)

        # Around the density's peak, the tilted peak of rare events, and the step of the sigmoid.
        marks = np.unique(
            np.clip([-9, 0, std, -std, -mean / std, -mean / std - 4 / std, -mean / std + 4 / std, 9], -9 - std, 9 + std)
        )
        edges = np.unique(np.concatenate([marks, [-12 - min(std, 20), 12 + min(std, 20)]]))
        return sum(
            integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-10, limit=300)[0] for a, b in itertools.pairwise(edges)
        )

    rarer, variance, entropy = (moment.item() for moment in probability_moments(torch.tensor(mean), torch.tensor(std)))
    width = float(torch.tensor(std))
    assert width == pytest.approx(std)
    flip = 1 if mean < 0 else -1
    mean_rarer = expected(lambda logit: expit(flip * logit))
    assert rarer == pytest.approx(mean_rarer, rel=2e-6)
    second = expected(lambda logit: (expit(flip * logit) - mean_rarer) ** 2)
    assert variance == pytest.approx(second, rel=1e-5)
    assert entropy == pytest.approx(expected(lambda logit: entr(expit(logit)) + entr(expit(-logit))), rel=2e-6)
