"""The four panels of `render.draw_panels` as pixels, drawn by OpenCV and Pillow in a fiftieth of matplotlib's time.

For images of which there are many: one case after another is drawn at a fixed layout, with the same colours, lines and
units.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pneumo_ray.anatomy.lungs import zone_masks
from pneumo_ray.explain.case import WHOLE, Case
from pneumo_ray.explain.render import (
    INPUT_COLOUR,
    LUNG_COLOUR,
    MEAN_COLOURS,
    SPREAD_COLOURS,
    opacity,
    zone_texts,
)
from pneumo_ray.explain.zones import ZONES, Box
from pneumo_ray.images.framing import over_image, resized
from pneumo_ray.model.config import CLASSES

Rgb = NDArray[np.uint8]

SIDE = 336
"""Longer side of a panel's image, in pixels."""
_GAP, _HEAD, _TITLE, _FOOT = 10, 58, 40, 24
_LEGEND = "the patient's right is on the left · white line: half of the maximum · logit per cell of the map"


def panel_image(image: NDArray[np.uint8], width: float, height: float) -> NDArray[np.uint8]:
    """Return an image at the size of a panel, uint8 [H, W].

    Args:
        image: uint8, of any size.
        width: of its true shape.
        height: of its true shape.
    """
    scale = SIDE / max(width, height)
    return resized(image, max(1, round(scale * width)), max(1, round(scale * height)))


def draw_pixels(case: Case, notice: str, verdict: str) -> Rgb:
    """Return the four panels: the image with its zones, mean, standard deviation, and mean less 1.96 standard deviations.

    Args:
        case: its image from `panel_image`. Its title is not drawn, as the name of a file may be that of a patient.
        notice: first line, in bold.
        verdict: second line.

    Returns:
        uint8 [H, W, 3].
    """
    rows = case.image.shape[0]
    canvas = np.zeros((_HEAD + _TITLE + rows + _FOOT, 4 * SIDE + 5 * _GAP, 3), np.uint8)
    floor = np.maximum(case.cam_mean - 1.96 * case.cam_std, 0)
    top, spread = float(case.cam_mean.max()), float(case.cam_std.max())
    target = CLASSES[case.target]
    panels = (
        (_with_zones(case), "image, mean evidence by zone", ""),
        (_overlaid(case, case.cam_mean, top, MEAN_COLOURS), f"evidence for {target}", f"up to {top:.3g}"),
        (_overlaid(case, case.cam_std, spread, SPREAD_COLOURS), "standard deviation", f"up to {spread:.3g}"),
        (_overlaid(case, floor, top, MEAN_COLOURS), "mean - 1.96 sd", f"up to {float(floor.max()):.3g}"),
    )
    for number, (pixels, _, _) in enumerate(panels):
        left = _left(number) + (SIDE - pixels.shape[1]) // 2
        canvas[_HEAD + _TITLE : _HEAD + _TITLE + rows, left : left + pixels.shape[1]] = pixels
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    pen.text((_GAP, 6), notice, "#FFD54A", _font(19, bold=True))
    pen.text((_GAP, 34), verdict, "white", _font(15))
    for number, (_, title, limit) in enumerate(panels):
        pen.text((_left(number), _HEAD + 4), title, "white", _font(14))
        pen.text((_left(number), _HEAD + 20), limit, "#BBBBBB", _font(13))
    _label_zones(pen, case)
    pen.text((_GAP, canvas.shape[0] - _FOOT + 4), _LEGEND, "#BBBBBB", _font(13))
    return np.asarray(picture)


def _left(panel: int) -> int:
    return _GAP + panel * (SIDE + _GAP)


def _plain(case: Case) -> Rgb:
    """Return the image in RGB with the lungs outlined and the network's input dotted."""
    pixels = np.repeat(case.image[:, :, None], 3, axis=2)
    if case.window != WHOLE:
        _dotted(pixels, case.input_box, _rgb(INPUT_COLOUR))
    for lung in () if case.lungs is None else (case.lungs.right, case.lungs.left):
        if lung is not None:
            _outline(pixels, _resized_mask(lung, case), _rgb(LUNG_COLOUR))
    return pixels


