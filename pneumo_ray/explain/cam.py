"""Grad-CAM by construction (Selvaraju et al. 2017, arXiv 1610.02391; Zhou et al. 2016, arXiv 1512.04150).

Behind global average pooling and a linear layer the gradient of the logit is the same at every pixel of map k:
`w_k / (h w)`. The weights of Grad-CAM are known without any image, so no backward pass and no hook is needed.
"""

from typing import get_args

import torch
from torch import Tensor

from pneumo_ray.errors import ConfigError
from pneumo_ray.explain.target import Target
from pneumo_ray.model.network import PneumoniaNet
from pneumo_ray.model.signed_map import signed_maps


def target_sign(logit: Tensor, target: Target, threshold_logit: float = 0.0) -> Tensor:
    """Return +1 for the images whose pneumonia is explained and -1 for those whose normality is.

    Args:
        logit: [B], of the pass without dropout.
        target: `predicted` decides for each image by `logit >= threshold_logit`.
        threshold_logit: the operating point as a raw logit.

    Returns:
        [B], of logit's type and device.

    Raises:
        ConfigError: if the target has another name.
    """
    if target not in get_args(Target):
        raise ConfigError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}")
    if target == "predicted":
        return (logit >= threshold_logit).to(logit.dtype) * 2 - 1
    return torch.ones_like(logit) if target == "pneumonia" else -torch.ones_like(logit)


@torch.inference_mode()
def grad_cam(net: PneumoniaNet, maps: Tensor, target: Target = "predicted", threshold_logit: float = 0.0) -> Tensor:
    """Return the plain Grad-CAM `ReLU(+-sum_k w_k A_k / (h w))`, without dropout.

    Args:
        net: the network that made the maps.
        maps: its feature maps A [B, K, h, w], any floating type.
        target: the class to explain.
        threshold_logit: the operating point as a raw logit, for `predicted`.

    Returns:
        float32 [B, h, w], in logit units.

    Raises:
        ConfigError: if the target has another name.

    Example:
        >>> from pneumo_ray.model import ModelConfig, PneumoniaNet
        >>> net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none")).eval()
        >>> grad_cam(net, net.feature_maps(torch.randn(2, 3, 64, 64))).shape
        torch.Size([2, 2, 2])
    """
    signed = signed_maps(maps, net.classifier.weight)[:, 0]
    logit = signed.sum((1, 2)) + net.classifier.bias.float()
    return (signed * target_sign(logit, target, threshold_logit)[:, None, None]).relu()
