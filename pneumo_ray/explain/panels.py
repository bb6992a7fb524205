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
from pneumo_ray.images.framing import inside, resized
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
    floor = np.maximum(case.cam_mean - 1.96 * case.cam_std, 0)
    top, spread = float(case.cam_mean.max()), float(case.cam_std.max())
    zones = _masks_of_zones(case)
    canvas = _frame(rows, CLASSES[case.target], notice).copy()
    for number, pixels in enumerate(
        (
            _with_zones(case, zones),
            _overlaid(case, case.cam_mean, top, MEAN_COLOURS),
            _overlaid(case, case.cam_std, spread, SPREAD_COLOURS),
            _overlaid(case, floor, top, MEAN_COLOURS),
        )
    ):
        left = _left(number) + (SIDE - pixels.shape[1]) // 2
        canvas[_HEAD + _TITLE : _HEAD + _TITLE + rows, left : left + pixels.shape[1]] = pixels
    drawn = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawn)
    pen.text((_GAP, 34), verdict, "white", _font(15))
    for number, limit in enumerate((top, spread, float(floor.max())), start=1):
        pen.text((_left(number), _HEAD + 20), f"up to {limit:.3g}", "#BBBBBB", _font(13))
    _label_zones(pen, case, zones)
    return np.asarray(drawn)


@lru_cache(maxsize=16)
def _frame(rows: int, target: str, notice: str) -> Rgb:
    """Return what cases have in common whose panels have so many rows: an empty canvas with its words."""
    canvas = Image.new("RGB", (4 * SIDE + 5 * _GAP, _HEAD + _TITLE + rows + _FOOT))
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP, 6), notice, "#FFD54A", _font(19, bold=True))
    titles = ("image, mean evidence by zone", f"evidence for {target}", "standard deviation", "mean - 1.96 sd")
    for number, title in enumerate(titles):
        pen.text((_left(number), _HEAD + 4), title, "white", _font(14))
    pen.text((_GAP, canvas.height - _FOOT + 4), _LEGEND, "#BBBBBB", _font(13))
    return np.asarray(canvas)


def _left(panel: int) -> int:
    return _GAP + panel * (SIDE + _GAP)


def _marked(pixels: Rgb, case: Case) -> Rgb:
    """Outline the lungs and dot the network's input on an image."""
    if case.window != WHOLE:
        _dotted(pixels, case.input_box, _rgb(INPUT_COLOUR))
    for lung in () if case.lungs is None else (case.lungs.right, case.lungs.left):
        if lung is not None:
            _outline(pixels, _resized_mask(lung, case), _rgb(LUNG_COLOUR))
    return pixels


def _with_zones(case: Case, zones: Sequence[NDArray[np.bool_] | None]) -> Rgb:
    pixels = _marked(cv2.cvtColor(case.image, cv2.COLOR_GRAY2RGB), case)
    for zone in zones:
        if zone is not None:
            _outline(pixels, _resized_mask(zone, case), (255, 255, 255))
    if not case.lung_zones:
        x0, y0, x1, y1 = _zone_box(case)
        for third in (1, 2):
            y = y0 + third * (y1 - y0) // 3
            cv2.line(pixels, (x0, y), (x1, y), (190, 190, 190))
        middle = (x0 + x1) // 2
        cv2.line(pixels, (middle, y0), (middle, y1), (190, 190, 190))
    return pixels


def _overlaid(case: Case, values: NDArray[np.float32], limit: float, colours: str) -> Rgb:
    """Return an image under a map, the more opaque the larger it is, with a line at half of the map's maximum."""
    level = np.zeros(case.image.shape, np.uint8)
    part, fine = inside(values, case.input_box, (case.image.shape[0], case.image.shape[1]))
    if limit > 0:
        level[part] = np.clip(fine * np.float32(255 / limit) + np.float32(0.5), 0, 255)
    # A level and a grey have one colour: an index of 16 bits is looked up instead of three blends of float.
    pixels = _blends(colours).take(level * np.uint16(256) + case.image, axis=0)
    _marked(pixels, case)
    if fine.size and (half := float(fine.max()) / 2) > 0:
        mask = np.zeros(case.image.shape, np.uint8)
        mask[part] = fine >= half
        _outline(pixels, mask, (255, 255, 255))
    return pixels


def _masks_of_zones(case: Case) -> Sequence[NDArray[np.bool_] | None]:
    """Return where the zones of the lungs lie; None for each where they are parts of the image, or nobody has drawn them."""
    return zone_masks(case.lungs) if case.lung_zones and case.lungs is not None else [None] * len(ZONES)


def _label_zones(pen: ImageDraw.ImageDraw, case: Case, zones: Sequence[NDArray[np.bool_] | None]) -> None:
    """Write the mean of each zone where it lies, or would."""
    rows, columns = case.image.shape
    x0, y0, x1, y1 = _zone_box(case)
    texts = zone_texts(case.zone_mean)
    for number, mask in enumerate(zones):
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
    lines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
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
def _blends(colours: str) -> Rgb:
    """Return the colour of each of 256 levels of a map over each of 256 greys, uint8 [65536, 3], level by level."""
    share = np.linspace(0, 1, 256, dtype=np.float32)
    painted = 255 * matplotlib.colormaps[colours](share)[:, None, :3]
    grey = np.arange(256.0)[None, :, None]
    return np.rint(grey + (painted - grey) * opacity(share)[:, None, None]).astype(np.uint8).reshape(-1, 3)


@lru_cache(maxsize=16)
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
