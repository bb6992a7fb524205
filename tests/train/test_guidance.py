"""The share of the evidence outside the lungs, its gradient, and the map that it is taken from."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pneumo_ray.model import ModelConfig, PneumoniaNet
from pneumo_ray.train.guidance import EPSILON, outside_share


def small_net(**options: object) -> PneumoniaNet:
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig("resnet18", "none", output_stride=16, **options))  # type: ignore[arg-type]
    nn.init.constant_(net.classifier.bias, 0.7)
    return net


def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def inside() -> Tensor:
    return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(2))


def test_the_share_by_hand():
    """Positive evidence 1, 3 and 2; outside are none, all and half of it: (0 + 3 + 1) / 6."""
    signed = torch.tensor([[[1.0, -5.0], [3.0, 2.0]]])
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
    assert outside_share(signed, mask).item() == pytest.approx(4 / (6 + EPSILON))


def test_flat_maps_have_the_share_of_area():
    mask = inside()
    expected = (1 - mask.mean((1, 2))) * 16 / (16 + EPSILON)
    torch.testing.assert_close(outside_share(torch.ones(3, 4, 4), mask), expected)


def test_no_evidence_has_no_share_or_gradient():
    signed = torch.full((1, 2, 2), -1.0, requires_grad=True)
    share = outside_share(signed, torch.zeros(1, 2, 2))
    share.sum().backward()
    assert share.item() == 0
    assert torch.equal(signed.grad, torch.zeros(1, 2, 2))


def test_the_gradient_is_that_of_the_quotient():
    """The derivative by S_c is ((1 - m_c) - share) / (sum + eps) where S_c > 0, else 0."""
    signed = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    share = outside_share(signed, inside())
    share.sum().backward()
    total = signed.detach().relu().sum((1, 2)) + EPSILON
    slope = ((1 - inside()) - share.detach()[:, None, None]) / total[:, None, None]
    torch.testing.assert_close(signed.grad, torch.where(signed > 0, slope, 0.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("site", ["head", "tail"])
@pytest.mark.parametrize("masked", [True, False])
def test_map_and_logit_share_one_pass(site: str, masked: bool):
    """In training mode dropout is drawn once for both, whether its mask is given or not."""
    net = small_net(dropout_site=site).train()
    (layer,) = [layer for layer in net.dropouts() if layer.p > 0]
    if masked:
        layer.mask = torch.bernoulli(torch.full((3, layer.num_units), 0.5)) * 2
    maps = net.feature_maps(images())
    logit, signed = net.head_with_map(maps)
    torch.testing.assert_close(signed.sum((1, 2)), logit - 0.7, rtol=1e-4, atol=1e-5)
    if masked:
        assert torch.equal(net.head(maps), logit)


def test_a_network_without_the_map_is_unchanged():
    net = small_net().eval()
    with torch.no_grad():
        logit, signed = net(images(), with_map=True)
        assert torch.equal(net(images()), logit)
    assert signed.shape == (3, 4, 4)


def test_map_and_share_are_float32_inside_autocast():
    net = small_net().train()
    with torch.autocast("cpu", torch.bfloat16):
        maps = net.feature_maps(images())
        logit, signed = net.head_with_map(maps)
        share = outside_share(signed, inside())
    assert (maps.dtype, logit.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (signed.dtype, share.dtype) == (torch.float32, torch.float32)
    (logit.float().sum() + share.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def guided_gradients(net: PneumoniaNet, forward: nn.Module) -> list[Tensor]:
    net.zero_grad()
    net.dropout.mask = torch.full((3, 512), 1.0)
    logit, signed = forward(images(), with_map=True)
    (logit.sum() + outside_share(signed, inside()).sum()).backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


def test_the_gradient_passes_through_wrappers():
    """Of one worker's DistributedDataParallel, and of a graph that torch.compile captured whole."""
    net = small_net().train()
    expected = guided_gradients(net, net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for wrapped in (DistributedDataParallel(net), compiled):
            for found, wanted in zip(guided_gradients(net, wrapped), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    finally:
        dist.destroy_process_group()


def test_following_the_gradient_moves_the_evidence_inside():
    """Only the head is trained: its weights alone can turn evidence towards the left half."""
    net = small_net(freeze="backbone", dropout=0.0).train()
    mask = torch.zeros(3, 4, 4)
    mask[..., :2] = 1
    optimizer = torch.optim.Adam([net.classifier.weight], lr=1e-2)
    shares = []
    for _ in range(30):
        _, signed = net(images(), with_map=True)
        share = outside_share(signed, mask).mean()
        optimizer.zero_grad()
        share.backward()
        optimizer.step()
        shares.append(share.item())
    assert shares[-1] < 0.5 * shares[0]
