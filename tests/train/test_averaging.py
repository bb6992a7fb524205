"""The moving average of the weights against its recurrence."""

import pytest
import torch

from pneumo_ray.model import ModelConfig, PneumoniaNet
from pneumo_ray.train.averaging import AveragedWeights


def moving(net: PneumoniaNet, step: int) -> None:
    """Training, as far as an average is concerned: every tensor is another one."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


@pytest.fixture
def net() -> PneumoniaNet:
    torch.manual_seed(0)
    return PneumoniaNet(ModelConfig("resnet18", "none"))


NAMES = ("classifier.weight", "prefix.bn1.weight", "prefix.bn1.running_var")


def test_the_average_follows_its_recurrence(net):
    """E_0 = w_0 and E_n+1 = d_n E_n + (1 - d_n) w_n+1 with d_n = min(decay, (1 + n) / (10 + n))."""
    expected = {name: net.state_dict()[name].double().clone() for name in NAMES}
    average = AveragedWeights(net, 0.3)
    for step in range(6):
        moving(net, step)
        average.update(step)
        kept = min(0.3, (1 + step) / (10 + step))
        for name in NAMES:
            expected[name] = kept * expected[name] + (1 - kept) * net.state_dict()[name].double()
    for name in NAMES:
        torch.testing.assert_close(average.net.state_dict()[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert average.net.state_dict()["prefix.bn1.num_batches_tracked"] == 6


def test_the_average_stays_apart_from_training(net):
    average = AveragedWeights(net, 0.9)
    before = {name: tensor.clone() for name, tensor in average.net.state_dict().items()}
    moving(net, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.net.state_dict().items())
    assert not average.net.training
    assert not any(parameter.requires_grad for parameter in average.net.parameters())


def test_an_average_that_continues_is_the_same_bitwise(net):
    whole = AveragedWeights(net, 0.9)
    for step in range(2):
        moving(net, step)
        whole.update(step)
    saved = {name: tensor.clone() for name, tensor in whole.net.state_dict().items()}
    continued = AveragedWeights(net, 0.9)
    continued.net.load_state_dict(saved)
    for step in range(2, 5):
        moving(net, step)
        whole.update(step)
        continued.update(step)
    found = continued.net.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.net.state_dict().items())
