"""A mask of the whole image in the frame of what the network sees, by exact averages over areas.

A window is the part of the image that the network sees, as a `Box`; it may reach beyond the image, where there are no
lungs. Averaging is separable, so it is one small matrix for the rows and one for the columns, for a stack of masks too.
"""

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.images.framing import WHOLE, Box

Floats = NDArray[np.float32]


def cell_means(masks: NDArray[np.bool_] | Floats, size: tuple[int, int], window: Box = WHOLE) -> Floats:
    """Return the share of each cell of a window that is lung: for guidance, with the cells of a map; for zones, with pixels.

    Args:
        masks: bool or float [..., H, W] over whole images.
        size: rows and columns (h, w) of the result.
        window: what the result covers.

    Returns:
        float32 [..., h, w], each the mean of the mask over the cell's area.

    Raises:
        ValueError: if the window has no area.
    """
    x0, y0, x1, y1 = window
    rows = averages(y0, y1, size[0], masks.shape[-2])
    columns = averages(x0, x1, size[1], masks.shape[-1])
    means: Floats = rows @ masks.astype(np.float32) @ columns.T
    return means


def averages(low: float, high: float, cells: int, pixels: int) -> Floats:
    """Return the matrix, float32 [cells, pixels], of the share of each cell of an interval that each pixel of 0..1 covers.

    Raises:
        ValueError: if the interval is empty.
    """
    if not high > low:
        raise ValueError(f"a window from {low} to {high} has no area")
    edges = np.linspace(low, high, cells + 1)
    borders = np.arange(pixels + 1) / pixels
    shared = np.minimum(edges[1:, None], borders[None, 1:]) - np.maximum(edges[:-1, None], borders[None, :-1])
    return (np.maximum(shared, 0) * (cells / (high - low))).astype(np.float32)
