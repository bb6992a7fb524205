"""What a manifest knows of the lungs of its images, and which part of an image the network is given because of it.

All of its columns may be missing or null: lungs that were not looked for, rows that failed, masks that cannot be lungs.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray.anatomy.masks import MaskError, decode_mask
from pneumo_ray.errors import ManifestError
from pneumo_ray.images.fit import MARGIN, Fit
from pneumo_ray.images.framing import Box, Shape, window_of

Grey = NDArray[np.uint8]

PLAUSIBLE = "plausible"
"""The only value of `lung_quality` whose lungs are used."""
SEGMENTER = "segmenter"
"""Key of a manifest's metadata: hash of the segmenter that found its lungs; missing where a table gave them."""
BOX, QUALITY, MASK = "lung_box", "lung_quality", "lung_mask"
_SMALLEST_BOX = 0.05
"""Width and height of a box of two lungs, at least, as fractions of the image's; what is smaller was not written by us."""
_TRUE_SHAPE = (("shape_width", "shape_height"), ("width", "height"))
"""Columns of the true shape; those of the table of lungs come before those of the file, which may be squashed."""


def has_lungs(rows: pa.Table) -> NDArray[np.bool_]:
    """Return of manifest rows whether their lungs were found and are plausible, bool [n]."""
    if QUALITY not in rows.column_names or MASK not in rows.column_names:
        return np.zeros(len(rows), bool)
    found = pc.and_(pc.fill_null(pc.equal(rows[QUALITY], PLAUSIBLE), False), pc.is_valid(rows[MASK]))
    return np.asarray(found.to_numpy(zero_copy_only=False), bool)


def segmenter_of(manifest: pa.Table) -> str | None:
    """Return the hash of the segmenter that found the lungs of a manifest; None where it does not say."""
    return (manifest.schema.metadata or {}).get(SEGMENTER.encode(), b"").decode() or None


def lung_fingerprint(table: pa.Table) -> str | None:
    """Return a hash of the lungs and true shapes in a manifest, in order; None where it has none."""
    names = [name for name in (BOX, QUALITY, MASK, *_TRUE_SHAPE[0]) if name in table.column_names]
    if not names:
        return None
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0".encode())
        for value in table[name].to_pylist():
            digest.update(value if isinstance(value, bytes) else f"{value}\0".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def lung_masks(rows: pa.Table) -> list[Grey | None]:
    """Return the lungs of manifest rows, uint8 [M, M] of 0 and 255 over the whole image squashed; None where there are none.

    Raises:
        ManifestError: naming an image whose mask cannot be read.
    """
    found = has_lungs(rows)
    if not found.any():
        return [None] * len(rows)
    masks: list[Grey | None] = []
    for name, png, ok in zip(rows["image_id"].to_pylist(), rows[MASK].to_pylist(), found, strict=True):
        try:
            masks.append(decode_mask(png).astype(np.uint8) * 255 if ok else None)
        except MaskError as error:
            raise ManifestError(f"the manifest's lung_mask of {name} is damaged; run jobs/prepare.py again") from error
    return masks


def lung_boxes(rows: pa.Table) -> list[Box | None]:
    """Return the box of the lungs of manifest rows, as fractions of the image; None where there are none."""
    if BOX not in rows.column_names or QUALITY not in rows.column_names:
        return [None] * len(rows)
    pairs = zip(rows[BOX].to_pylist(), rows[QUALITY].to_pylist(), strict=True)
    return [_box(box) if quality == PLAUSIBLE else None for box, quality in pairs]


def shapes(rows: pa.Table) -> list[Shape]:
    """Return the true shape of the images of manifest rows; a square where it is not known."""
    columns = [[rows[name].to_pylist() for name in pair] for pair in _TRUE_SHAPE if set(pair) <= set(rows.column_names)]
    return [
        next((s for widths, heights in columns if (s := _shape(widths[i], heights[i]))), Shape(1, 1))
        for i in range(len(rows))
    ]


def windows(rows: pa.Table, fit: Fit, margin: float = MARGIN) -> list[Box | None]:
    """Return which part of each image the network's input shows.

    Args:
        rows: n manifest rows.
        fit: how images are fitted; where the lungs are not plausible, the whole image is shown.
        margin: around the lungs, as a share of their box's longer true side.

    Returns:
        A window for each row; None for `squash`, whose input is the centre of the resized image.
    """
    if fit == "squash":
        return [None] * len(rows)
    return [window_of(fit, shape, box, margin) for shape, box in zip(shapes(rows), lung_boxes(rows), strict=True)]


def _box(values: Sequence[float | None] | None) -> Box | None:
    known = [v for v in values or () if isinstance(v, float) and math.isfinite(v)]
    if values is None or len(values) != 4 or len(known) < 4:
        return None
    x0, y0, x1, y1 = known
    inside = min(x0, y0) >= -0.01 and max(x1, y1) <= 1.01
    return (x0, y0, x1, y1) if inside and min(x1 - x0, y1 - y0) >= _SMALLEST_BOX else None


def _shape(width: float | None, height: float | None) -> Shape | None:
    known = [float(side) for side in (width, height) if isinstance(side, int | float) and 0 < side < math.inf]
    return Shape(known[0], known[1]) if len(known) == 2 else None
