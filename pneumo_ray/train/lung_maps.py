"""The lungs of a batch, warped with its images and averaged to the cells of the network's maps; and what replaces the rest."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.data.dataset import base_of, input_of
from pneumo_ray.data.lungs import lung_masks, windows
from pneumo_ray.images.augment import AugmentDraws, base_size, warp_batch
from pneumo_ray.images.augment_config import Outside
from pneumo_ray.images.fit import MARGIN, Fit
from pneumo_ray.images.framing import Box
from pneumo_ray.images.outside import blurred, dilated, with_outside
from pneumo_ray.train.config import GuideTarget

Grey = NDArray[np.uint8]
Frame = Callable[[Grey, Box | None, int], Grey]


@dataclass(frozen=True)
class LungMaps:
    """Where evidence is wanted, in the frame of the network's maps."""

    map_size: tuple[int, int]
    """Rows and columns (h, w) of the network's maps."""
    image_size: int
    """Side of the network's input, in pixels."""
    fit: Fit = "squash"
    margin: float = MARGIN
    target: GuideTarget = "outside-lungs"

    def of_training(self, rows: pa.Table, draws: AugmentDraws, batch: int) -> dict[str, np.ndarray]:
        """Return the columns of a training ticket.

        Args:
            rows: n manifest rows.
            draws: of their n augmentations, whose geometry the masks undergo as well.
            batch: places b of the ticket, at least n.

        Returns:
            `lungs` uint8 [b, h, w], the share of each cell that is inside, times 255; `has_lungs` bool [b].
        """
        masks = self._masks(rows)
        bases = framed_masks(base_of, masks, rows, self.image_size, self.fit, self.margin)
        return self._columns(masks, warp_batch(bases, draws, self.image_size), batch)

    def of_evaluation(self, rows: pa.Table, batch: int) -> dict[str, np.ndarray]:
        """Return the same columns of a validation ticket, whose images are not augmented."""
        masks = self._masks(rows)
        return self._columns(masks, framed_masks(input_of, masks, rows, self.image_size, self.fit, self.margin), batch)

    def empty(self, batch: int) -> dict[str, np.ndarray]:
        """Return the same columns of a ticket whose images have no lungs, and `num_lungs`."""
        lungs, has_lungs = np.zeros((batch, *self.map_size), np.uint8), np.zeros(batch, bool)
        return {"lungs": lungs, "has_lungs": has_lungs, "num_lungs": np.array(0)}

    def _masks(self, rows: pa.Table) -> list[Grey | None]:
        masks = lung_masks(rows)
        if self.target == "outside-box":
            return [None if mask is None else _boxed(mask) for mask in masks]
        return masks

    def _columns(self, masks: list[Grey | None], inside: Grey, batch: int) -> dict[str, np.ndarray]:
        made = self.empty(batch)
        height, width = self.map_size
        for place, (mask, image) in enumerate(zip(masks, inside, strict=True)):
            if mask is not None:
                made["lungs"][place] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
                made["has_lungs"][place] = True
        return {name: made[name] for name in ("lungs", "has_lungs")}


def framed_masks(
    frame: Frame, masks: list[Grey | None], rows: pa.Table, image_size: int, fit: Fit, margin: float
) -> Grey:
    """Return masks in the frame of their images' bases or inputs.

    Args:
        frame: `base_of` or `input_of`.
        masks: of n images; None is empty.
        rows: their manifest rows.
        image_size: side S of the network's input, in pixels.
        fit: how the images are fitted.
        margin: see `windows`.

    Returns:
        uint8 [n, side, side]: the share of each pixel that is lung, times 255.
    """
    side = base_size(image_size) if frame is base_of else image_size
    out = np.zeros((len(rows), side, side), np.uint8)
    for place, (mask, window) in enumerate(zip(masks, windows(rows, fit, margin), strict=True)):
        if mask is not None:
            out[place] = frame(mask, window, image_size)
    return out


def change_outside(
    bases: Grey, rows: pa.Table, partners: Grey | None, kind: Outside, image_size: int, fit: Fit, margin: float
) -> Grey:
    """Return bases of which only the lungs and a little around them are left, and the rest is replaced.

    Args:
        bases: uint8 [n, R, R].
        rows: their manifest rows, each with plausible lungs.
        partners: uint8 [n, R, R], what else is put there for `swap`.
        kind: blur, black or swap.
        image_size: side of the network's input, in pixels.
        fit: how the images are fitted.
        margin: see `windows`.

    Returns:
        uint8 [n, R, R].
    """
    masks = [None if mask is None else dilated(mask) for mask in lung_masks(rows)]
    inside = framed_masks(base_of, masks, rows, image_size, fit, margin)
    if kind == "blur":
        outside = np.stack([blurred(base) for base in bases])
    else:
        outside = np.zeros_like(bases) if partners is None else partners
    return np.stack([with_outside(*parts) for parts in zip(bases, inside, outside, strict=True)])


def _boxed(mask: Grey) -> Grey:
    """Return a mask of the box around a mask, uint8 [M, M]."""
    x, y, width, height = cv2.boundingRect(mask)
    box = np.zeros_like(mask)
    box[y : y + height, x : x + width] = 255
    return box
