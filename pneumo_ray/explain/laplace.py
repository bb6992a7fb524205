"""The Laplace approximation of the last layer: a normal distribution whose precision is the curvature of the loss at the weights.

Of a logistic layer the curvature is `H = sum_i p_i (1 - p_i) x_i x_i' + lambda I` with x = (pooled features, 1): a sum of
outer products over the training images, and the exact Hessian, not an approximation of it (MacKay 1992, "The evidence
framework applied to classification networks"; Daxberger et al. 2021, arXiv 2106.14806). Of lambda, the precision of the
prior, the marginal likelihood decides.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import brentq
from scipy.special import expit

from pneumo_ray.errors import ModelError

Floats = NDArray[np.float64]


class Curvature:
    """The sum of outer products over images, which arrive in parts; a sum in the order in which they are added."""

    def __init__(self, theta: Floats) -> None:
        """Begin with nothing.

        Args:
            theta: the head's weights and bias, [K + 1].
        """
        self.theta = theta.astype(np.float64)
        self.sum: Floats = np.zeros((len(theta), len(theta)))
        self.images = 0
        self.log_likelihood = 0.0
        """Of the predicted classes of all images under theta, where their labels were given."""

    def add(
        self, features: NDArray[np.float32], labels: NDArray[np.int64] | Floats, weight: Floats | None = None
    ) -> None:
        """Add images.

        Args:
            features: pooled features [n, K], of images that are not augmented.
            labels: [n], 0 or 1, or probabilities of 1.
            weight: [n], of each image in the loss; None for 1.
        """
        x = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], 1)
        logit = x @ self.theta
        spread = x * np.sqrt(expit(logit) * expit(-logit))[:, None]
        of_image = labels * logit - np.logaddexp(0, logit)
        if weight is not None:
            spread, of_image = spread * np.sqrt(weight)[:, None], of_image * weight
        self.sum += spread.T @ spread
        self.images += len(features)
        self.log_likelihood += float(np.sum(of_image))


@dataclass(frozen=True)
class LaplaceFit:
    """The normal distribution N(theta, C C')."""

    factor: Floats
    """C [K + 1, K + 1], upper triangular, with `C C' = H^-1`."""
    prior_precision: float
    """lambda."""
    effective_parameters: float
    """Weights that the images determine: `sum_k e_k / (e_k + lambda)` over the eigenvalues of the sum."""
    log_marginal_likelihood: float
    """In nats."""


def fit_laplace(curvature: Curvature) -> LaplaceFit:
    """Return the Laplace approximation with the prior precision of the largest marginal likelihood.

    With the eigenvalues e_k of the sum, the logarithm of the marginal likelihood is, up to a constant,
    `log p(labels | theta) + (D log lambda - lambda |theta|^2 - sum_k log(e_k + lambda)) / 2`. Its derivative vanishes where
    `lambda |theta|^2 = sum_k e_k / (e_k + lambda)`; the left side rises with lambda from 0 and the right side falls, so there
    is one such lambda.

    Args:
        curvature: of all training images.

    Raises:
        ModelError: if the features or the weights are not finite numbers, or all 0.
    """
    theta, total = curvature.theta, curvature.sum
    eigenvalues = np.linalg.eigvalsh(total).clip(min=0) if np.isfinite(total).all() else np.zeros(0)
    size = float(theta @ theta)
    if not len(eigenvalues) or not eigenvalues[-1] > 0 or not 0 < size < np.inf:
        raise ModelError(
            "the features of the training images or the weights of the head are 0 or not finite, so there is no Laplace "
            "posterior; train the model again"
        )

    def excess(log_lambda: float) -> float:
        precision = np.exp(log_lambda)
        return float(precision * size - np.sum(eigenvalues / (eigenvalues + precision)))

    # The sum lies between e_max / (e_max + lambda) and the number of weights.
    low = np.log(min(1.0, eigenvalues[-1] * size) / (2 * size))
    precision = float(np.exp(brentq(excess, low, np.log(len(theta) / size), xtol=1e-13)))
    evidence = len(theta) * np.log(precision) - precision * size - np.sum(np.log(eigenvalues + precision))
    lower = np.linalg.cholesky(total + precision * np.eye(len(theta)))
    return LaplaceFit(
        factor=solve_triangular(lower, np.eye(len(theta)), lower=True).T,
        prior_precision=precision,
        effective_parameters=float(np.sum(eigenvalues / (eigenvalues + precision))),
        log_marginal_likelihood=float(curvature.log_likelihood + evidence / 2),
    )
