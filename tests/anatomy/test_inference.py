"""The network as it finds lungs, against the network as it is trained, and against PyTorch's own operations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pneumo_ray.anatomy import inference
from pneumo_ray.anatomy.inference import InferenceNet, gathered, spread
from pneumo_ray.anatomy.network import LungNet, standardised

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)


@pytest.fixture(scope="module")
def network() -> LungNet:
    torch.manual_seed(0)
    network = LungNet((4, 8, 12))
    network.train()
    network(torch.rand(4, 64, 64) * 255)  # statistics that are not those of a fresh network
    return network.eval()


@pytest.mark.parametrize("fused", [True, False])
def test_logits_are_those_of_the_trained_network(network, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.inference_mode():
        expected = network(torch.from_numpy(IMAGES))
        found = spread(InferenceNet(network, torch.float32)(IMAGES))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_trained_network_is_left_as_it_was(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    InferenceNet(network, torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in network.state_dict().items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_pixels_are_gathered_as_pixel_unshuffle_does():
    expected = F.pixel_unshuffle(standardised(torch.from_numpy(IMAGES))[:, None], 2)
    torch.testing.assert_close(gathered(IMAGES, torch.float32), expected)
    assert gathered(np.full((1, 4, 4), 9, np.uint8), torch.float32).abs().max() == 0


def test_images_in_any_memory_are_gathered():
    turned = IMAGES.transpose(0, 2, 1)
    turned.flags.writeable = False
    expected = gathered(np.ascontiguousarray(turned), torch.float32)
    torch.testing.assert_close(gathered(turned, torch.float32), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_cells_are_spread_as_pixel_shuffle_does(dtype):
    cells = (torch.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5) % 2).to(dtype)
    torch.testing.assert_close(spread(cells.permute(0, 2, 3, 1)), F.pixel_shuffle(cells.float(), 2)[:, 0].to(dtype))


def test_pooling_and_joining_are_as_pytorch_has_them():
    fine, coarse = torch.randn(2, 6, 8, 4), torch.randn(2, 6, 4, 2)
    fine, coarse = (x.contiguous(memory_format=torch.channels_last) for x in (fine, coarse))
    assert torch.equal(inference._halved(fine), F.max_pool2d(fine, 2))
    expected = torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], dim=1)
    assert torch.equal(inference._joined(coarse, fine), expected)
