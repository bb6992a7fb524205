"""Folding BatchNorm into convolutions changes what is computed, not the result."""

import pytest
import torch
from torch import nn

from pneumo_ray.model import ARCHITECTURES, ModelConfig, PneumoniaNet
from pneumo_ray.model.folded import fold_batch_norm

AFTER_A_CONVOLUTION = {"densenet121": 62}
"""BatchNorms that stay, because an activation or a concatenation lies between them and the convolution before."""


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_folded_trunk_gives_the_same_maps(arch):
    """In float64 rounding is 1e-16 an operation, so what is left would be a mistake."""
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch=arch, weights="none")).double().eval().requires_grad_(False)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.1)
    x = torch.randn(2, 3, 80, 80, dtype=torch.float64)
    maps, logit = net.feature_maps(x), net(x)
    fold_batch_norm(net)
    torch.testing.assert_close(net.feature_maps(x), maps, rtol=1e-9, atol=1e-9 * float(maps.abs().max()))
    torch.testing.assert_close(net(x), logit, rtol=1e-9, atol=1e-9)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert left == AFTER_A_CONVOLUTION.get(arch, 0) <= len(norms)
