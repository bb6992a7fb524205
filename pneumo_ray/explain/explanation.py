"""What an explanation holds: predictions, maps and zone means, each with its spread over Monte Carlo passes."""

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 0
"""Number of passes of an explanation in closed form."""


@dataclass(frozen=True, eq=False)
class MemberSpread:
    """Standard deviations over an ensemble: `std^2 = between^2 + within^2`, each [B]."""

    logit_between: Tensor
    """Of the members' means."""
    logit_within: Tensor
    """Root mean variance of a member's passes."""
    prob_between: Tensor
    prob_within: Tensor


@dataclass(frozen=True, eq=False)
class Explanation:
    """Prediction, maps and zone means of B images, with their spread over the Monte Carlo passes.

    Maps and zones are in logit units, for the class in `target`: positive evidence for pneumonia, or for normality.
    Every `_std` is a sample standard deviation over passes (n - 1), or that of the posterior in closed form; every entropy
    is in nats. Tensors are float32 on the device of the images. Of an ensemble everything is over members and passes.
    """

    passes: int
    """Monte Carlo passes T, over all members; `EXACT` where there are none, because every moment is a closed form."""
    target: Tensor
    """int8 [B], the class that is explained: 1 pneumonia, 0 normal; the same in all passes."""
    logit: Tensor
    """[B], for pneumonia, without dropout."""
    logit_mean: Tensor
    """[B], over passes."""
    logit_std: Tensor
    """[B]."""
    prob_mean: Tensor
    """[B], mean of `sigmoid(logit_t / temperature + intercept)`."""
    prob_std: Tensor
    """[B]."""
    entropy: Tensor
    """[B], predictive: of prob_mean."""
    expected_entropy: Tensor
    """[B], mean entropy of the passes (aleatoric)."""
    mutual_information: Tensor
    """[B], entropy - expected_entropy, at least 0 (epistemic)."""
    cam_signed: Tensor
    """[B, h, w], without dropout and without ReLU; sums to +-(logit - bias)."""
    cam: Tensor
    """[B, h, w], plain Grad-CAM: `ReLU(cam_signed)`."""
    cam_mean: Tensor
    """[B, h, w], mean over passes of the maps after ReLU."""
    cam_std: Tensor
    """[B, h, w], the uncertainty map."""
    cam_exact_mean: Tensor | None
    """[B, h, w], expectation over the posterior before ReLU, without sampling; None where dropout is in the tail, or nobody
    asked for it."""
    cam_exact_var: Tensor | None
    """[B, h, w], variance over the posterior before ReLU, `a_c' Sigma a_c / (h w)^2`; of dropout
    `p / (1 - p) sum_k (w_k A_k / (h w))^2`. None likewise."""
    zone_mean: Tensor
    """[B, 6], mean over passes of the mean upsampled map in each zone, order ZONES."""
    zone_std: Tensor
    """[B, 6], over passes of that zone mean; includes the covariance of the pixels of a zone."""
    zone_groups: Tensor | None
    """[B, G, 6], mean over the passes of each independent group (`explain/masks.py`) of the zone means: from the spread of
    groups follows the Monte Carlo error that images have in common. None where there are no passes."""
    members: MemberSpread | None = None
    """Of an ensemble of two or more networks."""

    @property
    def logit_se(self) -> Tensor:
        """[B], Monte Carlo standard error of logit_mean, at most: it takes the passes as independent. 0 without passes."""
        return self.logit_std * self._share_of_error

    @property
    def prob_se(self) -> Tensor:
        """[B], Monte Carlo standard error of prob_mean, at most."""
        return self.prob_std * self._share_of_error

    @property
    def _share_of_error(self) -> float:
        return 0.0 if self.passes == EXACT else self.passes**-0.5

    def certainty_weighted(self, lam: float = 1.0) -> Tensor:
        """Return [B, h, w], `max(0, cam_mean - lam cam_std)`: the evidence above its own uncertainty, in logit units."""
        return (self.cam_mean - lam * self.cam_std).relu()

    def cov_weighted(self, floor: float = 0.1) -> Tensor:
        """Return [B, h, w], the paper's `mean (1 - c / max c)` with c = std / mean, the coefficient of variation.

        c explodes where the mean vanishes, and its maximum would then be set by the background. So c and its maximum
        are taken where the mean exceeds `floor` times its own maximum in the image; the map is 0 elsewhere.
        """
        kept = self.cam_mean > floor * self.cam_mean.amax((1, 2), keepdim=True)
        variation = torch.where(kept, self.cam_std / self.cam_mean, 0.0)
        largest = variation.amax((1, 2), keepdim=True)
        weight = 1 - variation / torch.where(largest > 0, largest, 1.0)
        return torch.where(kept, self.cam_mean * weight, 0.0)
