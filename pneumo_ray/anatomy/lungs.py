"""What follows from a mask of the lungs: right and left lung, boxes, and whether it is a frontal chest at all.

Sides are the patient's: the right lung is on the left of the image. Boxes are fractions of the image's width and
height. A mask that cannot be two lungs of an upright frontal chest is called so, and never repaired in silence.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the image's width and height, from its upper left corner."""

View = Literal["frontal", "doubtful"]

MASK_SIZE = 128
"""Rows and columns of the segmenter's input and of its masks."""

PLAUSIBLE = "plausible"
QUALITIES = {
    PLAUSIBLE: "two lungs of plausible size, place and symmetry",
    "no_lungs": "no part is as large as the smallest plausible lung",
    "one_lung": "only one part is as large as the smallest plausible lung",
    "many_parts": "much of the mask belongs to neither lung",
    "too_large": "the lungs cover more of the image than lungs can",
    "not_beside": "the two parts are not beside each other, one on each side",
    "not_alike": "one lung is several times as large, or as tall, as the other",
    "not_upright": "the lungs are widest in their upper part, or lie flat",
}
"""What `lung_quality` can be, and what it means; anything but `plausible` makes the view doubtful."""

# Chosen on the 5,211 annotated training images of Kermany, all of which are plausible with room to spare (in brackets
# their extremes), on NIH's films and on the DICOM samples. Areas are shares of the image.
_SMALLEST_LUNG = 0.03  # 0.068
_LARGEST_AREA = 0.8  # both lungs; 0.705
_CRUMB = 0.002
_LOOSE_PARTS = 0.15  # of the lungs' area
_LEAST_OVERLAP = 0.5  # rows that both lungs have, of the shorter one's; 0.745
_MOST_OVERLAP = 0.4  # columns that both boxes have, of the narrower one's; 0.108
_AREA_RATIO = 3.5  # 2.0
_HEIGHT_RATIO = 2.2  # 1.76
_FLATTEST = 0.75  # height over width of a lung; 0.911
_NEARLY_WIDEST = 0.97
_WIDEST_ROW = 0.42  # 0.511; nearly all of the same masks upside down are below
_WAIST = 0.5


@dataclass(frozen=True)
class Lungs:
    """The lungs of one image."""

    right: Mask | None
    """bool [H, W], the patient's right lung; None if there is none or the mask is not plausible."""
    left: Mask | None
    """bool [H, W], likewise."""
    quality: str
    """A key of `QUALITIES`."""

    @property
    def view(self) -> View:
        """Whether this is an upright frontal chest as far as its lungs say."""
        return "frontal" if self.quality == PLAUSIBLE else "doubtful"

    @property
    def mask(self) -> Mask | None:
        """Both lungs, bool [H, W]; None if there is neither."""
        if self.right is None or self.left is None:
            return self.left if self.right is None else self.right
        return self.right | self.left

    @property
    def area(self) -> float | None:
        """Share of the image that is lung."""
        return None if self.mask is None else _share(self.mask)

    @property
    def box(self) -> Box | None:
        """The box of both lungs."""
        return None if self.mask is None else box_of(self.mask)

    @property
    def right_box(self) -> Box | None:
        """The box of the right lung."""
        return None if self.right is None else box_of(self.right)

    @property
    def left_box(self) -> Box | None:
        """The box of the left lung."""
        return None if self.left is None else box_of(self.left)


def lungs_of(mask: Mask) -> Lungs:
    """Tell the right lung from the left one, without crumbs and holes, and judge them.

    Args:
        mask: bool [H, W] over the whole image, as the segmenter or an annotator gives it.

    Returns:
        The lungs. Where there is one lung alone, it has the side that it lies on; other masks that are not plausible
        leave both sides empty.

    Raises:
        ValueError: if it is not bool [H, W].
    """
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"expected bool [H, W], got {mask.dtype} {list(mask.shape)}")
    if _share(mask) > _LARGEST_AREA:
        return Lungs(None, None, "too_large")
    parts = _parts(mask)
    lungs = [part for part in parts if _share(part) >= _SMALLEST_LUNG]
    if len(lungs) == 1 and (halves := _halved(lungs[0])) is not None:
        lungs, parts = halves, [*halves, *parts[1:]]
    if not lungs:
        return Lungs(None, None, "no_lungs")
    if len(lungs) == 1:
        lies_right = _centre(lungs[0]) < 0.5
        return Lungs(lungs[0] if lies_right else None, None if lies_right else lungs[0], "one_lung")
    right, left = sorted(lungs[:2], key=_centre)
    loose = sum(_share(part) for part in parts[2:])
    fault = "many_parts" if loose > _LOOSE_PARTS * _share(right | left) else _fault(right, left)
    return Lungs(None, None, fault) if fault else Lungs(right, left, PLAUSIBLE)


def lung_quality(mask: Mask) -> str:
    """Return "plausible", or why a mask, bool [H, W], cannot be the lungs of a frontal chest: a key of `QUALITIES`."""
    return lungs_of(mask).quality


