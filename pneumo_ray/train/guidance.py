"""Right for the right reasons, without a second backward pass: a loss on where the evidence lies.

Ross, Hughes and Doshi-Velez 2017 (arXiv 1703.03717) punish input gradients outside the region of interest, which needs
the gradient of a gradient. Behind global average pooling the signed map is part of the forward pass, so its share outside
the lungs is differentiable as it stands.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EPSILON = 1e-3
"""Logit units; positive evidence that sums to less is counted as if it summed to this, so that its gradient is bounded."""


class Lungs(NamedTuple):
    """The lungs of a batch in the frame of its maps."""

    inside: Tensor
    """float32 [B, h, w]: the share of each cell that is lung."""
    known: Tensor
    """float32 [B]: 1 where there is a plausible mask, else 0."""


def lungs_of(batch: dict[str, np.ndarray], real: np.ndarray, device: torch.device) -> Lungs | None:
    """Return the lungs of the real images of a batch of `BatchSource`, or None if it carries none."""
    if "lungs" not in batch:
        return None
    inside = torch.from_numpy(batch["lungs"][real]).to(device, non_blocking=True).float() / 255
    return Lungs(inside, torch.from_numpy(batch["has_lungs"][real]).to(device, non_blocking=True).float())


def outside_share(signed: Tensor, inside: Tensor) -> Tensor:
    """Return the share of the positive evidence that lies outside: `sum relu(S) (1 - m) / (sum relu(S) + EPSILON)`.

    Args:
        signed: signed maps S in logit units, float32 [B, h, w].
        inside: m, the share of each cell that is inside, float32 [B, h, w].

    Returns:
        float32 [B], from 0 to below 1.
    """
    with torch.autocast(signed.device.type, enabled=False):
        positive = signed.float().relu()
        return (positive * (1 - inside)).sum((1, 2)) / (positive.sum((1, 2)) + EPSILON)


def known_sum(share: Tensor, lungs: Lungs) -> Tensor:
    """Return the sum of the shares [B] of those images whose lungs are known; float32 []."""
    return (share * lungs.known).sum()
