"""The segmenter's network where it only finds lungs: the values of `LungNet` in eval mode, in fewer passes over memory.

Of a network this small, most of the time goes into what stands between the convolutions. Here ReLU is part of the
convolution, pooling is a maximum of neighbours, a coarse level is spread straight into the tensor that joins it to the
finer one, and pixels are gathered into cells, and spread again, as pairs.
"""

from collections.abc import Callable
from copy import deepcopy

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pneumo_ray.anatomy.network import LungNet

Layer = Callable[[Tensor], Tensor]


class InferenceNet:
    """A trained `LungNet` with its normalisation folded into its convolutions; of use in `torch.inference_mode` alone."""

    def __init__(self, network: LungNet, dtype: torch.dtype) -> None:
        """Take the weights of a network in eval mode, to compute in `dtype` on a CPU."""
        self.dtype = dtype
        self.down = [_layers(block, dtype) for block in network.down]
        self.up = [_layers(block, dtype) for block in network.up]
        self.narrow = [_prepared(layer, dtype) for layer in network.narrow]
        self.out = _prepared(network.out, dtype)

    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the logits of images, uint8 [B, S, S], in cells of 2 x 2 pixels, row by row: [B, S / 2, S / 2, 4]."""
        x = gathered(images, self.dtype)
        kept: list[Tensor] = []
        for level, layers in enumerate(self.down):
            x = _halved(x) if level else x
            for layer in layers:
                x = layer(x)
            kept.append(x)
        for level in reversed(range(len(self.up))):
            x = _joined(self.narrow[level](x), kept[level])
            for layer in self.up[level]:
                x = layer(x)
        return self.out(x).permute(0, 2, 3, 1)


def gathered(images: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    """Return `standardised` images, uint8 [B, S, S], in cells of 2 x 2 pixels: [B, 4, S / 2, S / 2], channels last."""
    count, half = len(images), images.shape[1] // 2
    mean, deviation = np.empty((2, count, 1, 1, 1), np.float32)
    for i, image in enumerate(images):
        (mean[i],), (deviation[i],) = cv2.meanStdDev(image)
    pairs = np.ascontiguousarray(images).view(np.uint16).reshape(count, half, 2, half)
    cells = torch.from_numpy(pairs.transpose(0, 1, 3, 2).copy().view(np.uint8)).float()
    cells -= torch.from_numpy(mean)
    cells *= torch.from_numpy(1 / np.sqrt(deviation**2 + 1))
    return cells.to(dtype).permute(0, 3, 1, 2)


def spread(cells: Tensor) -> Tensor:
    """Return values of cells of 2 x 2 pixels, [B, h, w, 4], as values of pixels, [B, 2 h, 2 w]."""
    count, rows, columns, _ = cells.shape
    return cells.view(count, rows, columns, 2, 2).transpose(2, 3).reshape(count, 2 * rows, 2 * columns)


def _layers(block: nn.Module, dtype: torch.dtype) -> list[Layer]:
    """Return the convolutions of a block, each with its normalisation and ReLU."""
    assert isinstance(block, nn.Sequential)
    layers = []
    for place in range(0, len(block), 3):
        convolution, normalisation = block[place], block[place + 1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(normalisation, nn.BatchNorm2d)
        layers.append(_with_relu(_prepared(fuse_conv_bn_eval(convolution, normalisation), dtype)))
    return layers


def _prepared(layer: nn.Module, dtype: torch.dtype) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    return deepcopy(layer).requires_grad_(False).to(dtype).to(memory_format=torch.channels_last)


def _with_relu(layer: nn.Conv2d) -> Layer:
    """Return a convolution and its ReLU as one operation, as `torch.compile` does, where PyTorch has oneDNN."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return lambda x: F.relu_(layer(x))
    fused, padding = torch.ops.mkldnn._convolution_pointwise, (1, 1)
    return lambda x: fused(x, layer.weight, layer.bias, padding, (1, 1), (1, 1), 1, "relu", [], "")


def _halved(x: Tensor) -> Tensor:
    """Return the maximum over 2 x 2 neighbours, [B, C, h / 2, w / 2], of [B, C, h, w]; channels last."""
    count, channels, rows, columns = x.shape
    pairs = x.permute(0, 2, 3, 1).view(count, rows // 2, 2, columns * channels)
    flat = torch.maximum(pairs[:, :, 0], pairs[:, :, 1]).view(count, rows // 2, columns // 2, 2, channels)
    return torch.maximum(flat[:, :, :, 0], flat[:, :, :, 1]).permute(0, 3, 1, 2)


def _joined(coarse: Tensor, fine: Tensor) -> Tensor:
    """Return each value of [B, C, h, w] four times, and behind it [B, C, 2 h, 2 w]: [B, 2 C, 2 h, 2 w], channels last."""
    count, channels, rows, columns = fine.shape
    both = torch.empty(count, rows, columns, 2 * channels, dtype=fine.dtype)
    halves = both.view(count, rows // 2, 2, columns // 2, 2, 2 * channels)
    halves[..., :channels] = coarse.permute(0, 2, 3, 1)[:, :, None, :, None]
    both[..., channels:] = fine.permute(0, 2, 3, 1)
    return both.permute(0, 3, 1, 2)
