"""Outlines of lungs on their images, and contact sheets of them, for people to look at."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pneumo_ray.anatomy.lungs import PLAUSIBLE, QUALITIES, Lungs, Mask

RIGHT_COLOUR, LEFT_COLOUR, OTHER_COLOUR = (0, 158, 115), (86, 180, 233), (230, 159, 0)
"""RGB of the right lung, the left lung, and of a mask that is not plausible: told apart by the colour-blind (Okabe, Ito)."""

_LARGEST_SHEET = 60


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
    figure = Figure(figsize=(2.1 * columns, 2.45 * rows + 0.5), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, overlay in zip(grid, shown, strict=False):
        axes.imshow(draw_overlay(overlay))
        quality = overlay.lungs.quality
        note = "" if quality == PLAUSIBLE else "\n" + _wrapped(QUALITIES[quality])
        axes.set_title(_end(overlay.title) + note, fontsize=6)
    more = f" (first {len(shown)} of {len(overlays):,})" if len(overlays) > len(shown) else ""
    figure.suptitle(f"{title}{more}\nright lung green, left lung blue, not plausible orange", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _end(name: str, length: int = 34) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]


def _wrapped(text: str, length: int = 40) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > length:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
