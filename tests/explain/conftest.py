"""Networks for tests of maps, built once."""

import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from pneumo_ray.model import ModelConfig, PneumoniaNet


@functools.cache
def _calibrated(arch: str, site: str, dropout: float) -> PneumoniaNet:
    torch.manual_seed(0)
    with torch.device("meta"):  # torchvision's own initial weights take seconds
        net = PneumoniaNet(ModelConfig(arch, "none", dropout, site))  # type: ignore[arg-type]
    net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.constant_(module.bias, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.momentum = 1.0  # one pass in training mode, and the statistics fit
    nn.init.constant_(net.classifier.bias, 0.3)
    with torch.no_grad():
        pooled = net.feature_maps(torch.randn(4, 3, 64, 64)).mean((0, 2, 3))
        # Orthogonal to the mean features: maps then have evidence of both signs, and images fall into both classes.
        weight = 0.03 * torch.randn(len(pooled))
        net.classifier.weight.copy_(weight - (weight @ pooled) / (pooled @ pooled) * pooled)
    return net.eval()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on small tensors wait for each other, for seconds where the cores are busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def calibrated() -> Callable[..., PneumoniaNet]:
    """Make networks in eval mode whose maps have the size of a trained one's: (arch, site="head", dropout=0.5)."""

    def make(arch: str, site: str = "head", dropout: float = 0.5) -> PneumoniaNet:
        return copy.deepcopy(_calibrated(arch, site, dropout))

    return make
