"""Six lung zones, and the mean of a map over each of them.

Zones are thirds of the height by halves of the width (Table I of arXiv 2507.18647). Names give the patient's side:
the right lung is on the left of the image.
"""

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.images import framing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the image; x1 and y1 are the first pixels outside."""

ZONES = ("right_upper", "left_upper", "right_middle", "left_middle", "right_lower", "left_lower")
"""Row by row from the top, each from the left of the image, which is the patient's right."""

ALIASES = {
    "Upper West": "right_upper",
    "Upper East": "left_upper",
    "Middle West": "right_middle",
    "Middle East": "left_middle",
    "Lower West": "right_lower",
    "Lower East": "left_lower",
}
"""The paper's names. It does not define East; it is read as on a map: the right side of the image, which is the
patient's left."""


def zone_operator(map_size: tuple[int, int], image_size: tuple[int, int], *, box: Box | None = None) -> "Tensor":
    """Return the matrix that turns a coarse map into the zone means of its upsampled image.

    Bilinear upsampling (`align_corners=False`) and averaging are both linear, so their composition is one matrix and no
    map has to be upsampled to be measured. That holds for the mean, not for the standard deviation: multiply each
    pass's map, then take the deviation over passes.

    Zones are whole pixels: of n rows, band i begins at row `i n / 3` rounded to the nearest; an odd width gives its
    middle column to the left half of the image.

    Args:
        map_size: rows and columns (h, w) of the coarse map.
        image_size: rows and columns of the image that it explains, in pixels.
        box: divide this part of the image (the lungs) instead of all of it.

    Returns:
        float32 [6, h * w] on the CPU, rows in the order of ZONES; each sums to 1. Multiply with maps flattened
        row-major.

    Raises:
        ValueError: if the image is smaller than the map, or the box leaves it or is under 3 rows by 2 columns.
    """
    x0, y0, x1, y1 = (0, 0, image_size[1], image_size[0]) if box is None else box
    rows, columns = upsampling(map_size, image_size)
    _check_box((x0, y0, x1, y1), image_size)
    if y1 - y0 < 3 or x1 - x0 < 2:
        raise ValueError(f"box {(x0, y0, x1, y1)} is under 3 rows by 2 columns, too small for six zones; enlarge it")
    thirds = [y0 + (2 * i * (y1 - y0) + 3) // 6 for i in range(4)]
    halves = [x0 + (i * (x1 - x0) + 1) // 2 for i in range(3)]
    bands = np.stack([rows[a:b].mean(0) for a, b in itertools.pairwise(thirds)])
    sides = np.stack([columns[a:b].mean(0) for a, b in itertools.pairwise(halves)])
    return _tensor(np.kron(bands, sides))


@lru_cache(maxsize=16)
def image_zones(map_size: tuple[int, int], image_size: tuple[int, int], device: "torch.device") -> "Tensor":
    """Return `zone_operator` of the whole image on a device; it is made once."""
    return zone_operator(map_size, image_size).to(device)


def outside_operator(map_size: tuple[int, int], image_size: tuple[int, int], box: Box) -> "Tensor":
    """Return the two functionals whose ratio is the share of activation outside a box.

    Args:
        map_size: rows and columns (h, w) of the coarse map.
        image_size: rows and columns of the image that it explains, in pixels.
        box: the part of the image that is inside (the lungs).

    Returns:
        float32 [2, h * w] on the CPU: the sum of the upsampled map outside the box, and over all of the image, both
        divided by the number of pixels of the image.

    Raises:
        ValueError: if the image is smaller than the map, or the box is empty or leaves it.
    """
    rows, columns = upsampling(map_size, image_size)
    _check_box(box, image_size)
    x0, y0, x1, y1 = box
    whole = np.kron(rows.sum(0), columns.sum(0))
    inside = np.kron(rows[y0:y1].sum(0), columns[x0:x1].sum(0))
    return _tensor(np.stack([np.maximum(whole - inside, 0), whole]) / (image_size[0] * image_size[1]))


def outside_share(maps: "Tensor", image_size: tuple[int, int], box: Box) -> "Tensor":
    """Return the share of activation that lies outside a box, from 0 to 1; NaN for a blank map, which has none.

    Args:
        maps: [..., h, w], not negative (after ReLU).
        image_size: rows and columns of the image that they explain, in pixels.
        box: the part of the image that is inside (the lungs).

    Returns:
        float32 [...].

    Raises:
        ValueError: if the image is smaller than the map, or the box is empty or leaves it.
    """
    height, width = maps.shape[-2:]
    operator = outside_operator((height, width), image_size, box).to(maps.device)
    outside, whole = (maps.float().flatten(-2) @ operator.mT).unbind(-1)
    return outside / whole


def upsampling(
    map_size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrices that bilinear upsampling (`align_corners=False`) is made of: `rows @ map @ columns.T`.

    Args:
        map_size: rows and columns (h, w) of the coarse map.
        image_size: rows and columns (H, W) of the image that it explains, in pixels.

    Returns:
        float64 [H, h] and [W, w]; each row sums to 1.

    Raises:
        ValueError: if the image is smaller than the map.
    """
    if image_size[0] < map_size[0] or image_size[1] < map_size[1]:
        raise ValueError(f"image_size {image_size} is smaller than map_size {map_size}; give both as rows, columns")
    rows, columns = map(framing.upsampling, map_size, image_size)
    return rows, columns


def _tensor(values: NDArray[np.float64]) -> "Tensor":
    import torch  # here, so that evaluation, which needs names and arithmetic only, does without

    return torch.from_numpy(values.astype(np.float32))


def _check_box(box: Box, image_size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= image_size[1] and 0 <= y0 < y1 <= image_size[0]):
        raise ValueError(
            f"box {box} is empty or leaves the image of {image_size[0]} rows and {image_size[1]} columns; "
            "give x0, y0, x1, y1 in its pixels"
        )
