"""The exponential moving average of a network's weights (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407)."""

import copy

import torch
from torch import Tensor

from pneumo_ray.model import PneumoniaNet


class AveragedWeights:
    """A second network whose weights are the average of those that training passes through.

    Update n (from 0) keeps `min(decay, (1 + n) / (10 + n))` of the average, so that the first weights do not linger. The
    running statistics of BatchNorm are averaged with the weights that they belong to.

    Attributes:
        net: the averaged network, in eval mode.
    """

    def __init__(self, net: PneumoniaNet, decay: float) -> None:
        """Begin at the weights of `net`.

        Args:
            net: the network that is trained, without a wrapper.
            decay: share of the average that an update keeps, in the long run.
        """
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._decay = decay
        averaged, current = self.net.state_dict(), net.state_dict()
        self._pairs: list[tuple[Tensor, Tensor]] = [(averaged[name], tensor) for name, tensor in current.items()]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Take the weights of a step in.

        Args:
            number: updates before this one, over the whole run.
        """
        taken = 1 - min(self._decay, (1 + number) / (10 + number))
        for averaged, current in self._pairs:
            if averaged.is_floating_point():
                averaged.lerp_(current, taken)
            else:  # counts of batches
                averaged.copy_(current)
