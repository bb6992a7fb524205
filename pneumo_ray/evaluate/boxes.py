"""True boxes of findings, from three kinds of tables to one form: fractions of the image.

* The project's own: `image_id`, `x0`, `y0`, `x1`, `y1` (first pixels outside) and, if it has them, `width`, `height` of the
  image; a row is a box.
* RSNA's (stage_2_train_labels.csv, 2018): `patientId` or `image_id`, `x`, `y`, `width`, `height` of the box and, if it has
  them, `image_width`, `image_height`; a row without numbers is an image without a box.
* COCO's JSON: `images` with `id`, `file_name`, `width`, `height`, and `annotations` with `image_id` and `bbox` (x, y, width, height).

All are in pixels. Where a table does not have the size of an image, that of the manifest counts.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.label_merge import rows_meant
from pneumo_ray.data.table_cells import Columns, read_columns
from pneumo_ray.errors import ManifestError
from pneumo_ray.images.framing import Box
from pneumo_ray.records import JsonObject

OPTION = "--boxes"
_OWN, _RSNA = ("x0", "y0", "x1", "y1"), ("x", "y", "width", "height")
_IMAGE_SIZE = ("image_width", "image_height")
_NAMES = ("image_id", "patientid")
_OVERSHOOT = 1.0
"""Pixels by which a box may leave its image, as boxes that are drawn by hand do; it is cut off at the edge."""

Number = float | None


@dataclass(frozen=True)
class _Row:
    """A box as a table has it."""

    name: str
    corners: Box
    """In pixels of the image."""
    size: tuple[Number, Number]
    """Width and height of the image, None where the table has none."""
    place: str
    """Where it stands, for messages: `row 2`."""


def read_boxes(uri: str, manifest: pa.Table) -> dict[str, tuple[Box, ...]]:
    """Return the true boxes of the images of a manifest, as fractions of the image's width and height.

    Args:
        uri: table of boxes, CSV, Parquet, or JSON of COCO.
        manifest: of the archive; a name in the table may be the end of an image's path, without its extension.

    Returns:
        `image_id` of the manifest -> its boxes (x0, y0, x1, y1) within 0 and 1. Images without a box have no entry.

    Raises:
        ManifestError: one sentence, if the table cannot be read or its columns are unknown, a box is none or leaves its
            image, the size of an image is not known, or no box is of an image of the manifest.
    """
    rows = _coco(uri) if storage.base_name(uri).lower().endswith(".json") else _table(uri)
    if not rows:
        raise ManifestError(f"{OPTION} {uri} has no box; give a table with a row for each true box")
    image_ids = manifest["image_id"].to_pylist()
    widths, heights = (manifest[name].to_pylist() for name in ("width", "height"))
    names = list(dict.fromkeys(row.name for row in rows))
    meant = dict(zip(names, rows_meant(names, image_ids), strict=True))
    if unclear := next((row for row in rows if len(meant[row.name]) > 1), None):
        raise ManifestError(
            f"{OPTION} {uri}: the image of {unclear.place} could be several of the manifest; name it by its path in the archive"
        )
    boxes: dict[str, list[Box]] = {}
    foreign = 0
    for row in rows:
        if not meant[row.name]:
            foreign += 1
            continue
        (number,) = meant[row.name]
        boxes.setdefault(image_ids[number], []).append(_fractions(row, widths[number], heights[number], uri))
    if not boxes:
        raise ManifestError(
            f"{OPTION} {uri}: none of its {len(rows):,} boxes is of an image of the manifest; give the boxes of the same archive"
        )
    if foreign:
        log(f"{OPTION} {storage.base_name(uri)}: {foreign:,} of {len(rows):,} boxes are of other images and left out")
    return {name: tuple(found) for name, found in boxes.items()}


def _fractions(row: _Row, width: Number, height: Number, uri: str) -> Box:
    """Return a box as fractions of its image, whose size in the manifest counts where the table has none."""
    width, height = (given or known for given, known in zip(row.size, (width, height), strict=True))
    if not width or not height or min(width, height) <= 0:
        raise ManifestError(
            f"{OPTION} {uri}: neither {row.place} nor the manifest has the size of the image; add columns with its width and height"
        )
    x0, y0, x1, y1 = row.corners
    if not (x0 < x1 and y0 < y1):
        raise ManifestError(f"{OPTION} {uri}: the box of {row.place} has no area; correct or remove it")
    if min(x0, y0) < -_OVERSHOOT or x1 > width + _OVERSHOOT or y1 > height + _OVERSHOOT:
        raise ManifestError(
            f"{OPTION} {uri}: the box of {row.place} leaves its image of {width:g} x {height:g} pixels; give boxes in pixels of "
            "the image, and its width and height if the file in the archive has another size"
        )
    return max(x0 / width, 0.0), max(y0 / height, 0.0), min(x1 / width, 1.0), min(y1 / height, 1.0)


def _table(uri: str) -> list[_Row]:
    found = read_columns(uri, OPTION)
    keys = {name.strip().lower(): place for place, name in reversed(list(enumerate(found.names)))}
    name = next((keys[key] for key in _NAMES if key in keys), None)
    own = all(key in keys for key in _OWN)
    if name is None or not (own or all(key in keys for key in _RSNA)):
        raise ManifestError(
            f"{OPTION} {uri} lacks columns: give image_id, x0, y0, x1, y1 (and width, height of the image), those of RSNA "
            "(patientId, x, y, width, height of the box), or COCO's JSON"
        )
    corners = [_numbers(found, keys[key], uri) for key in (_OWN if own else _RSNA)]
    sides = _RSNA[2:] if own else _IMAGE_SIZE
    sizes = [_numbers(found, keys[key], uri) if key in keys else [None] * len(corners[0]) for key in sides]
    rows = []
    for number, image in enumerate(found.values[name].to_pylist()):
        cells = [column[number] for column in corners]
        box = [cell for cell in cells if cell is not None]
        if not box:  # an image without a finding
            continue
        place = f"row {number + 2}"
        if image is None or len(box) < len(cells):
            raise ManifestError(f"{OPTION} {uri}: {place} lacks its image or a side of its box; fill or remove it")
        rows.append(_Row(str(image), _box(box, own), (sizes[0][number], sizes[1][number]), place))
    return rows


def _box(values: Sequence[float], corners: bool) -> Box:
    a, b, c, d = (float(value) for value in values)
    return (a, b, c, d) if corners else (a, b, a + c, b + d)


def _numbers(found: Columns, place: int, uri: str) -> list[Number]:
    """Return a column as numbers, None where a cell is empty; a cell that is none is not repeated in the message."""
    out: list[Number] = []
    for number, value in enumerate(found.values[place].to_pylist()):
        try:
            one = None if value is None else float(value)
        except (TypeError, ValueError):
            one = math.inf
        if one is not None and math.isinf(one):
            raise ManifestError(
                f"{OPTION} {uri} has no number in row {number + 2} of its column {found.names[place]!r}"
            )
        out.append(None if one is None or math.isnan(one) else one)
    return out


def _coco(uri: str) -> list[_Row]:
    try:
        data = json.loads(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise ManifestError(f"{OPTION} {uri} does not exist") from error
    except ValueError:
        raise ManifestError(f"{OPTION} {uri} is not JSON that can be read") from None
    try:
        images = {one["id"]: one for one in data["images"]}
        return [_annotation(images, one, number, uri) for number, one in enumerate(data["annotations"], 1)]
    except (KeyError, TypeError, AttributeError):
        raise ManifestError(
            f"{OPTION} {uri} is not COCO's JSON: it needs images (id, file_name) and annotations (image_id, bbox)"
        ) from None


def _annotation(images: dict[object, JsonObject], one: JsonObject, number: int, uri: str) -> _Row:
    place = f"annotation {number}"
    if (image := images.get(one["image_id"])) is None:
        raise ManifestError(f"{OPTION} {uri}: {place} is of an image that its list of images lacks")
    values = [*one["bbox"], *(image.get(side) or 1 for side in _RSNA[2:])]
    if len(one["bbox"]) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise ManifestError(f"{OPTION} {uri}: the bbox of {place} is not four numbers in an image with a size")
    return _Row(
        str(image["file_name"]), _box(one["bbox"], corners=False), (image.get("width"), image.get("height")), place
    )
