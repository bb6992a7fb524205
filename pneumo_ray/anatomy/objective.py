"""What the segmenter is trained for, and what it is measured by: overlap with the annotators' masks."""

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Masks = NDArray[np.bool_]

_SMOOTHING = 32.0
"""Pixels added to both sides of the soft Dice: an empty mask has no overlap to be judged by, only pixels too many."""


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean of binary cross-entropy plus that of one less the soft Dice (Milletari 2016, arXiv 1606.04797).

    Args:
        logits: float32 [B, S, S].
        masks: float32 [B, S, S], share of each pixel that is lung.

    Returns:
        A scalar.
    """
    found = logits.sigmoid()
    shared = 2 * (found * masks).sum((1, 2)) + _SMOOTHING
    dice = shared / (found.sum((1, 2)) + masks.sum((1, 2)) + _SMOOTHING)
    return F.binary_cross_entropy_with_logits(logits, masks) + (1 - dice).mean()


def dice(found: Masks, true: Masks) -> NDArray[np.float64]:
    """Return twice the shared area over the sum of the areas, float64 [N]; 1 where both masks are empty.

    Args:
        found: bool [N, H, W].
        true: bool [N, H, W], or [H, W] for all.
    """
    shared = (found & true).sum(axis=(-2, -1))
    both = found.sum(axis=(-2, -1)) + true.sum(axis=(-2, -1))
    return np.where(both > 0, 2 * shared / np.maximum(both, 1), 1.0)
