"""Zones of the lungs: the mean of a map over thirds of each lung, and the share of its evidence that lies in the lungs.

The mean of an upsampled map over any mask is linear in the coarse map, so it is one matrix an image, as for the zones of
the whole image. Masks are those of the whole image; a window says which part of it the map explains.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pneumo_ray.anatomy.frames import WHOLE, cell_means
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
    for row, zone in enumerate(zones):
        if zone is not None:
            sums = _sums(cell_means(zone, image_size, window), map_size)
            if float(total := sums.sum()) > 0:
                operator[row] = (sums / total).float()
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
    inside = _sums(cell_means(mask, image_size, window), map_size)
    whole = _sums(np.ones(image_size, np.float32), map_size)
    return (torch.stack([inside, whole]) / (image_size[0] * image_size[1])).float()


def peak_in_lungs(cam: NDArray[np.float32], mask: Mask, window: Box = WHOLE) -> bool | None:
    """Whether the centre of a map's highest cell lies in the lungs; None for a map without a positive cell.

    Args:
        cam: float [h, w].
        mask: both lungs in the whole image, bool [H0, W0].
        window: the part of the image that the map explains; outside of the image there are no lungs.
    """
    if not cam.max() > 0:
        return None
    row, column = np.unravel_index(int(cam.argmax()), cam.shape)
    x = window[0] + (column + 0.5) / cam.shape[1] * (window[2] - window[0])
    y = window[1] + (row + 0.5) / cam.shape[0] * (window[3] - window[1])
    if not (0 <= x < 1 and 0 <= y < 1):
        return False
    return bool(mask[int(y * mask.shape[0]), int(x * mask.shape[1])])


def _sums(weights: Weights, map_size: tuple[int, int]) -> Tensor:
    """Return the functional, float64 [h * w], that sums an upsampled map with one weight a pixel, [H, W]."""
    rows, columns = upsampling(map_size, (weights.shape[0], weights.shape[1]))
    return (rows.mT @ torch.from_numpy(weights).double() @ columns).flatten()
