"""BayesGrad-CAM against autograd loops, against closed forms, and against the traps of other people's code."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.explain import BayesGradCAM, Explanation
from pneumo_ray.explain.cam import signed_maps
from pneumo_ray.explain.zones import zone_operator
from pneumo_ray.model import ModelConfig, PneumoniaNet

Calibrated = Callable[..., PneumoniaNet]

SMALL = ("resnet18", "densenet121", "efficientnet_b0", "vgg16")
SITES = ("head", "tail")


def images(num_images: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(num_images, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def headed(weight: Tensor, dropout: float = 0.5) -> PneumoniaNet:
    """A network whose images are its feature maps: only the head is left."""
    with torch.device("meta"):
        net = PneumoniaNet(ModelConfig("resnet18", "none", dropout)).eval()
    net.prefix, net.tail = nn.Identity(), nn.Identity()
    net.classifier = nn.Linear(len(weight), 1)
    net.classifier.weight.data = weight[None].clone()
    return net


def assert_near(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Agreement relative to the largest value: a map's rounding error is that of its largest terms."""
    scale = expected.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(actual, expected, rtol=relative, atol=relative * scale)


def tensors(explanation: Explanation) -> dict[str, Tensor]:
    return {name: value for name, value in vars(explanation).items() if isinstance(value, Tensor)}


