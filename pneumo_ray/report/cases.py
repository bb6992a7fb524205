"""Choice and reading of the images in the report.

Errors come first; then the most uncertain images; then correct predictions spread evenly over
the probabilities, so that the page shows neither only errors nor only easy images.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray.anatomy.lungs import Lungs, lungs_of
from pneumo_ray.data.dataset import seen_by_network
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.lungs import lung_masks, shapes
from pneumo_ray.errors import PneumoError
from pneumo_ray.evaluate.quality import contrast, sharpness
from pneumo_ray.evaluate.scores import CROP, Scores
from pneumo_ray.evaluate.zone_table import OUTCOMES
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.images.decode import decode_image
from pneumo_ray.images.framing import WHOLE, Box, Shape, framed, in_window, window_of

DISPLAY_SIZE = 224
"""Rows and columns of an image on the page."""
UNKNOWN = "no label"

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """Which rows of the scores the report shows."""

    rows: Rows
    """In the order of the page, each once."""
    errors: Rows
    """All errors, the largest residual first."""


@dataclass(frozen=True)
class Seen:
    """An image that could be read."""

    image: NDArray[np.uint8]
    """[DISPLAY_SIZE, DISPLAY_SIZE]: all of it in its true shape, or, in scores that do not say which part of it the network
    saw, that part."""
    sharpness: float
    """Of the whole file, as `quality.sharpness`."""
    contrast: float
    window: Box = WHOLE
    """What the network saw, as fractions of `image`."""
    lungs: Lungs | None = None
    """In the frame of `image`, where the manifest knows them."""


def outcomes(scores: Scores) -> NDArray[np.str_]:
    """Return the outcome of each image at the stored threshold, one of `OUTCOMES` or `UNKNOWN`.

    Args:
        scores: of n images that did not fail, joined with `label`.
    """
    label = pc.fill_null(scores.table["label"], -1).to_numpy().astype(np.int64)
    called = scores.table["predicted"].to_numpy().astype(np.int64)
    return np.where(label < 0, UNKNOWN, np.array(OUTCOMES)[2 * np.maximum(label, 0) + called])


def choose(scores: Scores, count: int) -> Chosen:
    """Choose the images of the page.

    Args:
        scores: of images that did not fail, joined with `label`.
        count: at most this many.

    Returns:
        Up to 60 % errors, the largest residuals first and both kinds as evenly as there are; up to 20 % of the highest
        mutual information; the rest from the right answers or the images without labels, spread over the
        probabilities.
    """
    outcome, prob = outcomes(scores), scores.numbers("prob_mean")
    uncertain = np.argsort(-scores.numbers("mutual_information"), kind="stable")[: count // 5]
    # Of a false positive the most confident has the highest probability, of a false negative the lowest.
    residual = np.where(outcome == "false positive", prob, 1 - prob)
    false = {name: np.flatnonzero(outcome == name) for name in ("false positive", "false negative")}
    wrong = [rows[np.argsort(-residual[rows], kind="stable")] for rows in false.values()]
    room = int(0.6 * count)
    first = min(len(wrong[0]), max(room // 2, room - len(wrong[1])))
    chosen = np.concatenate([wrong[0][:first], wrong[1][: room - first]])
    chosen = chosen[np.argsort(-residual[chosen], kind="stable")]
    picked = _each_once(chosen, uncertain)[:count]
    rest = {name: np.flatnonzero(outcome == name) for name in ("true positive", "true negative", UNKNOWN)}
    rest = {name: members[~np.isin(members, picked)] for name, members in rest.items()}
    for name, members in rest.items():
        left = count - len(picked)
        if name == "true positive":
            left = max(left // 2, left - len(rest["true negative"]))
        members = members[np.argsort(-prob[members], kind="stable")]
        spread = np.unique(np.linspace(0, len(members) - 1, min(max(left, 0), len(members))).round().astype(int))
        picked = _each_once(picked, members[spread] if len(members) else members)
    errors = np.concatenate(wrong)
    return Chosen(picked, errors[np.argsort(-residual[errors], kind="stable")])


def crops(scores: Scores, rows: Rows) -> list[Box | None]:
    """Return the windows that the network saw of some rows of the scores, as fractions of the image; None where unknown."""
    if not set(CROP) <= set(scores.table.column_names):
        return [None] * len(rows)
    corners = scores.table.select(CROP).take(pa.array(rows)).to_pylist()
    return [
        None if None in row.values() else (row[CROP[0]], row[CROP[1]], row[CROP[2]], row[CROP[3]]) for row in corners
    ]


def read_images(
    manifest: pa.Table, image_ids: Sequence[str], resize_size: int, image_size: int, seen: Sequence[Box | None]
) -> list[Seen | None]:
    """Read some images of an archive at the page's size, and measure the quality of the files.

    Args:
        manifest: of the archive.
        image_ids: n names in it.
        resize_size: of the model's preprocessing.
        image_size: of the model's preprocessing.
        seen: what the network saw of each, from `crops`.

    Returns:
        n images; None where the file is no longer readable.
    """
    place = pc.index_in(pa.array(image_ids, pa.string()), value_set=manifest["image_id"].combine_chunks())
    wanted = (
        "image_id",
        "uri",
        "member",
        "frame",
        "width",
        "height",
        "shape_width",
        "shape_height",
        "lung_quality",
        "lung_mask",
    )
    named = manifest.select([name for name in wanted if name in manifest.column_names]).take(place)
    places = zip(*(named[name].to_pylist() for name in ("uri", "member", "frame")), strict=True)
    base = round(DISPLAY_SIZE * resize_size / image_size)

    def read(
        place: tuple[str, str | None, int | None], shape: Shape, window: Box | None, mask: NDArray[np.uint8] | None
    ) -> Seen | None:
        uri, member, frame = place
        try:
            data = read_image(uri, member)
            grey = decode_image(data, min_size=2 * DISPLAY_SIZE, frame=frame or 0)
        except (PneumoError, OSError):
            return None
        quality = sharpness(grey), contrast(grey)
        if window is None:
            return Seen(seen_by_network(grey, base, DISPLAY_SIZE), *quality)
        whole = window_of("pad", shape, None)
        image = framed(resize_grey(grey, 2 * DISPLAY_SIZE), whole, DISPLAY_SIZE)
        lungs = None if mask is None else _framed_lungs(lungs_of(mask > 0), whole)
        return Seen(image, *quality, in_window(window, whole), lungs)

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(read, places, shapes(named), seen, lung_masks(named)))


def _framed_lungs(lungs: Lungs, window: Box) -> Lungs:
    right, left = (
        None if lung is None else framed(lung.astype(np.uint8) * np.uint8(255), window, DISPLAY_SIZE) >= 128
        for lung in (lungs.right, lungs.left)
    )
    return Lungs(right, left, lungs.quality)


def _each_once(*parts: Rows) -> Rows:
    joined = np.concatenate(parts)
    _, first = np.unique(joined, return_index=True)
    return joined[np.sort(first)]
