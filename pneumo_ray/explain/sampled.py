"""An explanation from Monte Carlo passes: signed maps of every pass, reduced over the passes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pneumo_ray.explain.explanation import Explanation
from pneumo_ray.explain.masks import group_sizes
from pneumo_ray.model.calibrated import Calibration


@dataclass(frozen=True, eq=False)
class SampledMaps:
    """The signed maps of the network itself and of T passes, for B images."""

    signed: Tensor
    """float32 [B, 1 + T, h, w], in logit units, of pneumonia; the first without a draw."""
    bias: Tensor
    """float32 [1] or [1 + T], of each pass; or [B, 1 + T], all of the logit that is not in the map."""
    exact_var: Tensor | None = None
    """[B, h, w], the variance before ReLU over the posterior; None where it has no closed form."""

    @property
    def logit(self) -> Tensor:
        """[B], of the network itself."""
        return self.signed[:, 0].sum((1, 2)) + self.bias[..., 0]

    def explain(self, sign: Tensor, zones: Tensor, calibration: Calibration) -> Explanation:
        """Reduce over the passes.

        Args:
            sign: [B], +1 where pneumonia is explained and -1 where normality is.
            zones: [6, h w] or [B, 6, h w].
            calibration: from a logit to a probability.
        """
        with torch.autocast(self.signed.device.type, enabled=False):
            passes = self.signed.shape[1] - 1
            logits = self.signed.sum((2, 3)) + self.bias
            signed = self.signed * sign[:, None, None, None]
            positive = signed.relu()
            cam_std, cam_mean = torch.std_mean(positive[:, 1:], dim=1)
            by_pass = positive[:, 1:].flatten(2) @ zones.mT
            zone_std, zone_mean = torch.std_mean(by_pass, dim=1)
            zone_groups = torch.stack([g.mean(1) for g in by_pass.split(group_sizes(passes), 1)], 1)
            logit_std, logit_mean = torch.std_mean(logits[:, 1:], dim=1)
            calibrated = calibration.logit(logits[:, 1:])
            prob_std, prob_mean = torch.std_mean(calibrated.sigmoid(), dim=1)
            entropy = binary_entropy(torch.minimum(prob_mean, (-calibrated).sigmoid().mean(1)))
            expected_entropy = binary_entropy((-calibrated.abs()).sigmoid()).mean(1)
        return Explanation(
            passes=passes,
            target=(sign > 0).to(torch.int8),
            logit=logits[:, 0],
            logit_mean=logit_mean,
            logit_std=logit_std,
            prob_mean=prob_mean,
            prob_std=prob_std,
            entropy=entropy,
            expected_entropy=expected_entropy,
            mutual_information=(entropy - expected_entropy).clamp(min=0),
            cam_signed=signed[:, 0],
            cam=positive[:, 0],
            cam_mean=cam_mean,
            cam_std=cam_std,
            cam_exact_mean=None if self.exact_var is None else signed[:, 0],
            cam_exact_var=self.exact_var,
            zone_mean=zone_mean,
            zone_std=zone_std,
            zone_groups=zone_groups,
        )


def binary_entropy(rarer: Tensor) -> Tensor:
    """Return the entropy in nats of a binary variable from the probability of its rarer value, exact also near 0."""
    return -(torch.xlogy(rarer, rarer) + (1 - rarer) * torch.log1p(-rarer))
