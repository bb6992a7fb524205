"""Posteriors over the head: what the weights of the linear layer may be, beside what they are.

Behind global average pooling the logit is `x' theta` with x = (pooled features, 1) and theta = (w, b), and cell c of its
map is `a_c' w / (h w)`. A posterior over theta is therefore all that maps, logits and their spread depend on: samples
`[T, K + 1]` are rows of one matrix product, and every variance and covariance is a quadratic form `x' Sigma y`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pneumo_ray.errors import ModelError
from pneumo_ray.explain.masks import draw_masks


class HeadPosterior(Protocol):
    """A distribution of the head's weights theta [K + 1], of which the network's own are the mean.

    What is drawn is drawn once and shared by all images, so that no result depends on batches, order or workers.
    """

    def check(self, num_channels: int) -> None:
        """Refuse a network with another number of channels.

        Raises:
            ModelError: if it has.
        """
        ...

    def draw(self, passes: int, num_channels: int, generator: torch.Generator) -> Tensor:
        """Return what T passes draw, float32 on the CPU, without regard to the weights.

        Args:
            passes: T.
            num_channels: K.
            generator: of the random numbers.
        """
        ...

    def samples(self, theta: Tensor, drawn: Tensor) -> Tensor:
        """Return the weights of T passes, float32 [T, K + 1].

        Args:
            theta: the network's own, [K + 1], on the device of `drawn`.
            drawn: from `draw`.
        """
        ...

    def root(self, theta: Tensor, features: Tensor) -> Tensor:
        """Return r(x), float32 [..., R], with `x' Sigma y = r(x)' r(y)`; so `|r(x)|^2` is the variance of `x' theta`.

        Args:
            theta: the network's own weights, [K + 1].
            features: x [..., K + 1], or [..., K] where the bias takes no part, as in maps; on the device of theta.
        """
        ...


@dataclass(frozen=True)
class DropoutPosterior:
    """Dropout before the linear layer: `w z` with z = 0 or 1 / (1 - p), and the bias as it is (arXiv 1506.02142)."""

    rate: float
    """Probability p that a channel is dropped."""

    def __post_init__(self) -> None:
        """Refuse a rate without any spread.

        Raises:
            ModelError: if it is 0.
        """
        if self.rate == 0:
            raise ModelError(
                "the network has no dropout to sample, so its maps have no uncertainty; "
                "train one with model.dropout above 0"
            )

    def check(self, num_channels: int) -> None:
        """Accept every network."""

    def draw(self, passes: int, num_channels: int, generator: torch.Generator) -> Tensor:
        """Return scaled masks [T, K]."""
        return draw_masks(passes, num_channels, self.rate, generator)

    def samples(self, theta: Tensor, drawn: Tensor) -> Tensor:
        """Return masked weights [T, K + 1]."""
        return torch.cat([drawn * theta[:-1], theta[-1].expand(len(drawn), 1)], 1)

    def root(self, theta: Tensor, features: Tensor) -> Tensor:
        """Return r [..., K]: `Sigma = p / (1 - p) diag(w^2)`."""
        width = len(theta) - 1
        return features[..., :width] * (theta[:-1] * (self.rate / (1 - self.rate)) ** 0.5)


class LaplacePosterior:
    """The last-layer Laplace approximation (MacKay 1992; Daxberger et al. 2021, arXiv 2106.14806): N(theta, C C').

    Args:
        factor: C, float32 [K + 1, K + 1]; `laplace.fit_laplace` makes it.

    Raises:
        ModelError: if it is not a square matrix of finite numbers.
    """

    def __init__(self, factor: Tensor) -> None:
        """Keep the factor; it moves to the device of the images."""
        if factor.ndim != 2 or factor.shape[0] != factor.shape[1] or not bool(factor.isfinite().all()):
            raise ModelError(
                f"the factor of a Laplace posterior must be a square matrix of finite numbers, got {list(factor.shape)}"
            )
        self.factor = factor.float()

    def check(self, num_channels: int) -> None:
        """Refuse a network with another number of channels."""
        if len(self.factor) != num_channels + 1:
            raise ModelError(
                f"the Laplace posterior is of {len(self.factor) - 1} channels and the network has {num_channels}; fit it "
                "again with jobs/posterior.py"
            )

    def draw(self, passes: int, num_channels: int, generator: torch.Generator) -> Tensor:
        """Return deviations from the mean, `C e` with e standard normal, [T, K + 1]."""
        return torch.randn(passes, num_channels + 1, generator=generator) @ self.factor.cpu().mT

    def samples(self, theta: Tensor, drawn: Tensor) -> Tensor:
        """Return the mean plus the deviations, [T, K + 1]."""
        return theta + drawn

    def root(self, theta: Tensor, features: Tensor) -> Tensor:
        """Return `C' x`, [..., K + 1]."""
        if self.factor.device != theta.device:
            self.factor = self.factor.to(theta.device)
        return features.float() @ self.factor[: features.shape[-1]]
