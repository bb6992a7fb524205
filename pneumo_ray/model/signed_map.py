"""The map of which a logit is the sum: behind global average pooling and a linear layer it is part of the forward pass."""

import torch
from torch import Tensor


def signed_maps(maps: Tensor, weights: Tensor) -> Tensor:
    """Return `sum_k weights_tk A_k / (h w)`, the maps before ReLU, for T sets of class weights at once.

    All of them are one matrix product, in float32 also inside autocast; feature maps are read once, in the memory
    format in which they come. Over its pixels a signed map sums to the logit of its weights without the bias.

    Args:
        maps: feature maps A [B, K, h, w], any floating type.
        weights: [T, K], or [B, T, K] where each image has its own; on the same device.

    Returns:
        float32 [B, T, h, w], in logit units.
    """
    height, width = maps.shape[2:]
    with torch.autocast(maps.device.type, enabled=False):
        products = torch.matmul(weights.float() / (height * width), maps.float().flatten(2))
    return products.unflatten(2, (height, width))