def _with_zones(case: Case) -> Rgb:
    pixels = _plain(case)
    if case.lung_zones and case.lungs is not None:
        for zone in zone_masks(case.lungs):
            if zone is not None:
                _outline(pixels, _resized_mask(zone, case), (255, 255, 255))
    elif not case.lung_zones:
        x0, y0, x1, y1 = _zone_box(case)
        for third in (1, 2):
            y = y0 + third * (y1 - y0) // 3
            cv2.line(pixels, (x0, y), (x1, y), (190, 190, 190))
        middle = (x0 + x1) // 2
        cv2.line(pixels, (middle, y0), (middle, y1), (190, 190, 190))
    return pixels


def _overlaid(case: Case, values: NDArray[np.float32], limit: float, colours: str) -> Rgb:
    pixels = _plain(case)
    if limit <= 0:
        return pixels
    level = np.nan_to_num(over_image(values, case.input_box, (case.image.shape[0], case.image.shape[1])), copy=False)
    share = np.clip(level / np.float32(limit), 0, 1)
    painted = _table(colours)[(share * 255).astype(np.uint8)]
    pixels = (pixels + (painted - pixels.astype(np.float32)) * opacity(share)[:, :, None] + np.float32(0.5)).astype(
        np.uint8
    )
    half = float(level.max()) / 2
    if half > 0:
        _outline(pixels, (level >= half).astype(np.uint8), (255, 255, 255))
    return pixels


def _label_zones(pen: ImageDraw.ImageDraw, case: Case) -> None:
    """Write the mean of each zone where the zone lies; the zones of lungs that nobody has drawn, where they would be."""
    rows, columns = case.image.shape
    x0, y0, x1, y1 = _zone_box(case)
    masks: Sequence[NDArray[np.bool_] | None] = (
        zone_masks(case.lungs) if case.lung_zones and case.lungs is not None else [None] * len(ZONES)
    )
    texts = zone_texts(case.zone_mean)
    for number, mask in enumerate(masks):
        third, half = divmod(number, 2)
        x, y = x0 + (half + 0.5) * (x1 - x0) / 2, y0 + (third + 0.5) * (y1 - y0) / 3
        if mask is not None and mask.any():
            down, across = np.nonzero(mask)
            x = (float(across.mean()) + 0.5) / mask.shape[1] * columns
            y = (float(down.mean()) + 0.5) / mask.shape[0] * rows
        place = _left(0) + (SIDE - columns) // 2 + x, _HEAD + _TITLE + y
        pen.text(place, texts[number], "white", _font(15), anchor="mm", stroke_width=2, stroke_fill="black")


def _zone_box(case: Case) -> Box:
    rows, columns = case.image.shape
    x0, y0, x1, y1 = case.zone_box or case.input_box
    return max(x0, 0), max(y0, 0), min(x1, columns), min(y1, rows)


def _resized_mask(mask: NDArray[np.bool_], case: Case) -> NDArray[np.uint8]:
    rows, columns = case.image.shape
    fine = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)
    return (fine >= 0.5).astype(np.uint8)


def _outline(pixels: Rgb, mask: NDArray[np.uint8], colour: tuple[int, int, int]) -> None:
    lines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.polylines(pixels, lines, True, colour, 1, cv2.LINE_AA)


def _dotted(pixels: Rgb, box: Box, colour: tuple[int, int, int]) -> None:
    rows, columns = pixels.shape[:2]
    x0, y0, x1, y1 = box
    for x in (x0, x1 - 1):
        if 0 <= x < columns:
            pixels[max(y0, 0) : min(y1, rows) : 4, x] = colour
    for y in (y0, y1 - 1):
        if 0 <= y < rows:
            pixels[y, max(x0, 0) : min(x1, columns) : 4] = colour


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@lru_cache(maxsize=4)
def _table(colours: str) -> NDArray[np.float32]:
    """Return the colours of 256 levels, float32 [256, 3]."""
    return np.asarray(matplotlib.colormaps[colours](np.arange(256))[:, :3] * 255, np.float32)


@lru_cache(maxsize=16)
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
