"""Outlines of lungs on their images, and contact sheets of them, for people to look at."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pneumo_ray.anatomy.lungs import PLAUSIBLE, QUALITIES, Lungs, Mask
from pneumo_ray.images.framing import resized

RIGHT_COLOUR, LEFT_COLOUR, OTHER_COLOUR = (0, 158, 115), (86, 180, 233), (230, 159, 0)
"""RGB of the right lung, the left lung, and of a mask that is not plausible: told apart by the colour-blind (Okabe, Ito)."""

_LARGEST_SHEET = 60
_TILE, _GAP, _TEXT, _HEAD = 232, 8, 46, 52
"""Pixels of a sheet: sides of an image, between images, for the lines above one, above all."""


@dataclass(frozen=True)
class Overlay:
    """One image and its lungs, ready to be drawn."""

    title: str
    image: NDArray[np.uint8]
    """[R, C]."""
    lungs: Lungs
    found: Mask | None = None
    """The mask as it was found, drawn where the lungs are not plausible; of any size, over the whole image."""


def draw_overlay(overlay: Overlay) -> NDArray[np.uint8]:
    """Return the image with outlines of its lungs, RGB uint8 [R, C, 3]."""
    canvas = np.repeat(overlay.image[:, :, None], 3, axis=2).copy()
    lungs = overlay.lungs
    outlined = [(lungs.right, RIGHT_COLOUR), (lungs.left, LEFT_COLOUR)]
    if lungs.quality != PLAUSIBLE and overlay.found is not None:
        outlined = [(overlay.found, OTHER_COLOUR)]
    for mask, colour in outlined:
        if mask is not None:
            height, width = overlay.image.shape
            # Smoothed before it is cut, or an enlarged mask has steps.
            large = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
            lines, _ = cv2.findContours(large.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, lines, -1, colour, max(1, round(min(height, width) / 150)))
    return canvas


def draw_overlays(overlays: Sequence[Overlay], title: str, columns: int = 5) -> bytes:
    """Return a contact sheet as PNG: each image with its lungs, its title, and what is wrong with its mask, if anything.

    Args:
        overlays: the first 60 are drawn.
        title: of the sheet.
        columns: images in a row.
    """
    shown = overlays[:_LARGEST_SHEET]
    rows = max(1, -(-len(shown) // columns))
    width, height = columns * (_TILE + _GAP) + _GAP, _HEAD + rows * (_TEXT + _TILE + _GAP)
    canvas = np.full((height, width, 3), 255, np.uint8)
    corners = [
        (_GAP + (number % columns) * (_TILE + _GAP), _HEAD + number // columns * (_TEXT + _TILE + _GAP) + _TEXT)
        for number in range(len(shown))
    ]
    for (left, top), overlay in zip(corners, shown, strict=True):
        drawn = draw_overlay(replace(overlay, image=_at_tile(overlay.image)))
        canvas[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    sheet = Image.fromarray(canvas)
    pen = ImageDraw.Draw(sheet)
    more = f" (first {len(shown)} of {len(overlays):,})" if len(overlays) > len(shown) else ""
    pen.text((_GAP, 6), f"{title}{more}", "black", ImageFont.load_default(16))
    pen.text((_GAP, 28), "right lung green, left lung blue, not plausible orange", "black", ImageFont.load_default(13))
    font = ImageFont.load_default(11)
    for (left, top), overlay in zip(corners, shown, strict=True):
        quality = overlay.lungs.quality
        note = "" if quality == PLAUSIBLE else "\n" + _wrapped(QUALITIES[quality])
        pen.multiline_text((left, top - 2), _end(overlay.title) + note, "black", font, anchor="ld", spacing=2)
    buffer = io.BytesIO()
    sheet.save(buffer, format="png", compress_level=3)
    return buffer.getvalue()


def _at_tile(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image, [R, C], in its shape, as large as a tile takes it."""
    scale = _TILE / max(image.shape)
    return resized(image, max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))


def _end(name: str, length: int = 38) -> str:
    printable = "".join(character if character.isprintable() else "?" for character in name)
    return printable if len(printable) <= length else "..." + printable[3 - length :]


def _wrapped(text: str, length: int = 40) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > length:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
