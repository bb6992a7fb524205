"""Grad-CAM by autograd of networks without a pooled linear head, against written-out loops and the closed form."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Permute

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.explain.foreign import ForeignGradCAM
from pneumo_ray.model import PneumoniaNet


class Foreign(nn.Module):
    """Two dropouts, of channels before the maps and of values behind them, and a head that is not linear."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, 2, 1)
        self.drop = nn.Dropout2d(0.3)
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.values = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(8 * 16, 5), nn.Tanh(), nn.Linear(5, outputs))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.second(self.drop(self.first(x)))
        return self.head(self.values(maps).flatten(1))


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_plain_map_is_published_grad_cam() -> None:
    net = Foreign().eval()
    e = ForeignGradCAM(net, "second", passes=2)(images(), "pneumonia")
    maps = net.second(net.first(images())).detach().requires_grad_()
    logit = net.head(maps.flatten(1))[:, 0]
    (gradient,) = torch.autograd.grad(logit.sum(), maps)
    expected = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).detach()
    torch.testing.assert_close(e.cam_signed, expected)
    torch.testing.assert_close(e.logit, logit.detach())
    assert e.cam.max() > 0


def test_layers_may_be_followed_by_in_place_changes() -> None:
    """DenseNet and VGG do so: the maps are those before the change, and the same as without it."""

    def made(in_place: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(in_place), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 16, 1)
        ).eval()

    changed, plain = (ForeignGradCAM(made(in_place), "0", passes=3)(images()) for in_place in (True, False))
    torch.testing.assert_close(changed.cam_signed, plain.cam_signed, rtol=0, atol=0)
    torch.testing.assert_close(changed.cam_std, plain.cam_std, rtol=0, atol=0)
    assert plain.cam_std.max() > 0


def test_pooled_linear_head_gives_the_closed_form(calibrated: Callable[..., PneumoniaNet]) -> None:
    """The one network that both engines can explain: the same map and the same logit."""

    class Wrapped(nn.Module):
        def __init__(self, net: PneumoniaNet) -> None:
            super().__init__()
            self.net, self.drop = net, nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            pooled = F.adaptive_avg_pool2d(self.net.feature_maps(x), 1).flatten(1)
            return self.net.classifier(self.drop(pooled))

    net, x = calibrated("resnet18"), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    theirs, ours = ForeignGradCAM(Wrapped(net), "net.tail", passes=100)(x), BayesGradCAM(net, passes=100)(x)
    torch.testing.assert_close(theirs.cam_signed, ours.cam_signed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.logit, ours.logit, rtol=1e-4, atol=1e-5)
    # 100 other masks of the same distribution: a standard deviation is known to 1 / sqrt(200) of itself.
    assert ((theirs.logit_std / ours.logit_std).log().abs() < 5 * 200**-0.5).all()


def test_passes_share_their_masks_whatever_the_batch() -> None:
    engine = ForeignGradCAM(Foreign(), "second", passes=4, seed=3)
    whole, part = engine.evidence(images(3)), engine.evidence(images(3)[1:])
    torch.testing.assert_close(whole.signed[1:], part.signed)
    torch.testing.assert_close(whole.bias[1:], part.bias)
    assert (whole.signed.std(1).amax((1, 2)) > 0).all()
    assert not torch.equal(ForeignGradCAM(engine.net, "second", 4, seed=4).evidence(images()).signed, whole.signed)


def test_dropout_has_its_rate_and_keeps_the_mean() -> None:
    """Behind one dropout of values and a linear head the logit's mean is that without dropout."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 256, 1))
    logits = ForeignGradCAM(net, "0", passes=800)(images(1))
    assert abs(logits.logit_mean - logits.logit) < 5 * logits.logit_std * 800**-0.5
    inputs = net[1](net[0](images(1))) * net[3].weight
    assert logits.logit_std.item() == pytest.approx(inputs.square().sum().sqrt().item(), rel=0.13)


def test_two_outputs_are_a_difference() -> None:
    net = Foreign(outputs=2).eval()
    e = ForeignGradCAM(net, "second", passes=2)(images(), "pneumonia")
    with torch.no_grad():
        both = net(images())
    torch.testing.assert_close(e.logit, both[:, 1] - both[:, 0])


def test_network_is_left_as_it_was() -> None:
    net = Foreign().train()
    net.second.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    ForeignGradCAM(net, "second", passes=2)(images())
    with pytest.raises(ModelError, match="its output must be logits"):
        ForeignGradCAM(nn.Sequential(net.first, nn.Dropout(0.5)), "0", passes=2)(images())
    assert net.drop.training
    assert not net.second[1].training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_cannot_be_explained_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no layer 'third' \(its last ones: .*head\.2\)"):
        ForeignGradCAM(Foreign(), "third")
    with pytest.raises(ModelError, match="no dropout to sample"):
        ForeignGradCAM(nn.Sequential(nn.Conv2d(3, 4, 1)), "0")
    with pytest.raises(ModelError, match="does not return feature maps"):
        ForeignGradCAM(Foreign(), "head")(images())
    last = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), Permute([0, 2, 3, 1]), Permute([0, 3, 1, 2]))
    swin = nn.Sequential(last, nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 16, 1))
    assert ForeignGradCAM(swin, "0.2", 2)(images()).cam.shape == (3, 4, 4)
    with pytest.raises(ModelError, match=r"'0\.1' returns \[4, 4, 6\] for a square image, so its channels are last"):
        ForeignGradCAM(swin, "0.1", 2)(images())
    with pytest.raises(ConfigError, match="at least 2"):
        ForeignGradCAM(Foreign(), "second", 1)
