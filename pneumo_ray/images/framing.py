"""Which part of an image the network is given: all of it squashed to a square, all of it in its true shape, or the lungs.

An image reaches this module as a square: decoded and resized without regard to its shape, which is what the cache holds.
A window of that square, in fractions of its sides, becomes the network's input. Where the window is square in the
image's true pixels the shape is true again; what of it lies outside the image is black.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumo_ray.images.fit import MARGIN, Fit

Grey = NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the image's width and height; may leave the image (below 0, above 1)."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Shape:
    """Width and height of the original image, of which only the ratio counts."""

    width: float
    height: float


def window_of(fit: Fit, shape: Shape, lung_box: Box | None, margin: float = MARGIN) -> Box:
    """Return the part of the image that the network's input shows.

    Args:
        fit: how the image is fitted; without a box `lungs` is `pad`, and `lungs-squash` shows the whole image.
        shape: of the original image.
        lung_box: of both lungs.
        margin: around the lungs, as a share of their box's longer true side.

    Returns:
        The window; for `pad` and `lungs` it is square in true pixels.
    """
    if fit == "squash":
        return WHOLE
    if fit == "lungs-squash":
        return WHOLE if lung_box is None else enlarged(lung_box, 1 + 2 * margin)
    x0, y0, x1, y1 = WHOLE if fit == "pad" or lung_box is None else lung_box
    room = 0.0 if fit == "pad" or lung_box is None else margin
    side = (1 + 2 * room) * max((x1 - x0) * shape.width, (y1 - y0) * shape.height)
    half_width, half_height = side / shape.width / 2, side / shape.height / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def enlarged(window: Box, factor: float) -> Box:
    """Return a window that is `factor` times as wide and high about the same centre."""
    x0, y0, x1, y1 = window
    x, y, half_width, half_height = (x0 + x1) / 2, (y0 + y1) / 2, factor * (x1 - x0) / 2, factor * (y1 - y0) / 2
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def framed(square: Grey, window: Box, size: int) -> Grey:
    """Return a window of an image as a square; what lies outside the image is 0.

    Each axis is averaged over areas where it shrinks and interpolated linearly where it grows, so there is no aliasing. The
    window is rounded to pixels of `square`, so that `square` itself comes back for the whole image at its own size.

    Args:
        square: uint8 [C, C], the image or a mask of it (0 and 255), squashed to a square.
        window: the part to show, as fractions of the image.
        size: side of the result, in pixels.

    Returns:
        uint8 [size, size].

    Raises:
        ValueError: if the window is empty or shows nothing of the image.
    """
    side = len(square)
    x0, y0, x1, y1 = (round(edge * side) for edge in window)
    if x0 >= x1 or y0 >= y1 or x0 >= side or y0 >= side or x1 <= 0 or y1 <= 0:
        raise ValueError(f"the window {window} shows nothing of the image")
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, side), min(y1, side)
    across, down = size / (x1 - x0), size / (y1 - y0)
    # Where the visible part lies in the result, in whole pixels.
    columns = [round((edge - x0) * across) for edge in (left, right)]
    rows = [round((edge - y0) * down) for edge in (top, bottom)]
    width, height = max(1, columns[1] - columns[0]), max(1, rows[1] - rows[0])
    out = np.zeros((size, size), np.uint8)
    column, row = min(columns[0], size - width), min(rows[0], size - height)
    out[row : row + height, column : column + width] = resized(square[top:bottom, left:right], width, height)
    return out


def resized(image: Grey, width: int, height: int) -> Grey:
    """Resize an image; each axis is averaged over areas where it shrinks and interpolated linearly where it grows.

    Args:
        image: uint8 [H, W].
        width: columns of the result.
        height: rows of the result.

    Returns:
        uint8 [height, width].
    """
    # INTER_AREA averages only if no axis grows, so the axes that shrink go first and alone.
    small = (min(image.shape[1], width), min(image.shape[0], height))
    shrunk = cv2.resize(np.ascontiguousarray(image), small, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR)


def in_window(box: Box, window: Box) -> Box:
    """Return a box of the image as fractions of a window of it."""
    x0, y0, x1, y1 = window
    return (
        (box[0] - x0) / (x1 - x0),
        (box[1] - y0) / (y1 - y0),
        (box[2] - x0) / (x1 - x0),
        (box[3] - y0) / (y1 - y0),
    )


def over_image(
    values: NDArray[np.float32], box: tuple[int, int, int, int], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Lay a map of a window over all of the image, upsampled bilinearly.

    Args:
        values: float32 [h, w].
        box: the window in pixels of the image, x0, y0, x1, y1; may leave it.
        shape: rows and columns (H, W) of the image.

    Returns:
        float32 [H, W]; NaN outside of the window.
    """
    part, fine = inside(values, box, shape)
    out = np.full(shape, np.nan, np.float32)
    out[part] = fine
    return out


def inside(
    values: NDArray[np.float32], box: tuple[int, int, int, int], shape: tuple[int, int]
) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
    """Return which part of the image a map of a window covers, and the map there, upsampled bilinearly.

    Args:
        values: float32 [h, w].
        box: as for `over_image`.
        shape: rows and columns (H, W) of the image.

    Returns:
        Rows and columns of the image, and float32 of their size.
    """
    x0, y0, x1, y1 = box
    rows, columns = shape
    fine = cv2.resize(values.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, rows), min(x1, columns)
    return (slice(top, bottom), slice(left, right)), fine[top - y0 : bottom - y0, left - x0 : right - x0]


@lru_cache(maxsize=64)
def upsampling(cells: int, size: int) -> NDArray[np.float64]:
    """Return the matrix of bilinear upsampling along one axis, float64 [size, cells], as OpenCV and PyTorch place pixels.

    Pixel i has its centre at (i + 1/2) cells / size - 1/2 cells, not before the first and not behind the last.

    Args:
        cells: of the map.
        size: pixels of the result.
    """
    centre = np.maximum((np.arange(size) + 0.5) * cells / size - 0.5, 0)
    before = centre.astype(np.int64)
    after = np.minimum(before + 1, cells - 1)
    share = centre - before
    matrix = np.zeros((size, cells))
    np.add.at(matrix, (np.arange(size), before), 1 - share)
    np.add.at(matrix, (np.arange(size), after), share)
    return matrix


def window_in_pixels(window: Box, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a window in pixels of the image, at least one wide and high.

    Args:
        window: as fractions of the image; may leave it.
        shape: rows and columns (H, W) of the image.
    """
    (height, width), (x0, y0, x1, y1) = shape, window
    left, top = round(x0 * width), round(y0 * height)
    return left, top, max(left + 1, round(x1 * width)), max(top + 1, round(y1 * height))
