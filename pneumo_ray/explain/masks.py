"""The masks of Monte Carlo dropout: how many passes, and which channels each drops.

All images share the masks, so the Monte Carlo error of a mean over images does not shrink with their number. It is made
small and measurable. The passes are a few groups, each a Latin hypercube sample of the masks (McKay, Beckman and Conover
1979): over a group every channel is kept in the same number of passes, so the part of the error that is additive in the
channels, all of it before ReLU, is removed (Stein 1987), and what is left is never more than n / (n - 1) times that of
independent masks (Owen 1997). Every pass by itself is an ordinary dropout mask, so means stay unbiased. Groups are
independent, so the spread of their means is the error of the whole.
"""

import torch
from torch import Tensor

from pneumo_ray.model.config import DropoutSite

DEFAULT_PASSES: dict[DropoutSite, int] = {"head": 200, "tail": 20, "keys": 20}
"""Monte Carlo passes where none are asked for: at the head they are rows of one matrix product, elsewhere each repeats the
network's tail. arXiv 2507.18647 has 20."""

MAX_GROUPS = 10
"""Independent groups of passes; fewer where there are fewer passes."""


def group_sizes(passes: int) -> list[int]:
    """Return the number of passes of each group, in order; they differ by one at most."""
    count = min(MAX_GROUPS, passes)
    return [passes * (number + 1) // count - passes * number // count for number in range(count)]


def draw_masks(passes: int, num_channels: int, rate: float, generator: torch.Generator) -> Tensor:
    """Return scaled masks {0, 1 / (1 - rate)}, float32 [passes, num_channels] on the CPU, group after group.

    Where the expected number of passes that keep a channel is not whole, it is rounded up or down at random, so that the
    rate of every pass is exact.

    Args:
        passes: Monte Carlo passes T.
        num_channels: channels C.
        rate: probability that a channel is dropped.
        generator: of the random numbers.
    """
    groups = []
    for size in group_sizes(passes):
        kept = (size * (1 - rate) + torch.rand(num_channels, generator=generator, dtype=torch.float64)).floor()
        rank = torch.rand(size, num_channels, generator=generator).argsort(0).argsort(0)
        groups.append(rank < kept)
    return torch.cat(groups).float() / (1 - rate)
