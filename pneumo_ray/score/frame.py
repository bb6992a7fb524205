"""Which part of an image the network is given, and what follows from its lungs for a map in that frame.

All of it is done where images are decoded, on a CPU: the process that holds the model receives ready inputs and small
matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pneumo_ray.anatomy.lungs import PLAUSIBLE, Lungs, lungs_of, zone_masks
from pneumo_ray.anatomy.masks import MaskError, decode_mask
from pneumo_ray.data.find_lungs import find_lungs, segmenter_input
from pneumo_ray.explain.lung_zones import cells_in_lungs, lung_share_operator, lung_zone_operator
from pneumo_ray.explain.zones import ZONES
from pneumo_ray.images.augment import center_crop, center_offset, resize_grey
from pneumo_ray.images.framing import Box, Shape, framed, in_window, window_of
from pneumo_ray.model import Preprocessing
from pneumo_ray.records import Row
from pneumo_ray.score.facts import ImageFacts

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]

NUM_FUNCTIONALS = len(ZONES) + 3
"""Rows of `map_functionals`: zones, evidence in the lungs, all evidence, and which cells have their centre in the lungs."""


@dataclass(frozen=True)
class Decoded:
    """An image as it comes out of its file."""

    square: Grey
    """uint8 [C, C], resized to a square."""
    shape: Shape
    """Of the file, or of the original where the file was squashed."""
    note: str | None = None
    """What of the file took no part in the pixels; None for nothing."""
    facts: ImageFacts | None = None
    """Who is on it, and how the file was made; None where nobody asked."""


@dataclass(frozen=True)
class Framed:
    """An image as the network sees it."""

    pixels: Grey
    """uint8 [S, S]."""
    window: Box
    """What they show, as fractions of the image."""
    lungs: Lungs | None
    """None where nobody looked for them."""
    decoded: Decoded


def frame_images(
    images: Sequence[Decoded], known: Sequence[Lungs | None], preprocessing: Preprocessing, *, find: bool
) -> list[Framed]:
    """Return images as the network sees them.

    Args:
        images: n images.
        known: of each, its lungs, or None where nobody has looked.
        preprocessing: of the model.
        find: look for lungs that are not known.
    """
    lungs = list(known)
    if find and (todo := [number for number, found in enumerate(known) if found is None]):
        looked = find_lungs([segmenter_input(images[number].square) for number in todo])
        for number, found in zip(todo, looked, strict=True):
            lungs[number] = found.lungs
    return [_framed(image, found, preprocessing) for image, found in zip(images, lungs, strict=True)]


def known_lungs(row: Row) -> Lungs | None:
    """Return the lungs that a row of the list names; None where it names none, or a mask that cannot be read."""
    quality, png = row["lung_quality"], row["lung_mask"]
    if quality is None:
        return None
    if quality != PLAUSIBLE:
        return Lungs(None, None, quality)
    try:
        return None if png is None else lungs_of(decode_mask(png))
    except MaskError:
        return None


def input_window(preprocessing: Preprocessing, shape: Shape, lungs: Lungs | None, side: int) -> Box:
    """Return what the network's input shows of an image, as fractions of it.

    Args:
        preprocessing: of the model.
        shape: of the image.
        lungs: of the image; where they are not plausible, `lungs` is `pad`.
        side: of the square that the image is decoded to; the window ends at its pixels.
    """
    if preprocessing.fit == "squash":
        start = center_offset(preprocessing.resize_size, preprocessing.image_size)
        low, high = (edge / preprocessing.resize_size for edge in (start, start + preprocessing.image_size))
        return low, low, high, high
    box = lungs.box if lungs is not None and lungs.quality == PLAUSIBLE else None
    x0, y0, x1, y1 = window_of(preprocessing.fit, shape, box, preprocessing.margin)
    return round(x0 * side) / side, round(y0 * side) / side, round(x1 * side) / side, round(y1 * side) / side


def map_functionals(frame: Framed, map_size: tuple[int, int]) -> Floats | None:
    """Return what measures a map of an image in its lungs, float32 [NUM_FUNCTIONALS, h * w]; None without plausible lungs.

    The rows are those of `lung_zone_operator` (NaN where a zone is outside of the window), of `lung_share_operator`, and
    1 for each cell whose centre lies in the lungs, else 0.
    """
    lungs = frame.lungs
    if lungs is None or lungs.quality != PLAUSIBLE or lungs.mask is None:
        return None
    size = (frame.pixels.shape[0], frame.pixels.shape[1])
    parts = torch.cat(
        [
            lung_zone_operator(zone_masks(lungs), map_size, size, frame.window),
            lung_share_operator(lungs.mask, map_size, size, frame.window),
            torch.from_numpy(cells_in_lungs(lungs.mask, map_size, frame.window).astype(np.float32).reshape(1, -1)),
        ]
    )
    return np.asarray(parts.numpy())


def box_in_input(box: Sequence[float], window: Box, size: int) -> tuple[int, int, int, int] | None:
    """Return a box of the image, in fractions of it, in pixels of the input; None where too little for zones is left."""
    x0, y0, x1, y1 = (
        round(min(max(edge, 0.0), 1.0) * size) for edge in in_window((box[0], box[1], box[2], box[3]), window)
    )
    return (x0, y0, x1, y1) if x1 - x0 >= 2 and y1 - y0 >= 3 else None


def _framed(image: Decoded, lungs: Lungs | None, preprocessing: Preprocessing) -> Framed:
    square, size = image.square, preprocessing.image_size
    window = input_window(preprocessing, image.shape, lungs, len(square))
    if preprocessing.fit == "squash":
        pixels = center_crop(resize_grey(square, preprocessing.resize_size), size)
    else:
        pixels = framed(square, window, size)
    return Framed(pixels, window, lungs, image)
