"""An ensemble explained as one model: several networks with a posterior each, and everything over members and passes.

Training runs end in different places, and passes of one network know nothing of that (Lakshminarayanan, Pritzel and
Blundell 2017, arXiv 1612.01474). The members form a mixture with equal weights: its mean is the mean of the members' means,
and its variance the mean variance within a member plus the variance between their means. Members have calibrations of
their own, so their logits and maps are brought to one scale first.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pneumo_ray.errors import ConfigError
from pneumo_ray.explain.bayes import BayesGradCAM, Evidence
from pneumo_ray.explain.cam import target_sign
from pneumo_ray.explain.explanation import Explanation, MemberSpread
from pneumo_ray.explain.foreign import ForeignGradCAM
from pneumo_ray.explain.sampled import binary_entropy
from pneumo_ray.explain.target import Target
from pneumo_ray.explain.zones import image_zones
from pneumo_ray.model.calibrated import Calibration


def common_calibration(calibrations: Sequence[Calibration]) -> Calibration:
    """Return the calibration of a mean of logits: with it, the calibrated logit is the mean of the members' calibrated ones.

    Slopes 1 / temperature and intercepts are averaged; that of equal calibrations is theirs.
    """
    first = calibrations[0]
    if all(one == first for one in calibrations):
        return first
    slope = sum(1 / one.temperature for one in calibrations) / len(calibrations)
    return Calibration(1 / slope, sum(one.intercept for one in calibrations) / len(calibrations))


class EnsembleGradCAM:
    """Explain images with several networks; of one it is bitwise that one.

    Logits and maps of member m are multiplied by `temperature / temperature_m`, and logits then shifted, so that the
    common calibration turns them into the member's own probabilities. Maps still sum to logits.

    Args:
        engines: of the members, whose maps have one size; their order changes nothing but rounding.

    Attributes:
        calibration: common to all members.

    Raises:
        ConfigError: if there is no member.
    """

    def __init__(self, engines: Sequence[BayesGradCAM | ForeignGradCAM]) -> None:
        """Find the common scale."""
        if not engines:
            raise ConfigError("an ensemble needs at least one model; give --model")
        self.engines = tuple(engines)
        self.calibration = common_calibration([engine.calibration for engine in engines])

    @torch.inference_mode()
    def __call__(
        self, x: Tensor, target: Target = "predicted", *, threshold_logit: float = 0.0, zones: Tensor | None = None
    ) -> Explanation:
        """Explain images; arguments as for `BayesGradCAM`, with the threshold on the common scale."""
        evidence = [engine.evidence(x) for engine in self.engines]
        return self._mixture(evidence, (x.shape[-2], x.shape[-1]), target, threshold_logit, zones)

    @torch.inference_mode()
    def explain_maps(
        self,
        maps: Sequence[Tensor],
        image_size: tuple[int, int],
        target: Target = "predicted",
        *,
        threshold_logit: float = 0.0,
        zones: Tensor | None = None,
    ) -> Explanation:
        """Explain images from their feature maps under each member, in order; otherwise as `BayesGradCAM.explain_maps`."""
        evidence = [engine.evidence_of_maps(own) for engine, own in zip(self.engines, maps, strict=True)]
        return self._mixture(evidence, image_size, target, threshold_logit, zones)

    def _mixture(
        self,
        evidence: Sequence[Evidence],
        image_size: tuple[int, int],
        target: Target,
        threshold_logit: float,
        zones: Tensor | None,
    ) -> Explanation:
        plain = [self._scale(number) * one.logit + self._shift(number) for number, one in enumerate(evidence)]
        logit = torch.stack(plain).mean(0)
        if zones is None:
            zones = image_zones((evidence[0].signed.shape[-2], evidence[0].signed.shape[-1]), image_size, logit.device)
        sign = target_sign(logit, target, threshold_logit)
        found = [
            one.explain(sign, zones, engine.calibration) for one, engine in zip(evidence, self.engines, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return _mixed([_scaled(e, self._scale(n), self._shift(n)) for n, e in enumerate(found)])

    def _scale(self, number: int) -> float:
        return self.calibration.temperature / self.engines[number].calibration.temperature

    def _shift(self, number: int) -> float:
        own = self.engines[number].calibration.intercept
        return self.calibration.temperature * (own - self.calibration.intercept)


def _scaled(e: Explanation, scale: float, shift: float) -> Explanation:
    """Return an explanation on the common scale; probabilities stay as they are."""
    return replace(
        e,
        logit=e.logit * scale + shift,
        logit_mean=e.logit_mean * scale + shift,
        logit_std=e.logit_std * scale,
        cam_signed=e.cam_signed * scale,
        cam=e.cam * scale,
        cam_mean=e.cam_mean * scale,
        cam_std=e.cam_std * scale,
        cam_exact_mean=None if e.cam_exact_mean is None else e.cam_exact_mean * scale,
        cam_exact_var=None if e.cam_exact_var is None else e.cam_exact_var * scale**2,
        zone_mean=e.zone_mean * scale,
        zone_std=e.zone_std * scale,
        zone_groups=None if e.zone_groups is None else e.zone_groups * scale,
    )


def _mixed(found: Sequence[Explanation]) -> Explanation:
    """Return the moments of the mixture of members."""

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(e, name) for e in found]).mean(0)

    def spread(means: str, stds: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return the standard deviation of the mixture, and its parts between and within members."""
        between = torch.stack([getattr(e, means) for e in found]).var(0, correction=0)
        within = torch.stack([getattr(e, stds) for e in found]).square().mean(0)
        return (between + within).sqrt(), between.sqrt(), within.sqrt()

    logit_std, logit_between, logit_within = spread("logit_mean", "logit_std")
    prob_std, prob_between, prob_within = spread("prob_mean", "prob_std")
    prob_mean, expected_entropy = mean("prob_mean"), mean("expected_entropy")
    entropy = binary_entropy(torch.minimum(prob_mean, 1 - prob_mean))
    exact_mean, exact_var = None, None
    if all(e.cam_exact_var is not None for e in found):
        exact_mean = mean("cam_exact_mean")
        exact_var = mean("cam_exact_var") + torch.stack([e.cam_signed for e in found]).var(0, correction=0)
    signed = mean("cam_signed")
    return Explanation(
        passes=sum(e.passes for e in found),
        target=found[0].target,
        logit=mean("logit"),
        logit_mean=mean("logit_mean"),
        logit_std=logit_std,
        prob_mean=prob_mean,
        prob_std=prob_std,
        entropy=entropy,
        expected_entropy=expected_entropy,
        mutual_information=(entropy - expected_entropy).clamp(min=0),
        cam_signed=signed,
        cam=signed.relu(),
        cam_mean=mean("cam_mean"),
        cam_std=spread("cam_mean", "cam_std")[0],
        cam_exact_mean=exact_mean,
        cam_exact_var=exact_var,
        zone_mean=mean("zone_mean"),
        zone_std=spread("zone_mean", "zone_std")[0],
        zone_groups=None if any(e.zone_groups is None for e in found) else mean("zone_groups"),
        members=MemberSpread(logit_between, logit_within, prob_between, prob_within),
    )
