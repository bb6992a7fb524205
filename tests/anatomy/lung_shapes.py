"""Masks whose areas and places follow from arithmetic."""

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 128

Mask = NDArray[np.bool_]


def rectangle(x0: int, y0: int, x1: int, y1: int, size: int = SIZE) -> Mask:
    """Rows y0 to y1 and columns x0 to x1, the ends left out."""
    mask = np.zeros((size, size), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def lung(x_outer: int, x_inner: int, top: int, bottom: int, size: int = SIZE) -> Mask:
    """A lung of straight lines: upright on the inner side, slanting outwards on the outer one."""
    corners = np.array([(x_inner, top), (x_inner, bottom), (x_outer, bottom), ((x_outer + x_inner) // 2, top)])
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
    return mask.astype(bool)


RIGHT, LEFT = lung(16, 54, 20, 100), lung(112, 74, 22, 104)
LUNGS = RIGHT | LEFT
