"""Which pages of a TIFF are images of their own: thumbnails, levels of a pyramid and masks are not.

A page is marked so by NewSubfileType (TIFF 6.0, tag 254: bit 0 a reduced copy, bit 2 a mask) or the older SubfileType (255: 2 a
reduced copy). Many writers leave both out, so a page that has the shape of the one before it or of the first,
is smaller, and shows the same at its size is taken for a reduced copy as well.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from pneumo_ray.images.decode_errors import MAX_FRAMES, check_size

SAME_IMAGE = 0.98
"""Pearson correlation from which on a smaller page is a copy. Reduced copies of 160 radiographs, by three filters and JPEG of
quality 60, have 0.982 or more at 32 columns; two radiographs of one shape have at most 0.948."""

MAX_COMPARED = 20
"""Pages that are compared in one file: each comparison decodes two, and a file of a few kB may have a thousand."""

_NEW_SUBFILE_TYPE, _SUBFILE_TYPE = 254, 255


def pages_of(image: Image.Image, grey_of: Callable[[Image.Image], np.ndarray]) -> list[int]:
    """Return the numbers of the pages that are images of their own, ascending, from 0; [0] for what is no TIFF.

    Pages are walked up to the limit of `MAX_FRAMES`; Pillow's own n_frames knows none.

    Args:
        image: as opened; is left at page 0.
        grey_of: makes uint8 [H, W] of the page that the image is at; only asked for pages that could be copies.

    Raises:
        ImageTooLargeError: above the limits of `check_size`.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return [0]
    sizes: list[tuple[int, int]] = []
    marked: list[bool] = []
    try:
        while len(sizes) <= MAX_FRAMES:
            image.seek(len(sizes))
            sizes.append(image.size)
            marked.append(_is_marked(image))
    except EOFError:
        pass
    check_size(0, 0, frames=len(sizes))
    if all(marked):
        marked[0] = False
    kept: list[int] = []
    compared = 0
    for page, size in enumerate(sizes):
        if marked[page]:
            continue
        # A thumbnail stands behind its page, or behind all pages.
        wholes = [whole for whole in dict.fromkeys([*kept[-1:], *kept[:1]]) if _could_be_copy(size, sizes[whole])]
        wholes = wholes[: MAX_COMPARED - compared]
        compared += len(wholes)
        if not any(_same(image, page, whole, grey_of) for whole in wholes):
            kept.append(page)
    image.seek(0)
    return kept


def _is_marked(image: TiffImagePlugin.TiffImageFile) -> bool:
    try:
        return bool(int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & 0b101) or image.tag_v2.get(_SUBFILE_TYPE) == 2
    except (TypeError, ValueError):
        return False


def _could_be_copy(size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether a page is smaller and has the other's shape, but for rounding to whole pixels."""
    return size[0] < whole[0] and abs(size[0] / whole[0] * whole[1] - size[1]) <= 1


def _same(image: Image.Image, page: int, whole: int, grey_of: Callable[[Image.Image], np.ndarray]) -> bool:
    try:
        image.seek(page)
        small = grey_of(image)
        image.seek(whole)
        large = grey_of(image)
    except Exception:  # a damaged page is one of its own, whose row says what is wrong
        return False
    rows, columns = small.shape
    if small.size < 64:
        return False
    reduced = cv2.resize(large, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float64)
    one, other = reduced - reduced.mean(), small - small.mean()
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return bool(scale > 0 and (one * other).sum() / scale >= SAME_IMAGE)
