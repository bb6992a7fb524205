"""Plain Grad-CAM against the public packages: one pass, dropout off, raw maps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pneumo_ray.explain.cam import grad_cam
from pneumo_ray.model import PneumoniaNet

Calibrated = Callable[..., PneumoniaNet]

REASON = "a peer of the development extra: pip install torchcam grad-cam captum"
ARCHS = ("resnet18", "densenet121")


class TwoDimensional(nn.Module):
    """The network with scores [B, 1]: the packages index a class."""

    def __init__(self, net: PneumoniaNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, None]


def images() -> Tensor:
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def ours(net: PneumoniaNet) -> Tensor:
    with torch.no_grad():
        maps = grad_cam(net, net.feature_maps(images()), "pneumonia")
    assert maps.shape == (3, 3, 3)
    assert (maps.amax((1, 2)) > 0).all()
    return maps


def assert_same_maps(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.max().item())


@pytest.mark.parametrize("arch", ARCHS)
def test_equals_torchcam(calibrated: Calibrated, arch: str) -> None:
    methods = pytest.importorskip("torchcam.methods", reason=REASON)
    net = calibrated(arch)
    with methods.GradCAM(TwoDimensional(net), target_layer="net.tail") as extractor:
        scores = extractor.model(images())
        (theirs,) = extractor([0, 0, 0], scores, normalized=False)
    assert_same_maps(ours(net), theirs.detach())


@pytest.mark.parametrize("arch", ARCHS)
def test_equals_captum(calibrated: Calibrated, arch: str) -> None:
    attr = pytest.importorskip("captum.attr", reason=REASON)
    net = calibrated(arch)
    theirs = attr.LayerGradCam(net, net.tail).attribute(images(), relu_attributions=True)
    assert_same_maps(ours(net), theirs[:, 0].detach())


@pytest.mark.parametrize("arch", ARCHS)
def test_equals_pytorch_grad_cam(calibrated: Calibrated, arch: str) -> None:
    """It scales every map to a maximum of 1 in its call; the step before that gives the raw one."""
    package = pytest.importorskip("pytorch_grad_cam", reason=REASON)
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets", reason=REASON)
    net = calibrated(arch)
    with package.GradCAM(TwoDimensional(net), [net.tail]) as extractor:
        scores = extractor.activations_and_grads(images())
        scores.sum().backward()
        activations = extractor.activations_and_grads.activations[0].numpy()
        gradients = extractor.activations_and_grads.gradients[0].numpy()
        chosen = [targets.ClassifierOutputTarget(0)] * 3
        theirs = extractor.get_cam_image(images(), net.tail, chosen, activations, gradients, False)
    assert_same_maps(ours(net), torch.from_numpy(theirs).relu())
