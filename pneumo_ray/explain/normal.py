"""An explanation without passes: a posterior over the head makes cells and logit (close to) jointly normal.

A cell is a sum over all channels. Under a Laplace posterior it is normal; under dropout it is nearly so where many channels
contribute (the central limit theorem). Means and covariances are exact in any case, and no random number takes part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pneumo_ray.explain.closed_form import probability_moments, rectified, rectified_covariance
from pneumo_ray.explain.explanation import EXACT, Explanation
from pneumo_ray.explain.sampled import binary_entropy
from pneumo_ray.model.calibrated import Calibration


@dataclass(frozen=True, eq=False)
class NormalMaps:
    """The signed map of the network itself and its covariance over a posterior, for B images."""

    signed: Tensor
    """float32 [B, h, w], in logit units, of pneumonia."""
    bias: Tensor
    """float32 scalar."""
    root: Tensor
    """float32 [B, h w, R]: cells c and d have the covariance `root_c' root_d`."""
    logit_var: Tensor
    """float32 [B], of the logit, with the bias."""

    @property
    def logit(self) -> Tensor:
        """[B], of the network itself, which is the mean."""
        return self.signed.sum((1, 2)) + self.bias

    def explain(self, sign: Tensor, zones: Tensor, calibration: Calibration) -> Explanation:
        """Return the moments over the posterior; arguments as for `SampledMaps.explain`."""
        with torch.autocast(self.signed.device.type, enabled=False):
            size = self.signed.shape[1:]
            logit, logit_std = self.logit, self.logit_var.sqrt()
            signed = self.signed * sign[:, None, None]
            mean = signed.flatten(1)
            covariance = self.root @ self.root.mT  # the sign is squared
            variance = covariance.diagonal(dim1=1, dim2=2)
            cam_mean, cam_var = (moment.float() for moment in rectified(mean, variance.clamp(min=0).sqrt()))
            # Rows without a zone are NaN and stay NaN, each by itself.
            zone_mean = (zones @ cam_mean.unsqueeze(2))[..., 0]
            zone_var = (zones @ rectified_covariance(mean, covariance) * zones).sum(-1).clamp(min=0)
            calibrated = calibration.logit(logit)
            rarer, prob_var, expected_entropy = probability_moments(calibrated, logit_std / calibration.temperature)
            prob_mean = torch.where(calibrated < 0, rarer, 1 - rarer)
            entropy = binary_entropy(rarer)
        return Explanation(
            passes=EXACT,
            target=(sign > 0).to(torch.int8),
            logit=logit,
            logit_mean=logit,
            logit_std=logit_std,
            prob_mean=prob_mean.float(),
            prob_std=prob_var.sqrt().float(),
            entropy=entropy.float(),
            expected_entropy=expected_entropy.float(),
            mutual_information=(entropy - expected_entropy).clamp(min=0).float(),
            cam_signed=signed,
            cam=signed.relu(),
            cam_mean=cam_mean.unflatten(1, size),
            cam_std=cam_var.sqrt().unflatten(1, size),
            cam_exact_mean=signed,
            cam_exact_var=variance.unflatten(1, size),
            zone_mean=zone_mean,
            zone_std=zone_var.sqrt(),
            zone_groups=None,
        )
