"""The network that finds lungs: a small U-Net (Ronneberger, Fischer and Brox 2015, arXiv 1505.04597).

The input's pixels are first gathered into cells of 2 x 2 (Shi et al. 2016, arXiv 1609.05158) and the output's cells are
spread into pixels again, so that no convolution runs at full resolution, where a U-Net spends most of its time.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 48, 64, 64)
"""Channels of each level; level i has 2^(i + 1) times fewer rows and columns than the input."""


class LungNet(nn.Module):
    """Logits of "this pixel is lung".

    The image is standardised to a mean of 0 and a variance of 1, so contrast and brightness change nothing but rounding.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        """Build a network with random weights, one level for each of `widths`."""
        super().__init__()
        self.widths = tuple(widths)
        inputs = (4, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(*_block(before, width), *_block(width, width))
            for before, width in zip(inputs, widths, strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(below, width, 1) for width, below in itertools.pairwise(widths))
        self.up = nn.ModuleList(nn.Sequential(*_block(2 * width, width)) for width in widths[:-1])
        self.out = nn.Conv2d(widths[0], 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float [B, S, S], of grey images, float [B, S, S]; S is a multiple of 2 to the number of levels."""
        x = F.pixel_unshuffle(standardised(images)[:, None], 2).to(self.out.weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for level in reversed(range(len(self.up))):
            risen = F.interpolate(self.narrow[level](x), scale_factor=2.0, mode="nearest")
            x = self.up[level](torch.cat([risen, kept[level]], dim=1))
        return F.pixel_shuffle(self.out(x), 2)[:, 0]


def standardised(images: Tensor) -> Tensor:
    """Return images [B, S, S] less their mean, over their standard deviation; a uniform image becomes zeros."""
    variance, mean = torch.var_mean(images.float(), dim=(1, 2), keepdim=True, correction=0)
    return (images - mean) * torch.rsqrt(variance + 1.0)  # of a grey level: below the rounding of 8 bits


def _block(before: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