def autograd_grad_cam(maps: Tensor, head: Callable[[Tensor], Tensor], sign: Tensor) -> tuple[Tensor, Tensor]:
    """Published Grad-CAM of each image [B, h, w], and the logits [B]."""
    maps = maps.detach().requires_grad_()
    logit = head(maps)
    (gradient,) = torch.autograd.grad((sign * logit).sum(), maps)
    return (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach(), logit.detach()


@dataclasses.dataclass
class Passes:
    """What a user would write out: one backward pass for each mask, for the class predicted without dropout."""

    maps: Tensor
    """[T, B, h, w]"""
    logits: Tensor
    """[T, B]"""
    plain_map: Tensor
    plain_logit: Tensor


def written_out(net: PneumoniaNet, x: Tensor, masks: list[Tensor]) -> Passes:
    def head(maps: Tensor, mask: Tensor | float = 1.0) -> Tensor:
        return net.classifier(mask * F.adaptive_avg_pool2d(maps, 1).flatten(1))[:, 0]

    with torch.no_grad():
        maps = net.feature_maps(x)
        sign = head(maps).sign()
    plain_map, plain_logit = autograd_grad_cam(maps, head, sign)
    passes = []
    for drawn in zip(*masks, strict=True):
        if net.config.dropout_site == "head":
            passes.append(autograd_grad_cam(maps, functools.partial(head, mask=drawn[0]), sign))
            continue
        for layer, mask in zip(net.tail_dropouts(), drawn, strict=True):
            layer.mask = mask
        with torch.no_grad():
            maps = net.feature_maps(x)
        passes.append(autograd_grad_cam(maps, head, sign))
    for layer in net.tail_dropouts():
        layer.mask = None
    maps_t, logits_t = zip(*passes, strict=True)
    return Passes(torch.stack(maps_t), torch.stack(logits_t), plain_map, plain_logit)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("arch", SMALL)
def test_equals_a_written_out_autograd_loop(calibrated: Calibrated, arch: str, site: str) -> None:
    """Same masks, one backward pass for each of them: every number that is derived from the passes agrees."""
    net, x = calibrated(arch, site, 0.3), images()
    engine = BayesGradCAM(net, passes=5, seed=3)
    e, reference = engine(x), written_out(net, x, engine.masks)
    assert_near(e.logit, reference.plain_logit)
    assert_near(e.logit_mean, reference.logits.mean(0))
    assert_near(e.logit_std, reference.logits.std(0))
    assert_near(e.prob_mean, reference.logits.sigmoid().mean(0))
    assert_near(e.prob_std, reference.logits.sigmoid().std(0))
    assert_near(e.cam, reference.plain_map)
    assert torch.equal(e.cam_signed.relu(), e.cam)
    assert_near(e.cam_mean, reference.maps.mean(0))
    assert_near(e.cam_std, reference.maps.std(0))
    fine = F.interpolate(reference.maps, size=(64, 64), mode="bilinear", align_corners=False)
    right_upper = fine[:, :, :21, :32].mean((2, 3))
    assert_near(e.zone_mean[:, 0], right_upper.mean(0))
    assert_near(e.zone_std[:, 0], right_upper.std(0))


@pytest.mark.parametrize("site", SITES)
def test_every_pass_differs(calibrated: Calibrated, site: str) -> None:
    """The silent failure of this method is a dropout that is off: then every deviation is 0."""
    e = BayesGradCAM(calibrated("resnet18", site).train(), passes=8)(images())
    assert (e.cam_std.amax((1, 2)) > 0).all()
    assert (e.logit_std > 0).all()
    assert (e.mutual_information > 0).all()


def test_two_channels_by_hand() -> None:
    """W = (4, -4), h w = 4, p = 1/2: a pass keeps both channels doubled, one of them, or none."""
    net = headed(torch.tensor([4.0, -4.0]))
    net.classifier.bias.data.fill_(0.5)
    engine = BayesGradCAM(net, passes=4)
    engine.masks = [torch.tensor([[2.0, 2.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])]
    maps = torch.tensor([[[[3.0, 1.0], [0.0, 0.0]], [[1.0, 2.0], [0.0, 1.0]]]])
    e = engine.explain_maps(maps, (6, 6))
    assert e.cam_signed.tolist() == [[[2.0, -1.0], [0.0, -1.0]]]
    assert e.cam.tolist() == [[[2.0, 0.0], [0.0, 0.0]]]
    # Passes before ReLU at the first pixel: 4, 6, -2, 0; at the second: -2, 2, -4, 0.
    assert e.cam_mean.tolist() == [[[2.5, 0.5], [0.0, 0.0]]]
    torch.testing.assert_close(e.cam_std, torch.tensor([[[9.0**0.5, 1.0], [0.0, 0.0]]]))
    assert e.cam_exact_mean is not None
    assert e.cam_exact_var is not None
    assert e.cam_exact_mean.tolist() == e.cam_signed.tolist()
    assert e.cam_exact_var.tolist() == [[[10.0, 5.0], [0.0, 1.0]]]  # sum_k (w_k A_k / 4)^2
    # Logits: 0.5 + the sums of the signed maps, 0; 8; -8; 0.
    assert e.logit.tolist() == [0.5]
    assert e.logit_mean.tolist() == [0.5]
    torch.testing.assert_close(e.logit_std, torch.tensor([(128 / 3) ** 0.5]))
    torch.testing.assert_close(e.logit_se, torch.tensor([(128 / 3) ** 0.5 / 2]))


@settings(deadline=None, max_examples=20)
@given(rate=st.floats(0.1, 0.8), height=st.integers(1, 4), width=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_sampled_moments_match_the_closed_form(rate: float, height: int, width: int, seed: int) -> None:
    """Before ReLU, E[L] is the plain map and Var[L] = p/(1-p) sum_k (w_k A_k / hw)^2; 6 standard errors are allowed."""
    generator = torch.Generator().manual_seed(seed)
    weight, maps = torch.randn(64, generator=generator), torch.randn(2, 64, height, width, generator=generator)
    engine = BayesGradCAM(headed(weight, rate), passes=20_000, seed=seed)
    e = engine.explain_maps(maps, (32, 32), "pneumonia")
    passes = signed_maps(maps, engine.masks[0] * weight).double()
    assert e.cam_exact_mean is not None
    assert e.cam_exact_var is not None
    exact_var = rate / (1 - rate) * (weight.double()[:, None, None] * maps.double() / (height * width)).square().sum(1)
    torch.testing.assert_close(e.cam_exact_var.double(), exact_var, rtol=1e-5, atol=1e-9)
    error = (passes.mean(1) - e.cam_exact_mean) / (exact_var / 20_000).sqrt()
    assert error.abs().max() < 6
    deviations = passes - passes.mean(1, keepdim=True)
    kurtosis = deviations.pow(4).mean(1) / deviations.square().mean(1).square()
    error = (passes.var(1) / exact_var - 1) / ((kurtosis - 1) / 20_000).sqrt()
    assert error.abs().max() < 6


def test_maps_of_positive_evidence_have_the_exact_moments() -> None:
    """Where no pass is negative ReLU changes nothing, so the sampled maps themselves have the closed form's moments."""
    weight, maps = torch.rand(256) * 4, torch.rand(2, 256, 3, 3)  # 3 x 3 pixels, an image to itself
    e = BayesGradCAM(headed(weight), passes=20_000)(maps, "pneumonia")
    assert e.cam_exact_mean is not None
    assert e.cam_exact_var is not None
    torch.testing.assert_close(e.cam_mean, e.cam_exact_mean, rtol=0.003, atol=0.0)
    torch.testing.assert_close(e.cam_std.square(), e.cam_exact_var, rtol=0.06, atol=0.0)
    pooled = maps.mean((2, 3)) * weight
    torch.testing.assert_close(e.logit_std.square(), pooled.square().sum(1), rtol=0.06, atol=0.0)


@pytest.mark.parametrize("site", SITES)
def test_network_passes_have_the_same_moments(calibrated: Calibrated, site: str) -> None:
    """The layers in training mode draw masks of their own: another sample of the same distribution."""
    net, x = calibrated("resnet18", site, 0.4), images(1)
    e = BayesGradCAM(net, passes=1500, seed=5)(x)
    for layer in [net.dropout, *net.tail_dropouts()]:
        layer.train()
    torch.manual_seed(6)
    with torch.no_grad():
        features = net.prefix(x).expand(1500, -1, -1, -1)
        logits = net.head(net.tail(features))
    standard_error = math.sqrt(2 / 1500) * logits.std()
    assert abs(e.logit_mean - logits.mean()) < 5 * standard_error
    assert e.logit_std.item() == pytest.approx(logits.std().item(), rel=0.12)


@pytest.mark.parametrize("site", SITES)
def test_signed_map_and_logit_equal_the_network(calibrated: Calibrated, site: str) -> None:
    net, x = calibrated("resnet18", site), images()
    e = BayesGradCAM(net)(x, "pneumonia")
    with torch.no_grad():
        assert_near(e.logit, net(x))
    assert_near(e.cam_signed.sum((1, 2)), e.logit - net.classifier.bias.item())


@pytest.mark.parametrize("site", SITES)
def test_normal_is_the_negative_of_pneumonia(calibrated: Calibrated, site: str) -> None:
    engine, x = BayesGradCAM(calibrated("resnet18", site)), images(4)
    pneumonia, normal = engine(x, "pneumonia"), engine(x, "normal")
    assert torch.equal(normal.cam_signed, -pneumonia.cam_signed)
    assert not (normal.cam * pneumonia.cam).any()
    assert pneumonia.target.tolist() == [1, 1, 1, 1]
    assert normal.target.tolist() == [0, 0, 0, 0]
    for name in ("logit", "logit_mean", "prob_mean", "entropy"):
        assert torch.equal(getattr(pneumonia, name), getattr(normal, name))
    middle = pneumonia.logit.sort().values[1:3].mean().item()
    predicted = engine(x, threshold_logit=middle)
    assert predicted.target.dtype == torch.int8
    assert predicted.target.tolist() == (pneumonia.logit > middle).tolist()
    for image, sick in enumerate(predicted.target.tolist()):
        expected = pneumonia if sick else normal
        assert torch.equal(predicted.cam_mean[image], expected.cam_mean[image])
        assert torch.equal(predicted.zone_std[image], expected.zone_std[image])


@pytest.mark.parametrize("site", SITES)
def test_results_do_not_depend_on_the_batch(calibrated: Calibrated, site: str) -> None:
    engine, x = BayesGradCAM(calibrated("densenet121", site), passes=4), images(5)
    whole = tensors(engine(x))
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = tensors(engine(x[order]))
    first, second = tensors(engine(x[:2])), tensors(engine(x[2:]))
    again = tensors(BayesGradCAM(engine.net, passes=4)(x))
    for name, expected in whole.items():
        scale = 1e-5 * expected.float().abs().max().item()
        for actual in (permuted[name][order.argsort()], torch.cat([first[name], second[name]]), again[name]):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=scale)


@pytest.mark.parametrize("arch", ["resnet18", "vgg16"])
def test_tail_chunks_do_not_change_the_result(calibrated: Calibrated, arch: str) -> None:
    """One pass at a time, some at a time with a rest, and all at once."""
    net, x = calibrated(arch, "tail"), images(2)
    with torch.no_grad():
        one_pass = 40 * net.prefix(x).numel()
    results = [tensors(BayesGradCAM(net, passes=6, max_bytes=n)(x)) for n in (1, 3 * one_pass, 100 * one_pass)]
    for name, expected in results[0].items():
        for result in results[1:]:
            torch.testing.assert_close(result[name], expected, rtol=1e-4, atol=1e-5)


def test_tail_runs_what_precedes_the_first_dropout_once(calibrated: Calibrated) -> None:
    net = calibrated("resnet18", "tail")
    calls: list[int] = []
    net.prefix.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    sizes: list[int] = []
    net.tail.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    with torch.no_grad():
        one_pass = 40 * net.prefix(images(2)).numel()
    BayesGradCAM(net, passes=7, max_bytes=3 * one_pass)(images(2))
    assert calls == [2, 2]
    assert sizes == [6, 6, 4]  # 1 + 7 passes of 2 images, at most 3 passes at once


def test_seeds_differ_and_repeat() -> None:
    net = PneumoniaNet(ModelConfig("resnet18", "none"))
    assert torch.equal(BayesGradCAM(net, seed=1).masks[0], BayesGradCAM(net, seed=1).masks[0])
    assert not torch.equal(BayesGradCAM(net, seed=1).masks[0], BayesGradCAM(net, seed=2).masks[0])
    deep = BayesGradCAM(PneumoniaNet(ModelConfig("resnet50", "none", 0.25, "tail")), passes=400)
    assert [tuple(mask.shape) for mask in deep.masks] == [(400, 2048), (400, 2048)]
    assert not torch.equal(deep.masks[0], deep.masks[1])
    assert deep.masks[0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert deep.masks[0].mean().item() == pytest.approx(1, abs=0.005)


def probability_summary(logits: list[float], temperature: float = 1.0) -> Explanation:
    """The explanation of one 1 x 1 map whose passes have these logits."""
    net = headed(torch.tensor([1.0]))
    engine = BayesGradCAM(net, passes=len(logits), temperature=temperature)
    net.classifier.bias.data.zero_()
    engine.masks = [torch.tensor(logits)[:, None]]
    return engine(torch.ones(1, 1, 1, 1), zones=torch.ones(6, 1))


def test_entropies_by_hand() -> None:
    """Passes of 1/4 and 3/4: H[1/2] = ln 2, and each pass has (1/4) ln 4 + (3/4) ln(4/3)."""
    e = probability_summary([-math.log(3), math.log(3)])
    assert e.prob_mean.item() == pytest.approx(0.5)
    assert e.prob_std.item() == pytest.approx(0.5 / math.sqrt(2))
    assert e.prob_se.item() == pytest.approx(0.25)
    assert e.entropy.item() == pytest.approx(math.log(2))
    expected = math.log(4) / 4 + 3 * math.log(4 / 3) / 4
    assert e.expected_entropy.item() == pytest.approx(expected)
    assert e.mutual_information.item() == pytest.approx(math.log(2) - expected)


def test_intercept_is_added_after_the_temperature() -> None:
    """Passes of -3 ln 9 and 3 ln 3 at T = 3, b = ln 3: odds 1/3 and 9."""
    net = headed(torch.tensor([1.0]))
    net.classifier.bias.data.zero_()
    engine = BayesGradCAM(net, passes=2, temperature=3.0, intercept=math.log(3))
    engine.masks = [torch.tensor([[-3 * math.log(9)], [3 * math.log(3)]])]
    e = engine(torch.ones(1, 1, 1, 1), zones=torch.ones(6, 1))
    assert e.prob_mean.item() == pytest.approx((0.25 + 0.9) / 2)
    assert e.logit_mean.item() == pytest.approx(-1.5 * math.log(3))


@pytest.mark.parametrize("site", SITES)
def test_logits_alone_are_those_of_the_explanation(calibrated: Calibrated, site: str) -> None:
    """What calibration and threshold are fitted on is what scoring applies."""
    engine, x = BayesGradCAM(calibrated("resnet18", site).train(), passes=6, temperature=1.5, intercept=0.2), images(3)
    e, logits = engine(x), engine.logits(x)
    assert logits.shape == (3, 7)
    assert engine.net.training
    torch.testing.assert_close(logits[:, 0], e.logit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[:, 1:].mean(1), e.logit_mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((logits[:, 1:] / 1.5 + 0.2).sigmoid().mean(1), e.prob_mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("site", "passes"), [("head", 200), ("tail", 20)])
def test_passes_are_many_where_they_cost_nothing(calibrated: Calibrated, site: str, passes: int) -> None:
    assert BayesGradCAM(calibrated("resnet18", site)).passes == passes


def test_temperature_divides_logits_of_probabilities_only() -> None:
    e = probability_summary([-3 * math.log(3), 3 * math.log(3)], temperature=3.0)
    assert e.expected_entropy.item() == pytest.approx(math.log(4) / 4 + 3 * math.log(4 / 3) / 4)
    assert e.logit_std.item() == pytest.approx(3 * math.log(3) * math.sqrt(2))
    assert e.cam_mean.item() == pytest.approx(3 * math.log(3) / 2)


@settings(deadline=None, max_examples=60)
@given(logits=st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=30))
def test_information_is_what_the_passes_disagree_by(logits: list[float]) -> None:
    """Mutual information is the mean divergence of the passes from their mixture: never negative, at most ln 2."""
    e = probability_summary(logits)
    z = torch.tensor(logits, dtype=torch.float64)
    p, q = z.sigmoid(), (-z).sigmoid()
    divergence = torch.xlogy(p, p / p.mean()) + torch.xlogy(q, q / q.mean())
    assert e.mutual_information.item() == pytest.approx(divergence.mean().item(), abs=1e-6)
    assert 0 <= e.mutual_information.item() <= math.log(2) + 1e-6
    mixed = -(torch.xlogy(p.mean(), p.mean()) + torch.xlogy(q.mean(), q.mean()))
    assert e.entropy.item() == pytest.approx(mixed.item(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("logit", [-40.0, 40.0])
def test_entropy_of_certainty_does_not_vanish_in_rounding(logit: float) -> None:
    """H[e^-40] = 41 e^-40 to first order, at both ends: confident images can still be ranked."""
    e = probability_summary([logit, logit])
    assert e.entropy.item() == pytest.approx(41 * math.exp(-40), rel=1e-5, abs=0)
    assert e.expected_entropy.item() == pytest.approx(41 * math.exp(-40), rel=1e-5, abs=0)


def test_certainty_weighted_maps_by_hand() -> None:
    e = probability_summary([1.0, 1.0])
    e = dataclasses.replace(
        e,
        cam_mean=torch.tensor([[[8.0, 4.0], [4.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]]),
        cam_std=torch.tensor([[[2.0, 2.0], [6.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]]),
    )
    assert e.certainty_weighted().tolist() == [[[6.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert e.certainty_weighted(0.5).tolist()[0] == [[7.0, 3.0], [1.0, 0.0]]
    # Coefficients 1/4, 1/2, 3/2; the fourth pixel is under a tenth of the maximum, so its 10 counts for nothing.
    expected = torch.tensor([[[8 * 5 / 6, 4 * 2 / 3], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(e.cov_weighted(), expected)


def test_zone_deviation_knows_that_pixels_vary_together(calibrated: Calibrated) -> None:
    """The mean of the pixels' deviations only bounds the deviation of their mean."""
    e = BayesGradCAM(calibrated("vgg16"), passes=50)(images())
    naive = e.cam_std.flatten(1) @ zone_operator((2, 2), (64, 64)).mT
    assert (e.zone_std <= naive * (1 + 1e-5)).all()
    assert (e.zone_std < 0.95 * naive).any()


def test_boxes_of_images(calibrated: Calibrated) -> None:
    """An operator for each image gives what the images give one by one."""
    engine, x = BayesGradCAM(calibrated("resnet18")), images(2)
    operators = [zone_operator((2, 2), (64, 64), box=box) for box in [(0, 0, 40, 64), (10, 20, 60, 61)]]
    together = engine(x, zones=torch.stack(operators))
    for image, operator in enumerate(operators):
        alone = engine(x[image : image + 1], zones=operator)
        torch.testing.assert_close(together.zone_mean[image], alone.zone_mean[0])
        torch.testing.assert_close(together.zone_std[image], alone.zone_std[0])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("mode", ["eval", "train", "mixed"])
def test_network_is_left_as_it_was_found(calibrated: Calibrated, site: str, mode: str) -> None:
    net = calibrated("resnet18", site).train(mode == "train")
    if mode == "mixed":
        net.dropout.train()
        net.get_submodule("prefix.layer2").train()
    modes = {name: module.training for name, module in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    e = BayesGradCAM(net, passes=3)(images())
    assert {name: module.training for name, module in net.named_modules()} == modes
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(layer.mask is None for layer in net.tail_dropouts())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    expected = BayesGradCAM(calibrated("resnet18", site), passes=3)(images())
    torch.testing.assert_close(e.cam_mean, expected.cam_mean)


@pytest.mark.parametrize("site", SITES)
def test_the_network_survives_an_exception(calibrated: Calibrated, site: str) -> None:
    net = calibrated("resnet18", site).train()
    net.tail[-1].register_forward_hook(lambda module, args, output: 1 / 0)  # type: ignore[index]
    with pytest.raises(ZeroDivisionError):
        BayesGradCAM(net, passes=3)(images())
    assert all(module.training for module in net.modules())
    assert all(layer.mask is None for layer in net.tail_dropouts())


@pytest.mark.parametrize("site", SITES)
def test_bfloat16_features_keep_float32_maps(calibrated: Calibrated, site: str) -> None:
    """Under autocast features are rounded, the arithmetic of maps is not: signed maps still sum to the logit."""
    net, x = calibrated("resnet18", site), images()
    exact = BayesGradCAM(net)(x, "pneumonia")
    e = BayesGradCAM(net, amp_dtype=torch.bfloat16)(x, "pneumonia")
    assert all(value.dtype == torch.float32 for name, value in tensors(e).items() if name != "target")
    assert_near(e.cam_signed.sum((1, 2)), e.logit - net.classifier.bias.item())
    assert not torch.equal(e.logit, exact.logit)
    assert_near(e.cam_mean, exact.cam_mean, 0.05)
    assert_near(e.cam_std, exact.cam_std, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        ambient = BayesGradCAM(net)(x, "pneumonia")
    assert torch.equal(ambient.cam_mean, e.cam_mean)
    assert torch.equal(ambient.zone_std, e.zone_std)


def test_feature_maps_made_elsewhere(calibrated: Calibrated) -> None:
    """A compiled trunk hands its maps over; memory formats make no difference."""
    net, x = calibrated("efficientnet_b0"), images()
    engine = BayesGradCAM(net)
    expected = tensors(engine(x))
    maps = net.feature_maps(x)
    for form in (torch.contiguous_format, torch.channels_last):
        actual = tensors(engine.explain_maps(maps.to(memory_format=form), (64, 64)))
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)


def test_wrapped_networks_are_unwrapped(calibrated: Calibrated) -> None:
    net = calibrated("resnet18")
    assert BayesGradCAM(cast(nn.Module, torch.compile(net))).net is net
    assert BayesGradCAM(nn.DataParallel(net)).net is net


def test_what_cannot_work_is_refused(calibrated: Calibrated) -> None:
    net = calibrated("resnet18")
    for site in SITES:
        with pytest.raises(ModelError, match=r"no dropout to sample.*model\.dropout above 0"):
            BayesGradCAM(calibrated("resnet18", site, 0.0))
    with pytest.raises(ModelError, match="Linear"):
        BayesGradCAM(nn.Linear(2, 1))
    with pytest.raises(ConfigError, match="at least 2"):
        BayesGradCAM(net, passes=1)
    with pytest.raises(ConfigError, match="temperature"):
        BayesGradCAM(net, temperature=0.0)
    with pytest.raises(ConfigError, match="max_bytes"):
        BayesGradCAM(net, max_bytes=0)
    with pytest.raises(ConfigError, match="predicted, pneumonia, normal"):
        BayesGradCAM(net)(images(), "virus")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="call the engine with images"):
        BayesGradCAM(calibrated("resnet18", "tail")).explain_maps(torch.zeros(1, 512, 2, 2), (64, 64))