def box_of(mask: Mask) -> Box:
    """Return the smallest box around a mask, bool [H, W], that is not empty.

    Raises:
        ValueError: if it is empty.
    """
    x, y, columns, rows = cv2.boundingRect(_bytes(mask))
    if not rows:
        raise ValueError("an empty mask has no box")
    height, width = mask.shape
    return x / width, y / height, (x + columns) / width, (y + rows) / height


def zone_masks(lungs: Lungs) -> list[Mask | None]:
    """Return each lung in thirds of its own height, in the order of `explain.ZONES`.

    Of a lung of n rows, third i begins at row `i n / 3` rounded to the nearest.

    Returns:
        Six masks, bool [H, W]: right upper, left upper, right middle, ...; None for a zone without a pixel and for
        those of a lung that is missing.
    """
    zones: list[Mask | None] = [None] * 6
    for side, lung in enumerate((lungs.right, lungs.left)):
        if lung is None:
            continue
        rows = np.flatnonzero(lung.any(axis=1))
        first, count = int(rows[0]), int(rows[-1]) + 1 - int(rows[0])
        edges = [first + (2 * i * count + 3) // 6 for i in range(4)]
        for third in range(3):
            zone = np.zeros_like(lung)
            zone[edges[third] : edges[third + 1]] = lung[edges[third] : edges[third + 1]]
            zones[2 * third + side] = zone if zone.any() else None
    return zones


def _parts(mask: Mask) -> list[Mask]:
    """Return the connected parts of a mask that are no crumbs, their holes filled, the largest first."""
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    # The area within an outline through the centres of n edge pixels is about n / 2 + 1 pixels less than that of its part.
    sizes = [cv2.contourArea(outline) + len(outline) / 2 + 1 for outline in outlines]
    kept = [i for i in np.argsort(sizes)[::-1] if sizes[i] >= _CRUMB * mask.size]
    return [cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, i, 1, cv2.FILLED).view(np.bool_) for i in kept]


def _halved(part: Mask) -> list[Mask] | None:
    """Cut a part that is two touching lungs at its narrowest column, if there is a waist; else return None."""
    heights = part.sum(axis=0)
    columns = np.flatnonzero(heights)
    first, count = int(columns[0]), int(columns[-1]) + 1 - int(columns[0])
    inner = slice(first + count // 3, first + 2 * count // 3)
    if count < 3 or not len(heights[inner]):
        return None
    waist = inner.start + int(np.argmin(heights[inner]))
    sides = heights[first:waist], heights[waist + 1 :]
    if min(side.max(initial=0) for side in sides) * _WAIST < heights[waist]:
        return None
    halves = [part.copy(), part.copy()]
    halves[0][:, waist:] = False
    halves[1][:, : waist + 1] = False
    return halves if min(_share(half) for half in halves) >= _SMALLEST_LUNG else None


def _fault(right: Mask, left: Mask) -> str | None:
    """Return why two parts, from the left of the image to its right, cannot be the two lungs; None if they can."""
    boxes = box_of(right), box_of(left)
    (_, top_r, _, bottom_r), (_, top_l, _, bottom_l) = boxes
    heights, widths = [b[3] - b[1] for b in boxes], [b[2] - b[0] for b in boxes]
    shared_rows = min(bottom_r, bottom_l) - max(top_r, top_l)
    shared_columns = boxes[0][2] - boxes[1][0]
    if shared_rows < _LEAST_OVERLAP * min(heights) or shared_columns > _MOST_OVERLAP * min(widths):
        return "not_beside"
    areas = _share(right), _share(left)
    if max(areas) > _AREA_RATIO * min(areas) or max(heights) > _HEIGHT_RATIO * min(heights):
        return "not_alike"
    if min(heights) < _FLATTEST * min(widths) or _widest_row(right | left) < _WIDEST_ROW:
        return "not_upright"
    return None


def _widest_row(mask: Mask) -> float:
    """Return how far down a mask is widest between its outer walls, from 0 at its top to 1 at its bottom."""
    _, top, _, height = cv2.boundingRect(_bytes(mask))
    inside = mask[top : top + height]
    widths = inside.shape[1] - inside.argmax(axis=1) - inside[:, ::-1].argmax(axis=1)
    return float((np.flatnonzero(widths >= _NEARLY_WIDEST * widths.max()).mean() + 0.5) / len(widths))


def _centre(mask: Mask) -> float:
    """Return how far to the right the centre of gravity lies, as a fraction of the image's width."""
    columns = cv2.reduce(_bytes(mask), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0].astype(np.int64)
    return float((columns @ np.arange(len(columns)) / columns.sum() + 0.5) / len(columns))


def _bytes(mask: Mask) -> NDArray[np.uint8]:
    """Return a mask as OpenCV takes it, in rows without gaps."""
    return np.ascontiguousarray(mask).view(np.uint8)


def _share(mask: Mask) -> float:
    return np.count_nonzero(mask) / mask.size
