"""Do the maps show where the disease is? Measures of maps against true boxes, one function each.

Maps are coarse [h, w] and are upsampled bilinearly to the image that they explain, as everywhere here. Boxes are half-open
in its pixels; `boxes_on_grid` brings boxes of a whole image to pixels of the part of it that a map explains.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.explain.zones import Box, upsampling
from pneumo_ray.images import framing

Maps = NDArray[np.float32]

GRID = 224
"""Rows and columns of pixels into which the part of an image that a map explains is divided, at any size of the image."""
LEVELS = 1000
"""Steps between 0 and a map's maximum in which `pixel_counts` takes its values."""


def boxes_on_grid(boxes: Sequence[framing.Box], window: framing.Box, grid: int = GRID) -> list[Box]:
    """Return boxes of an image in pixels of a window of it, rounded to whole pixels and cut off at its edges.

    Args:
        boxes: as fractions of the image's width and height.
        window: likewise; may leave the image.
        grid: rows and columns of pixels of the window.

    Returns:
        For each box x0, y0, x1, y1; without area if it lies outside of the window.
    """
    found = []
    for box in boxes:
        inside = (min(max(edge, 0.0), 1.0) * grid for edge in framing.in_window(box, window))
        # Beforehand to a billionth of a pixel, so that half a pixel is rounded alike on both sides of a mirror.
        x0, y0, x1, y1 = (round(round(edge, 9)) for edge in inside)
        found.append((x0, y0, x1, y1))
    return found


def visible_share(boxes: Sequence[framing.Box], window: framing.Box) -> float:
    """Return the share of the boxes' area, summed over boxes, that a window shows."""
    seen, total = 0.0, 0.0
    for x0, y0, x1, y1 in boxes:
        width, height = min(x1, window[2]) - max(x0, window[0]), min(y1, window[3]) - max(y0, window[1])
        seen, total = seen + max(width, 0.0) * max(height, 0.0), total + (x1 - x0) * (y1 - y0)
    return seen / total


def upsampled(maps: Maps, image_size: tuple[int, int]) -> Iterator[Maps]:
    """Yield each of the maps [n, h, w] at the size of its image, float32 [H, W]."""
    rows, columns = (matrix.astype(np.float32) for matrix in upsampling((maps.shape[1], maps.shape[2]), image_size))
    for coarse in maps:
        yield rows @ coarse @ columns.T


def inside_mask(boxes: Sequence[Box], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return [H, W], true inside any of the boxes; boxes are clipped to the image."""
    mask = np.zeros(image_size, bool)
    for x0, y0, x1, y1 in boxes:
        mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask


def pointing_game(maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return whether the maximum of each map lies in a true box (Zhang et al. 2016, arXiv 1608.00507).

    The maximum is the centre of the largest cell of the native map. Bilinear upsampling has its maximum there too, but
    on a plateau: two pixels on each side of an inner cell's centre, half a cell up to the image's edge, so that its first
    pixel favours one side. Of several equal largest cells every centre must lie in a box: a flat map points nowhere.

    A blank map is a miss, and so is an image without a box. A centre on the edge of a box is inside it; no other
    tolerance is added. Mirroring or transposing map and boxes changes no verdict.

    Args:
        maps: [n, h, w], after ReLU.
        boxes: true boxes of each image, in its pixels.
        image_size: rows and columns of the images.

    Returns:
        bool [n].
    """
    hits = np.zeros(len(maps), bool)
    height, width = image_size
    rows, columns = maps.shape[1:]
    for number, (coarse, true) in enumerate(zip(maps, boxes, strict=True)):
        if coarse.max() > 0:
            row, column = np.nonzero(coarse == coarse.max())
            # Twice the centre times the number of cells, and the edges alike: integers, in which equality is exact.
            y, x = (2 * row + 1) * height, (2 * column + 1) * width
            inside = np.zeros(len(row), bool)
            for x0, y0, x1, y1 in true:
                if x0 < x1 and y0 < y1:
                    across = (2 * columns * x0 <= x) & (x <= 2 * columns * x1)
                    inside |= across & (2 * rows * y0 <= y) & (y <= 2 * rows * y1)
            hits[number] = inside.all()
    return hits


def energy_in_box(maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the share of each map that lies in its true boxes (Wang et al. 2020, arXiv 1910.01279); NaN for a blank map."""
    shares = np.full(len(maps), np.nan)
    for number, (fine, true) in enumerate(zip(upsampled(maps, image_size), boxes, strict=True)):
        if (total := float(fine.sum(dtype=np.float64))) > 0:
            shares[number] = float(fine[inside_mask(true, image_size)].sum(dtype=np.float64)) / total
    return shares


def overlap(
    maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int], threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return IoU and Dice of `map >= threshold * its maximum` with the true boxes, each [n]; 0 for a blank map."""
    iou, dice = np.zeros(len(maps)), np.zeros(len(maps))
    for number, (fine, true) in enumerate(zip(upsampled(maps, image_size), boxes, strict=True)):
        marked = (fine >= threshold * fine.max()) & (fine > 0)
        truth = inside_mask(true, image_size)
        both, either = int((marked & truth).sum()), int((marked | truth).sum())
        iou[number] = both / either if either else 0.0
        dice[number] = 2 * both / (either + both) if either else 0.0
    return iou, dice


def tune_overlap_threshold(maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int]) -> float:
    """Return the threshold, as a share of the maximum, with the best mean IoU. Tune on validation, measure on test."""
    candidates = [step / 20 for step in range(1, 20)]
    means = [float(overlap(maps, boxes, image_size, threshold)[0].mean()) for threshold in candidates]
    return candidates[int(np.argmax(means))]


def pixel_counts(maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int]) -> NDArray[np.int64]:
    """Count the pixels of each map by their value, outside and inside its boxes.

    Args:
        maps: [n, h, w], after ReLU.
        boxes: true boxes of each image, in its pixels.
        image_size: rows and columns of the images.

    Returns:
        int64 [n, LEVELS + 1, 2]. Level k holds values from `k / LEVELS` of the map's maximum on; all of a blank map is level 0.
    """
    counts = np.zeros((len(maps), LEVELS + 1, 2), np.int64)
    for number, (fine, true) in enumerate(zip(upsampled(maps, image_size), boxes, strict=True)):
        top = float(fine.max())
        shares = fine.astype(np.float64) / top if top > 0 else np.zeros(image_size)
        level = np.clip(np.floor(LEVELS * shares), 0, LEVELS).astype(np.int64)
        both = np.bincount((2 * level + inside_mask(true, image_size)).ravel(), minlength=2 * (LEVELS + 1))
        counts[number] = both.reshape(LEVELS + 1, 2)
    return counts


def average_precision(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the average precision of pixels as detectors of the boxes (PxAP: Choe et al. 2020, arXiv 2001.07437).

    Args:
        counts: [..., levels, 2] from `pixel_counts`, or a sum of them, which pools the pixels of several images.

    Returns:
        [...]: the sum over levels of precision times the recall that the level adds. Of a flat or blank map it is the share
        of the area inside the boxes. NaN without a pixel inside.
    """
    from_top = counts[..., ::-1, :].astype(np.float64)
    found, called = from_top[..., 1].cumsum(-1), from_top.sum(-1).cumsum(-1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    total = found[..., -1]
    gained = (precision * from_top[..., 1]).sum(-1)
    return np.asarray(np.divide(gained, total, out=np.full_like(total, np.nan), where=total > 0))
