"""Dropout inside the last stage: the passes repeat the network's tail, and leave the network as it was."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pneumo_ray.model.dropout import MaskedDropout
from pneumo_ray.model.network import PneumoniaNet
from pneumo_ray.model.signed_map import signed_maps

# What the tail holds at its peak, input included, in multiples of its input as float32: measured 4 (ResNeXt-50) to 10
# (EfficientNet-B0), plus what the convolution library takes for the weights.
_TAIL_PEAK = 10


def tail_passes(net: PneumoniaNet, x: Tensor, masks: Sequence[Tensor], max_bytes: int) -> Tensor:
    """Return the signed maps of all passes, float32 [B, 1 + T, h, w], the first without dropout.

    Args:
        net: a network with dropout in its tail.
        x: float32 [B, 3, H, W], ImageNet-normalised, on the network's device.
        masks: scaled masks [T, U] for each of `net.tail_dropouts()`, on that device.
        max_bytes: rough bound on the memory of the passes that run at once; at least one does.
    """
    # The pass without dropout is one more mask: all ones.
    masks = [torch.cat([torch.ones_like(mask[:1]), mask]) for mask in masks]
    layers, batch, count = net.tail_dropouts(), len(x), len(masks[0])
    with eval_mode(net), _restored_masks(layers):
        features = net.prefix(x)
        at_once = max(1, max_bytes // (_TAIL_PEAK * 4 * features.numel()))
        chunks = []
        for start in range(0, count, at_once):
            stop = min(start + at_once, count)
            for layer, mask in zip(layers, masks, strict=True):
                layer.mask = mask[start:stop].repeat_interleave(batch, 0)
            # cat keeps channels_last, repeat and expand do not.
            maps = net.tail(torch.cat([features] * (stop - start)))
            signed = signed_maps(maps, net.classifier.weight)
            chunks.append(signed.unflatten(0, (stop - start, batch)))
    return torch.cat(chunks)[:, :, 0].transpose(0, 1)


@contextlib.contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put every module in eval mode and restore the mode of each module afterwards; modes may be mixed."""
    training = [module for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _restored_masks(layers: list[MaskedDropout]) -> Iterator[None]:
    """Restore the masks of the layers, also after an exception."""
    found = [layer.mask for layer in layers]
    try:
        yield
    finally:
        for layer, mask in zip(layers, found, strict=True):
            layer.mask = mask
