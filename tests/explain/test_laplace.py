"""The Laplace fit against autograd's Hessian, against statsmodels' covariance, and against direct maximisation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit

from pneumo_ray.errors import ModelError
from pneumo_ray.explain.laplace import Curvature, fit_laplace


def drawn(n: int = 300, k: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that are not negative, and labels of a logistic model."""
    rng = np.random.default_rng(seed)
    features = rng.gamma(1.0, 1.0, (n, k)).astype(np.float32)
    theta = rng.normal(size=k)
    return features, (rng.random(n) < expit(features @ theta - theta.sum())).astype(np.int64)


def curvature_of(features: np.ndarray, labels: np.ndarray, theta: np.ndarray, parts: int = 1) -> Curvature:
    found = Curvature(theta)
    for rows in np.array_split(np.arange(len(features)), parts):
        found.add(features[rows], labels[rows])
    return found


def test_the_sum_is_the_hessian_of_the_loss() -> None:
    """Second derivatives of the summed cross-entropy of a small network's head, by autograd in float64."""
    torch.manual_seed(0)
    features, labels = drawn()
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU())
    hidden = net(torch.from_numpy(features)).detach()
    theta = torch.randn(8, dtype=torch.float64)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        logit = hidden.double() @ weights[:-1] + weights[-1]
        return F.binary_cross_entropy_with_logits(logit, torch.from_numpy(labels).double(), reduction="sum")

    hessian = torch.autograd.functional.hessian(loss, theta)
    found = curvature_of(hidden.numpy(), labels, theta.numpy())
    np.testing.assert_allclose(found.sum, hessian.numpy(), rtol=1e-9, atol=1e-9)
    assert found.log_likelihood == pytest.approx(-loss(theta).item())


def test_a_flat_prior_gives_the_covariance_of_statsmodels() -> None:
    """At the maximum of the likelihood the inverse Hessian is the covariance of a logistic regression."""
    logit_model = pytest.importorskip("statsmodels.discrete.discrete_model").Logit
    features, labels = drawn()
    design = np.concatenate([features, np.ones((len(features), 1))], 1)
    result = logit_model(labels, design).fit(disp=0, tol=1e-12)
    found = curvature_of(features, labels, result.params)
    np.testing.assert_allclose(np.linalg.inv(found.sum), result.cov_params(), rtol=1e-6, atol=1e-12)
    fitted = fit_laplace(found)
    prior = np.linalg.inv(result.cov_params()) + fitted.prior_precision * np.eye(6)
    np.testing.assert_allclose(fitted.factor @ fitted.factor.T, np.linalg.inv(prior), rtol=1e-6, atol=1e-12)


def test_the_prior_precision_maximises_the_marginal_likelihood() -> None:
    """On a grid of precisions, with determinants computed directly."""
    features, labels = drawn()
    theta = np.random.default_rng(1).normal(size=6)
    found = curvature_of(features, labels, theta)
    fitted = fit_laplace(found)

    def evidence(precision: float) -> float:
        """Log likelihood, log prior and the log volume of the posterior, with the (2 pi)^(D/2) of both left out."""
        determinant = np.linalg.slogdet(found.sum + precision * np.eye(6))[1]
        return found.log_likelihood - precision * theta @ theta / 2 + 3 * np.log(precision) - determinant / 2

    grid = fitted.prior_precision * np.exp(np.linspace(-3, 3, 601))
    values = [evidence(precision) for precision in grid]
    assert grid[int(np.argmax(values))] == pytest.approx(fitted.prior_precision, rel=0.011)
    assert fitted.log_marginal_likelihood == pytest.approx(max(values), abs=1e-6)
    assert fitted.effective_parameters == pytest.approx(fitted.prior_precision * theta @ theta)


@pytest.mark.parametrize("parts", [2, 7, 300])
def test_parts_of_the_images_add_up(parts: int) -> None:
    features, labels = drawn()
    theta = np.random.default_rng(2).normal(size=6)
    whole, summed = (fit_laplace(curvature_of(features, labels, theta, n)) for n in (1, parts))
    np.testing.assert_allclose(summed.factor, whole.factor, rtol=1e-6, atol=1e-9)
    assert summed.prior_precision == pytest.approx(whole.prior_precision, rel=1e-6)


def test_images_that_say_nothing_leave_the_prior() -> None:
    """More weights than images: directions without data keep the variance of the prior."""
    features, labels = drawn(n=3, k=40)
    fitted = fit_laplace(curvature_of(features, labels, np.full(41, 0.1)))
    variances = np.linalg.eigvalsh(fitted.factor @ fitted.factor.T)
    assert variances[-38:] == pytest.approx(np.full(38, 1 / fitted.prior_precision))
    assert fitted.effective_parameters < 3


@pytest.mark.parametrize("spoilt", ["nan", "zero features", "zero weights"])
def test_nothing_to_fit_is_refused(spoilt: str) -> None:
    features, labels = drawn()
    theta = np.ones(6)
    if spoilt == "nan":
        features[3, 2] = np.nan
    elif spoilt == "zero weights":
        theta[:] = 0
    found = Curvature(theta)
    if spoilt != "zero features":
        found.add(features, labels)
    with pytest.raises(ModelError, match="no Laplace posterior"):
        fit_laplace(found)
