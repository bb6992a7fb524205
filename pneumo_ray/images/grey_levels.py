"""Conversion of deep images to 8 bits: every stored value that occurs is mapped once, and pixels are looked up.

A 16-bit image has at most 65,536 levels however many pixels it has, so a chain of float64 steps (DICOM PS3.3 C.11)
takes little time and no float64 image. Operations on all pixels work block by block: NumPy makes
8 bytes of every index, which for an image at the size limit would be most of a gigabyte.
"""

from collections.abc import Iterator

import cv2
import numpy as np

_COUNTED = 1 << 20
"""Pixels that are counted at once: fewer than 2**24, up to which OpenCV's float32 counts are exact."""
_LOOKED_UP = 1 << 16
"""Pixels that are looked up at once: few enough that what NumPy makes of them stays in the cache."""


def rms_contrast(image: np.ndarray) -> float:
    """Return the standard deviation of the grey levels of [H, W], white (255) being 1 (Peli 1990, JOSA A 7:2032): 0 to 0.5."""
    return float(image.std(dtype=np.float64)) / 255


def robust_scale(image: np.ndarray) -> np.ndarray:
    """Scale an image to 8 bits between its 0.5 and 99.5 % percentiles (nearest rank), so that markers have no effect.

    If the two percentiles are equal, minimum and maximum are used; a constant image becomes 0.

    Args:
        image: [H, W] of any integer or float type; values that are not finite count as 0.

    Returns:
        uint8 [H, W].
    """
    levels, index = split_levels(image)
    return look_up(to_uint8(stretch(levels, count_levels(index, len(levels)))), index)


def split_levels(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split an image into its ascending levels, float64 [K], and the index of each pixel's level, unsigned [H, W]."""
    if image.dtype.kind in "iu" and image.dtype.itemsize <= 2:
        first, last = int(image.min()), int(image.max())
        # The difference may not fit a signed type, but wraps to the bits of the unsigned one that it does fit.
        index = np.ascontiguousarray(image - image.dtype.type(first)).view(f"u{image.dtype.itemsize}")
        return np.arange(first, last + 1, dtype=np.float64), index
    if image.dtype.kind == "f":
        image = np.nan_to_num(image, posinf=0.0, neginf=0.0)
    levels, index = np.unique(image, return_inverse=True)
    return levels.astype(np.float64), index.reshape(image.shape)


def look_up(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the entry of `table` [K] for each index, [H, W]."""
    result = np.empty(index.shape, table.dtype)
    for source, target in zip(_blocks(index, _LOOKED_UP), _blocks(result, _LOOKED_UP), strict=True):
        np.take(table, source, out=target, mode="clip")  # other modes make a copy of `out` first
    return result


def count_levels(index: np.ndarray, num_levels: int) -> np.ndarray:
    """Return how many pixels have each level, [K], from the index of each pixel's level."""
    counts = np.zeros(num_levels, np.intp)
    for block in _blocks(index, _COUNTED):
        if index.dtype.itemsize <= 2:
            found = cv2.calcHist([block.reshape(1, -1)], [0], None, [num_levels], [0, num_levels])
            counts += found.ravel().astype(np.intp)
        else:
            counts += np.bincount(block, minlength=num_levels)
    return counts


def stretch(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Map the value of each level, [K], to 0 .. 1 between the percentiles of the pixels counted for it, [K]."""
    order = np.argsort(values, kind="stable")
    order = order[counts[order] > 0]
    ranks = np.cumsum(counts[order])
    low, high = values[order[np.searchsorted(ranks, np.array([0.005, 0.995]) * ranks[-1])]]
    if low == high:
        low, high = values[order[0]], values[order[-1]]
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(values)


def apply_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Map values to 0 .. 1 by a window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 0.5 + 0.5 * np.tanh(2.0 * (values - center) / width)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0.0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def to_uint8(unit: np.ndarray) -> np.ndarray:
    """Round 0 .. 1 to 0 .. 255."""
    return np.rint(255.0 * unit).astype(np.uint8)


def _blocks(image: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Yield the pixels of a contiguous image in views of a length."""
    flat = image.reshape(-1)
    return (flat[start : start + length] for start in range(0, flat.size, length))
