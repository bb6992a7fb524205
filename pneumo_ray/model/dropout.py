"""Dropout whose masks can be given: of whole channels, and of the keys of attention.

A mask that is given is used in any mode: training gives one a slot, and Monte Carlo passes need no `train()`, so that
BatchNorm stays as it is. Without one, a layer in training mode draws a mask for each image from torch's generator, and a
layer in eval mode is the identity. Nothing here adds to the state dict.
"""

import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = -1e4
"""Added to the attention logit of a dropped key; far below any logit, and finite: a query that loses all of its keys has them
all again, instead of no number."""


class MaskedDropout(nn.Module):
    """What both kinds share: the rate, and the mask that may be given.

    Args:
        p: probability that a unit is dropped.
        num_units: units U of a mask.
    """

    def __init__(self, p: float, num_units: int) -> None:
        """Start without a mask."""
        super().__init__()
        self.p = p
        self.num_units = num_units
        self.mask: Tensor | None = None
        """[U], or [B, U] for a mask per image; 0 or 1 / (1 - p)."""

    def current_mask(self, x: Tensor, num_images: int) -> Tensor | None:
        """Return the mask in force, [U] or [B, U], or None where nothing is dropped.

        Args:
            x: gives type and device of a mask that is drawn.
            num_images: B.
        """
        if self.mask is not None or not self.training or self.p == 0:
            return self.mask
        return F.dropout(x.new_ones(num_images, self.num_units), self.p)

    def extra_repr(self) -> str:
        """Describe it in `print(net)`."""
        return f"p={self.p}, num_units={self.num_units}"


class ChannelDropout(MaskedDropout):
    """Dropout of whole channels: z = x * mask, mask in {0, 1 / (1 - p)} (arXiv 1411.4280).

    Args:
        p: probability that a channel is dropped.
        num_channels: channels C of its input.
        channels_last: whether its input is [B, h, w, C].
    """

    def __init__(self, p: float, num_channels: int, *, channels_last: bool = False) -> None:
        """Start without a mask."""
        super().__init__(p, num_channels)
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels of x, [B, C, h, w] (or [B, h, w, C]) or pooled [B, C]; same shape and dtype."""
        mask = self.current_mask(x, len(x))
        if mask is None:
            return x
        mask = mask.to(x.dtype)
        if x.ndim == 4:
            mask = mask[..., None, None, :] if self.channels_last else mask[..., None, None]
        return x * mask


class KeyDropout(MaskedDropout):
    """DropKey: keys are hidden from a query before the softmax, which shares its weight among the others (arXiv 2208.02646).

    Unlike dropout of attention weights it leaves them a distribution, so nothing is scaled. A mask has for each pair of
    query and key of a window whether the query sees the key; all heads and all windows of an image share it, so that what
    is hidden is hidden from the whole layer.

    Args:
        p: probability that a key is hidden from a query.
        num_keys: keys P of a window, and queries.
    """

    def __init__(self, p: float, num_keys: int) -> None:
        """Start without a mask."""
        super().__init__(p, num_keys * num_keys)
        self.num_keys = num_keys

    def forward(self, bias: Tensor, num_images: int) -> Tensor:
        """Return the bias of attention logits with `HIDDEN` added where a key is dropped.

        Args:
            bias: [1, G, P, P], for G pairs of window and head; last axis keys.
            num_images: B.

        Returns:
            [B, G, P, P], or the bias itself where nothing is dropped.
        """
        mask = self.current_mask(bias, num_images)
        if mask is None:
            return bias
        hidden = (mask == 0).unflatten(-1, (1, self.num_keys, self.num_keys))
        return bias + hidden.to(bias.dtype) * HIDDEN
