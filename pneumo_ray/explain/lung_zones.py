"""Zones of the lungs: the mean of a map over thirds of each lung, and the share of its evidence that lies in the lungs.

The mean of an upsampled map over any mask is linear in the coarse map, so it is one matrix per image, as for the zones of
the whole image. Masks are those of the whole image; a window says which part of it the map explains.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pneumo_ray.anatomy.frames import WHOLE, averages
from pneumo_ray.anatomy.lungs import Box, Mask
from pneumo_ray.explain.zones import upsampling

Weights = NDArray[np.float32]


def lung_zone_operator(
    zones: Sequence[Mask | None], map_size: tuple[int, int], image_size: tuple[int, int], window: Box = WHOLE
) -> Tensor:
    """Return the matrix that turns a coarse map into the means of its upsampled image over zones.

    Args:
        zones: n masks of the whole image, bool [H0, W0], such as `zone_masks` returns; None for one that is missing.
        map_size: rows and columns (h, w) of the coarse map.
        image_size: rows and columns of the network's input, in pixels.
        window: the part of the image that is the network's input.

    Returns:
        float32 [n, h * w] on the CPU; each row sums to 1, or is NaN where the zone is missing or outside of the window.
        Multiply with maps flattened row-major.

    Raises:
        ValueError: if the input is smaller than the map, or the window has no area.
    """
    operator = torch.full((len(zones), map_size[0] * map_size[1]), torch.nan)
    there = [row for row, zone in enumerate(zones) if zone is not None]
    if there:
        sums = _sums([zone for zone in zones if zone is not None], map_size, image_size, window)
        totals = sums.sum(1, keepdim=True)
        operator[there] = torch.where(totals > 0, sums / totals, torch.nan)
    return operator


def lung_share_operator(
    mask: Mask, map_size: tuple[int, int], image_size: tuple[int, int], window: Box = WHOLE
) -> Tensor:
    """Return the two functionals whose ratio is the share of a map's evidence that lies in the lungs.

    Args:
        mask: both lungs in the whole image, bool [H0, W0].
        map_size: rows and columns (h, w) of the coarse map, which must not be negative (after ReLU).
        image_size: rows and columns of the network's input, in pixels.
        window: the part of the image that is the network's input.

    Returns:
        float32 [2, h * w] on the CPU: the sum of the upsampled map in the lungs, and over all of the input, both divided
        by the number of pixels of the input. Of a flat map their ratio is the lungs' share of the area.

    Raises:
        ValueError: if the input is smaller than the map, or the window has no area.
    """
    inside = _sums([mask], map_size, image_size, window)
    whole = _sums([np.ones((1, 1), bool)], map_size, image_size, WHOLE)
    return torch.cat([inside, whole]) / (image_size[0] * image_size[1])


def peak_in_lungs(cam: NDArray[np.float32], mask: Mask, window: Box = WHOLE) -> bool | None:
    """Whether the centre of a map's highest cell lies in the lungs; None for a map without a positive cell.

    Args:
        cam: float [h, w].
        mask: both lungs in the whole image, bool [H0, W0].
        window: the part of the image that the map explains; outside of the image there are no lungs.
    """
    if not cam.max() > 0:
        return None
    return bool(cells_in_lungs(mask, (cam.shape[0], cam.shape[1]), window).ravel()[int(cam.argmax())])


def cells_in_lungs(mask: Mask, map_size: tuple[int, int], window: Box = WHOLE) -> Mask:
    """Return of each cell of a map whether its centre lies in the lungs, bool [h, w].

    Args:
        mask: both lungs in the whole image, bool [H0, W0].
        map_size: rows and columns (h, w) of the map.
        window: the part of the image that the map explains; outside of the image there are no lungs.
    """
    height, width = map_size
    y = window[1] + (np.arange(height) + 0.5) / height * (window[3] - window[1])
    x = window[0] + (np.arange(width) + 0.5) / width * (window[2] - window[0])
    inside = ((y >= 0) & (y < 1))[:, None] & ((x >= 0) & (x < 1))
    rows, columns = (
        np.clip((centres * side).astype(int), 0, side - 1) for centres, side in zip((y, x), mask.shape, strict=True)
    )
    return np.asarray(inside & mask[np.ix_(rows, columns)])


def _sums(masks: Sequence[Mask], map_size: tuple[int, int], image_size: tuple[int, int], window: Box) -> Tensor:
    """Return the functionals, float32 [n, h * w], that sum an upsampled map over masks in the window, in pixels of the input.

    The input's share of lung is `R mask C'` and the upsampled map `U map V'`, so a functional is `(U' R) mask (C' V)`: no
    image of the input's size is made.
    """
    rows, columns = _sides(map_size, image_size, window, (masks[0].shape[0], masks[0].shape[1]))
    return torch.from_numpy(np.stack([(rows @ mask.astype(np.float32) @ columns).ravel() for mask in masks]))


@lru_cache(maxsize=8)  # zones and share of one image have the same
def _sides(
    map_size: tuple[int, int], image_size: tuple[int, int], window: Box, mask_size: tuple[int, int]
) -> tuple[Weights, Weights]:
    """Return `U' R`, [h, H0], and `C' V`, [W0, w], of `_sums`."""
    up_rows, up_columns = upsampling(map_size, image_size)
    rows = averages(window[1], window[3], image_size[0], mask_size[0])
    columns = averages(window[0], window[2], image_size[1], mask_size[1])
    return (up_rows.T @ rows).astype(np.float32), (columns.T @ up_columns).astype(np.float32)
