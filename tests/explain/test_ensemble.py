"""Ensembles: one member is that member bitwise, several are their mixture, in any order."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pneumo_ray.errors import ConfigError
from pneumo_ray.explain import BayesGradCAM, Explanation
from pneumo_ray.explain.ensemble import EnsembleGradCAM, common_calibration
from pneumo_ray.explain.zones import zone_operator
from pneumo_ray.model import PneumoniaNet
from pneumo_ray.model.calibrated import Calibration

CALIBRATIONS = ((1.0, 0.0), (2.0, 0.5), (1.3, -0.4))
PASSES = (20, "exact")


def images(num_images: int = 3) -> Tensor:
    return torch.randn(num_images, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def engines(calibrated: Callable[..., PneumoniaNet], passes: int | str, site: str = "head") -> list[BayesGradCAM]:
    """Three networks that differ in their heads and calibrations."""
    made = []
    for number, (temperature, intercept) in enumerate(CALIBRATIONS):
        net = copy.deepcopy(calibrated("resnet18", site))
        generator = torch.Generator().manual_seed(number)
        net.classifier.weight.data += 0.01 * torch.randn(net.classifier.weight.shape, generator=generator)
        net.classifier.bias.data += 0.3 * number
        made.append(BayesGradCAM(net, passes, temperature=temperature, intercept=intercept))  # type: ignore[arg-type]
    return made


def same(one: Explanation, other: Explanation) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Explanation)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("number", range(3))
def test_one_member_is_that_member_bitwise(calibrated, number: int, passes: int | str) -> None:
    engine, x = engines(calibrated, passes)[number], images()
    for target in ("predicted", "pneumonia"):
        assert same(EnsembleGradCAM([engine])(x, target, threshold_logit=0.1), engine(x, target, threshold_logit=0.1))


@pytest.mark.parametrize("passes", PASSES)
def test_a_member_twice_is_that_member(calibrated, passes: int | str) -> None:
    engine, x = engines(calibrated, passes)[1], images()
    alone, twice = engine(x), EnsembleGradCAM([engine, engine])(x)
    for name in (
        "logit",
        "logit_std",
        "prob_mean",
        "prob_std",
        "mutual_information",
        "cam_mean",
        "cam_std",
        "zone_std",
    ):
        torch.testing.assert_close(getattr(twice, name), getattr(alone, name), rtol=1e-5, atol=1e-6)
    assert twice.members is not None
    assert not twice.members.logit_between.any()


@pytest.mark.parametrize("site", ["head", "tail"])
def test_an_ensemble_is_the_mixture_of_all_passes(calibrated, site: str) -> None:
    """Every pass of every member in one list: means over it, and variances between and within that add up to its own."""
    made, x = engines(calibrated, 20, site), images()
    e = EnsembleGradCAM(made)(x, "pneumonia")
    logits, probs, maps = [], [], []
    for engine in made:
        own = engine.evidence(x)
        drawn = own.signed[:, 1:].sum((2, 3)) + own.bias[-1]
        t, b = engine.calibration.temperature, engine.calibration.intercept
        probs.append((drawn / t + b).sigmoid())
        logits.append(drawn / t + b)
        maps.append(own.signed[:, 1:].relu() / t)
    calibrated_logits, prob = torch.cat(logits, 1), torch.cat(probs, 1)
    calibration = EnsembleGradCAM(made).calibration
    torch.testing.assert_close(calibration.logit(e.logit_mean), calibrated_logits.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(e.prob_mean, prob.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(e.cam_mean / calibration.temperature, torch.cat(maps, 1).mean(1), rtol=1e-4, atol=1e-6)
    # Within a member a deviation is a sample's (n - 1); the members themselves are all there are.
    within = torch.stack([one.var(1) for one in probs]).mean(0)
    between = torch.stack([one.mean(1) for one in probs]).var(0, correction=0)
    torch.testing.assert_close(e.prob_std.square(), within + between, rtol=1e-4, atol=1e-8)
    assert e.members is not None
    torch.testing.assert_close(e.members.prob_between.square(), between, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(e.members.prob_within.square(), within, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(
        e.logit_std.square(), e.members.logit_between.square() + e.members.logit_within.square(), rtol=1e-5, atol=1e-8
    )
    zones = torch.cat(maps, 1).flatten(2) @ zone_operator((2, 2), (64, 64)).mT
    torch.testing.assert_close(e.zone_mean / calibration.temperature, zones.mean(1), rtol=1e-4, atol=1e-6)
    assert e.passes == 60


def test_maps_of_an_ensemble_sum_to_its_logit(calibrated) -> None:
    made, x = engines(calibrated, "exact"), images()
    ensemble = EnsembleGradCAM(made)
    e = ensemble(x, "pneumonia")
    common = ensemble.calibration
    biases = [
        engine.net.classifier.bias.item() / engine.calibration.temperature + engine.calibration.intercept
        for engine in made
    ]
    bias = common.temperature * (sum(biases) / 3 - common.intercept)
    torch.testing.assert_close(e.cam_signed.sum((1, 2)), e.logit - bias, rtol=1e-4, atol=1e-4)


def test_order_of_members_changes_nothing_but_rounding(calibrated) -> None:
    made, x = engines(calibrated, 20), images()
    one, other = EnsembleGradCAM(made)(x), EnsembleGradCAM(made[::-1])(x)
    for name in ("logit", "prob_mean", "prob_std", "cam_mean", "cam_std", "zone_mean", "zone_groups"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6)
    assert torch.equal(one.target, other.target)


def test_members_explain_one_class_each_image(calibrated) -> None:
    """The class is decided once, from the mean logit, also where a member alone would choose the other."""
    made = engines(calibrated, 20)
    made[0].net.classifier.bias.data -= 5
    e = EnsembleGradCAM(made)(images())
    assert torch.equal(e.target == 1, e.logit >= 0)
    assert (e.cam_mean >= 0).all()


def test_common_calibration_averages_calibrated_logits() -> None:
    calibrations = [Calibration(t, b) for t, b in CALIBRATIONS]
    common = common_calibration(calibrations)
    assert common.logit(1.7) == pytest.approx(sum(one.logit(1.7) for one in calibrations) / 3)
    assert common_calibration(calibrations[1:2]) == calibrations[1]
    with pytest.raises(ConfigError, match="at least one model"):
        EnsembleGradCAM([])
