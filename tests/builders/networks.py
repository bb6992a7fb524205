"""Networks with the maps of a trained one: fresh deep networks give 1e-14 or 1e+9 in eval mode."""

import copy
import functools

import torch
from torch import Tensor, nn
from torchvision.models.maxvit import _get_relative_position_index

from pneumo_ray.model import ModelConfig, PneumoniaNet
from pneumo_ray.model.trunks import find_trunk


def smallest_images(arch: str, num_images: int = 2, seed: int = 1) -> Tensor:
    """Images of 64 pixels, or of the fewest that the trunk takes and 32 divides."""
    size = 96 if find_trunk(arch).min_size > 64 else 64
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(seed))


@functools.cache
def _weights(arch: str) -> dict[str, Tensor]:
    """The state of a network whose statistics fit its input; torchvision's own initial weights take seconds."""
    torch.manual_seed(0)
    with torch.device("meta"):
        net = PneumoniaNet(ModelConfig(arch, "none", 0.0))
    net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.constant_(module.bias, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.momentum = 1.0  # one pass in training mode, and the statistics fit
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for name, tensor in net.state_dict().items():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(tensor)
        elif name.endswith("relative_position_index"):
            tensor.copy_(_get_relative_position_index(7, 7).view(tensor.shape))
        elif name.endswith("layer_scale"):
            nn.init.constant_(tensor, 0.5)
    nn.init.constant_(net.classifier.bias, 0.3)
    with torch.no_grad():
        pooled = net.feature_maps(smallest_images(arch, 4)).mean((0, 2, 3))
        # Orthogonal to the mean features: maps then have evidence of both signs, and images fall into both classes.
        weight = 0.03 * torch.randn(len(pooled))
        net.classifier.weight.copy_(weight - (weight @ pooled) / (pooled @ pooled) * pooled)
    return net.state_dict()


@functools.cache
def _ready(config: ModelConfig) -> PneumoniaNet:
    with torch.device("meta"):
        net = PneumoniaNet(config)
    net.load_state_dict(_weights(config.arch), assign=True)
    return net.eval()


def ready(arch: str, site: str = "head", dropout: float = 0.5, *, own: bool = False, **options: object) -> PneumoniaNet:
    """A network in eval mode, which all tests share unless it is to be changed: `own` gives a copy."""
    net = _ready(ModelConfig(arch, "none", dropout, site, **options))  # type: ignore[arg-type]
    return copy.deepcopy(net) if own else net
