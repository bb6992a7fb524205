"""Grad-CAM by construction against arithmetic by hand and against autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pneumo_ray.errors import ConfigError
from pneumo_ray.explain.cam import grad_cam, signed_maps, target_sign
from pneumo_ray.model import ModelConfig, PneumoniaNet


def headed(weight: list[float], bias: float) -> PneumoniaNet:
    """A network whose images are its feature maps: only the head is left."""
    with torch.device("meta"):
        net = PneumoniaNet(ModelConfig("resnet18", "none", dropout=0.5)).eval()
    net.prefix, net.tail = nn.Identity(), nn.Identity()
    net.classifier = nn.Linear(len(weight), 1)
    net.classifier.weight.data = torch.tensor([weight])
    net.classifier.bias.data = torch.tensor([bias])
    return net


MAPS = torch.tensor([[[[4.0, 0.0], [8.0, 12.0]], [[0.0, 4.0], [4.0, 4.0]]]])
"""Two channels of 2 x 2."""


def test_two_channels_by_hand() -> None:
    """W = (1, -2), h w = 4: (4 - 0)/4, (0 - 8)/4, (8 - 8)/4, (12 - 8)/4; the logit is 6 - 2 * 3 + 0.25."""
    net = headed([1.0, -2.0], 0.25)
    expected = torch.tensor([[1.0, -2.0], [0.0, 1.0]])
    assert torch.equal(signed_maps(MAPS, net.classifier.weight)[0, 0], expected)
    assert net(MAPS).item() == 0.25
    assert torch.equal(grad_cam(net, MAPS, "pneumonia")[0], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(grad_cam(net, MAPS, "normal")[0], torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    assert torch.equal(grad_cam(net, MAPS), grad_cam(net, MAPS, "pneumonia"))
    assert torch.equal(grad_cam(net, MAPS, threshold_logit=0.25), grad_cam(net, MAPS, "pneumonia"))
    assert torch.equal(grad_cam(net, MAPS, threshold_logit=0.26), grad_cam(net, MAPS, "normal"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_signed_map_sums_to_logit_without_bias(memory_format: torch.memory_format) -> None:
    net = headed(torch.randn(512).tolist(), 0.7)
    with torch.no_grad():
        maps = torch.randn(3, 512, 5, 4).to(memory_format=memory_format)
        signed = signed_maps(maps, net.classifier.weight)
        torch.testing.assert_close(signed.sum((1, 2, 3)), net.head(maps) - 0.7, rtol=1e-5, atol=1e-6)


def test_each_set_of_weights_gives_its_own_map() -> None:
    maps, weights = torch.randn(2, 6, 3, 5), torch.randn(4, 6)
    expected = torch.einsum("bkyx,tk->btyx", maps.double(), weights.double()) / 15
    torch.testing.assert_close(signed_maps(maps, weights).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_maps_are_not_multiplied_in_bfloat16(autocast: bool) -> None:
    """The product of rounded maps is exact to float32; in bfloat16 it would be off by about 1e-2."""
    maps, weights = torch.randn(2, 64, 3, 3).bfloat16(), torch.randn(4, 64)
    expected = torch.einsum("bkyx,tk->btyx", maps.double(), weights.double()) / 9
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = signed_maps(maps, weights)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def autograd_grad_cam(net: PneumoniaNet, x: Tensor, sign: int) -> Tensor:
    """Grad-CAM as published: weights are gradients averaged over pixels."""
    maps = net.feature_maps(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(sign * net.head(maps).sum(), maps)
    return (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach()


@pytest.mark.parametrize(("target", "sign"), [("pneumonia", 1), ("normal", -1)])
def test_equals_published_grad_cam(calibrated: Callable[..., PneumoniaNet], target: str, sign: int) -> None:
    net = calibrated("resnet18")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = autograd_grad_cam(net, x, sign)
    assert expected.max() > 0
    with torch.no_grad():
        actual = grad_cam(net, net.feature_maps(x), target)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.max().item())


def test_sign_is_decided_image_by_image() -> None:
    logit = torch.tensor([-1.0, 0.5, 2.0])
    assert target_sign(logit, "predicted").tolist() == [-1, 1, 1]
    assert target_sign(logit, "predicted", 0.5).tolist() == [-1, 1, 1]
    assert target_sign(logit, "predicted", 0.6).tolist() == [-1, -1, 1]
    assert target_sign(logit, "pneumonia").tolist() == [1, 1, 1]
    assert target_sign(logit, "normal").tolist() == [-1, -1, -1]


def test_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="predicted, pneumonia, normal"):
        target_sign(torch.zeros(1), "bacteria")  # type: ignore[arg-type]
