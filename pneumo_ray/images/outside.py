"""What lies outside the lungs is blurred, blackened or another image's, so that a class cannot be learned from it.

DeGrave, Janizek and Lee 2021 (Nature Machine Intelligence 3, 610) show that networks read labels, borders and shoulders.
It is done to the image before it is augmented, so that one warp carries both parts.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.rng import UInt64s, uniforms

Grey = NDArray[np.uint8]

ROOM = 0.03
"""How far the lungs reach beyond their mask, as a fraction of the mask's side: their walls stay."""
BLUR = 0.06
"""Standard deviation of the blur, as a fraction of the image's side."""


class OutsideDraws(NamedTuple):
    """Which of n images it happens to, and who lends an outside."""

    happens: NDArray[np.bool_]
    partner: NDArray[np.int64]
    """Position in the global batch of the image whose outside would be taken, never the image's own where there are two."""


def draw_outside(
    config: AugmentConfig, seed: int, slots: UInt64s, positions: NDArray[np.int64], batch: int
) -> OutsideDraws:
    """Draw what happens outside the lungs of some images: it depends on their slots and on no worker.

    Args:
        config: what and how often.
        seed: the run's seed.
        slots: uint64 [n], the slots of the epoch plan.
        positions: int64 [n], where the images stand in their global batch.
        batch: images of the global batch.

    Returns:
        The draws of n images.
    """
    u = uniforms(seed, "outside", slots, 2)
    happens = (u[:, 0] < config.outside_probability) & (config.outside != "none")
    others = 1 + np.floor(u[:, 1] * (batch - 1)).astype(np.int64)
    return OutsideDraws(happens, (positions + others) % batch)


def dilated(mask: Grey) -> Grey:
    """Return a mask of the lungs, uint8 [M, M] of 0 and 255, with `ROOM` around it."""
    radius = max(1, round(ROOM * len(mask)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(mask, kernel), np.uint8)


def blurred(image: Grey) -> Grey:
    """Return an image, uint8 [R, R], of which only the coarsest light and dark is left."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR * len(image), borderType=cv2.BORDER_REPLICATE), np.uint8)


def with_outside(image: Grey, inside: Grey, outside: Grey) -> Grey:
    """Return one image inside the lungs and another one outside.

    Args:
        image: uint8 [R, R].
        inside: uint8 [R, R], the share of each pixel that is lung, times 255.
        outside: uint8 [R, R].

    Returns:
        uint8 [R, R], the mean of both weighted by these shares, rounded.
    """
    share = inside.astype(np.uint32)
    return ((share * image + (255 - share) * outside + 127) // 255).astype(np.uint8)
