"""Moments in closed form: of normal variables after ReLU, of pairs of them, and of the probability of a normal logit.

With these a map, its zones and its probability have their mean and standard deviation over a posterior without a sample.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_NARROW = 0.7
"""Standard deviation of a logit up to which the normal density is integrated, and from which the sigmoid is."""
_NODES = 20
"""Gauss-Legendre nodes of the integral over a correlation."""
_ROOT_TWO_PI = math.sqrt(2 * math.pi)


def rectified(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of `max(0, X)` for normal X.

    With z = mean / std and `e(z) = z Phi(z) + phi(z)` they are `std e(z)` and `std^2 (Phi(z) - e(z) e(-z))`, which is the
    textbook's `(m^2 + s^2) Phi + m s phi - (m Phi + s phi)^2` without its cancellation at large z.

    Args:
        mean: of X, any shape.
        std: of X, of that shape, 0 or more.

    Returns:
        float64, both of that shape.
    """
    std = std.double().clamp(min=1e-150)
    z = mean.double() / std
    below = torch.special.ndtr(z)
    return (std * _expected_excess(z)), std.square() * (below - _expected_excess(z) * _expected_excess(-z)).clamp(min=0)


def rectified_covariance(mean: Tensor, covariance: Tensor) -> Tensor:
    """Return the covariance of n jointly normal variables after ReLU.

    By Price's theorem (1958) its derivative by the correlation r of a pair is `P(X > 0, Y > 0)`, whose own derivative is the
    bivariate density (Plackett 1954). So with t = sin(a)
    `Cov = s_x s_y (r Phi(z_x) Phi(z_y) + 1/(2 pi) int_0^asin(r) (r - t) exp(-q(t) / 2) da)`,
    `q(t) = (z_x^2 - 2 t z_x z_y + z_y^2) / (1 - t^2)`: one smooth integral, which `_NODES` nodes give to 1e-5.

    Args:
        mean: [..., n].
        covariance: [..., n, n], symmetric and not negative definite.

    Returns:
        float32 [..., n, n]; its diagonal is that of `rectified`.
    """
    std = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    safe = std.clamp(min=torch.finfo(torch.float32).tiny ** 0.5)
    z = (mean / safe).clamp(-1e4, 1e4)
    below = torch.special.ndtr(z)
    one, other = torch.triu_indices(mean.shape[-1], mean.shape[-1], 1, device=mean.device)
    product = safe[..., one] * safe[..., other]
    correlation = (covariance[..., one, other] / product).clamp(-1, 1)
    angle = correlation.asin()
    square = (z[..., one] - z[..., other]).square() / 2
    double = z[..., one] * z[..., other]
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    integral = torch.zeros_like(angle)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        sine = (float(node) * angle).sin()
        # q / 2 with the difference first: z^2 (1 - t) / (1 - t^2) where both are alike.
        exponent = square / (1 - sine.square()).clamp(min=1e-12) + double / (1 + sine).clamp(min=1e-12)
        integral += float(weight) * (correlation - sine) * (-exponent).exp()
    found = (correlation * below[..., one] * below[..., other] + integral * angle / (2 * math.pi)) * product
    result = torch.empty_like(covariance)
    result[..., one, other] = found
    result[..., other, one] = found
    result.diagonal(dim1=-2, dim2=-1).copy_(rectified(mean, std)[1])
    return result


def probability_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a normal logit means for its probability p.

    Args:
        mean: of the logit, any shape.
        std: of the logit, of that shape.

    Returns:
        float64, each of that shape: the mean of the rarer outcome, `E[p]` where the mean logit is negative and
        `E[1 - p]` elsewhere, exact also near 0; the variance of p; and the expected entropy of an outcome, in nats.
    """
    centre, width = -mean.double().abs(), std.double().unsqueeze(-1)
    narrow, wide = _over_the_normal(centre, width), _over_the_sigmoid(centre, width)
    chosen = std.double() <= _NARROW
    first, second, third = (torch.where(chosen, a, b) for a, b in zip(narrow, wide, strict=True))
    return first, second.clamp(min=0), third


def _over_the_normal(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integrate over the standardised logit by the trapezoidal rule, whose error falls as exp(-2 pi d / step).

    d is how far the integrand is analytic beside the real line: pi / width for the sigmoid, whose poles lie at +-i pi.
    """
    step = 0.5
    z = torch.arange(-9, 9 + step, step, dtype=torch.float64, device=centre.device)
    weight = (z.square() / -2).exp() * (step / _ROOT_TWO_PI)
    logit = centre.unsqueeze(-1) + width * z
    prob, other = logit.sigmoid(), (-logit).sigmoid()
    first = prob @ weight
    entropy = -(prob * F.logsigmoid(logit) + other * F.logsigmoid(-logit))
    return first, (prob - first.unsqueeze(-1)).square() @ weight, entropy @ weight


def _over_the_sigmoid(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integrate by parts, `E[f(L)] = int f'(l) P(L > l) dl`, over the logit l, where f' falls as exp(-|l|).

    `P(L > l)` is entire and the wider the smoother, so that no width is too large.
    """
    step = 0.25
    logit = torch.arange(-80, 80 + step, step, dtype=torch.float64, device=centre.device)
    prob, other = logit.sigmoid(), (-logit).sigmoid()
    above = torch.special.ndtr((centre.unsqueeze(-1) - logit) / width.clamp(min=1e-3)) * step
    first, second = above @ (prob * other), above @ (2 * prob.square() * other)
    return first, second - first.square(), above @ (-logit * prob * other)


def _expected_excess(z: Tensor) -> Tensor:
    """Return `z Phi(z) + phi(z)`, the mean of a rectified normal with mean z and standard deviation 1."""
    return (z * torch.special.ndtr(z) + (z.square() / -2).exp() / _ROOT_TWO_PI).clamp(min=0)
