"""Dropout in training, keyed by (seed, slot) like every other draw, so that no number of workers changes a mask.

torch's own dropout draws from a generator of the process: which mask an image gets would depend on its rank. Here the
masks of a step are drawn on the CPU, one row per slot, and handed to the layers before the forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pneumo_ray.images.rng import UInt64s, random_bits
from pneumo_ray.model import PneumoniaNet


def slot_masks(seed: int, layer: int, slots: UInt64s, num_units: int, rate: float) -> Tensor:
    """Return the masks of some slots at one layer.

    Args:
        seed: the run's seed.
        layer: number of the layer among those with dropout; layers are independent.
        slots: uint64 [B].
        num_units: units U of the layer's mask: channels, or pairs of query and key.
        rate: probability that a unit is dropped, to 2^-32.

    Returns:
        float32 [B, U] of 0 and 1 / (1 - rate), on the CPU; the row of a slot is the same in any batch.
    """
    words = random_bits(seed, f"dropout {layer}", slots, -(-num_units // 2))
    halves = words.astype("<u8", copy=False).view("<u4")[:, :num_units]  # two draws from each word
    kept = torch.from_numpy(halves >= round(rate * 2**32))
    return kept.float().div_(1 - rate)


@contextmanager
def slot_dropout(net: PneumoniaNet, seed: int) -> Iterator[Callable[[UInt64s], None]]:
    """While the block runs, yield what gives the dropout layers the masks of a batch's slots; then they have none again.

    Args:
        net: the network itself, without a wrapper.
        seed: the run's seed.
    """
    layers = [layer for layer in net.dropouts() if layer.p > 0]

    def draw(slots: UInt64s) -> None:
        device = net.classifier.weight.device
        for number, layer in enumerate(layers):
            layer.mask = slot_masks(seed, number, slots, layer.num_units, layer.p).to(device, non_blocking=True)

    try:
        yield draw
    finally:
        for layer in layers:
            layer.mask = None
