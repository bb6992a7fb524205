"""Find the lungs of an archive's images while it is read, and write what is known of them into the columns of a manifest."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.anatomy.lungs import MASK_SIZE, PLAUSIBLE, Lungs, lungs_of
from pneumo_ray.anatomy.masks import Mask, MaskError, decode_mask, encode_mask, read_masks, resize_mask
from pneumo_ray.errors import ManifestError
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.records import Row

Grey = NDArray[np.uint8]

OPTION = "--lungs"
_MOST_BYTES = 1000
_CONTRAST_LIMIT = 2.0
"""Of the second look, as a multiple of a flat histogram's height; a larger one also makes lungs of other dark parts."""
_SAME_SHAPE = 0.02
"""Relative difference of two ratios of width to height that are taken as the same."""


class GivenLungs(NamedTuple):
    """What a table of lungs has of one image."""

    mask: bytes | None
    """PNG over the whole image, in its shape or squashed to a square; None where the table has none."""
    width: float | None = None
    """Of the original image, where the file was squashed."""
    height: float | None = None


def read_given(uri: str, image_ids: list[str], option: str = OPTION) -> list[GivenLungs]:
    """Return what a table has of the lungs of some images, in the order asked for.

    Args:
        uri: as for `read_masks`.
        image_ids: what to look for.
        option: that named it, for messages.

    Raises:
        ManifestError: if it cannot be read, lacks a column, names an image twice, or has none of the images.
    """
    masks = read_masks(uri, image_ids, option)
    is_table = storage.base_name(uri).lower().endswith((".parquet", ".pq"))
    table = storage.read_table(uri) if is_table else None
    if table is None or not {"width", "height"} <= set(table.column_names):
        return [GivenLungs(mask) for mask in masks]
    try:
        sides = [table[name].cast(pa.float32()).to_pylist() for name in ("width", "height")]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ManifestError(f"{option} {uri} has a width or height that is no number") from error
    names = table["image_id"].cast(pa.string()).to_pylist()
    full = dict(zip(names, zip(*sides, strict=True), strict=True))
    base = {name.rsplit("/", 1)[-1]: shape for name, shape in full.items()}
    # A name that two rows share names neither; `read_masks` has taken masks by the same rule.
    unique = len(base) == len(full) and len({name.rsplit("/", 1)[-1] for name in image_ids}) == len(image_ids)

    def shape_of(image_id: str) -> tuple[float | None, float | None]:
        width, height = full.get(image_id) or (unique and base.get(image_id.rsplit("/", 1)[-1])) or (None, None)
        return (width, height) if width and height and width > 0 and height > 0 else (None, None)

    return [GivenLungs(mask, *shape_of(image_id)) for mask, image_id in zip(masks, image_ids, strict=True)]


def given_mask(given: GivenLungs, image_id: str, width: int, height: int, option: str = OPTION) -> Mask:
    """Return a given mask, bool [MASK_SIZE, MASK_SIZE].

    Args:
        given: with a mask.
        image_id: whose it is.
        width: of the image's file, in pixels.
        height: likewise.
        option: that named the table, for messages.

    Raises:
        ManifestError: if it is damaged, or has the shape of neither the image nor a square.
    """
    assert given.mask is not None
    try:
        mask = decode_mask(given.mask)
    except MaskError as error:
        raise ManifestError(f"the mask of {image_id} in {option} {error}; write it again, or leave it out") from error
    rows, columns = mask.shape
    ratios = [1.0, width / height]
    if given.width and given.height:
        ratios.append(given.width / given.height)
    tolerance = _SAME_SHAPE + 1 / min(rows, columns)
    if not any(abs(columns / rows / ratio - 1) <= tolerance for ratio in ratios):
        raise ManifestError(
            f"the mask of {image_id} in {option} has {columns} x {rows} pixels and the image {width} x {height}; a mask covers the "
            "whole image, in its shape or squashed to a square"
        )
    return np.asarray(resize_mask(mask) >= 128)


def segmenter_input(square: Grey) -> Grey:
    """Return an image squashed to a square, uint8 [C, C], as the segmenter takes it, uint8 [MASK_SIZE, MASK_SIZE]."""
    return resize_grey(square, MASK_SIZE)


class FoundLungs(NamedTuple):
    """What the segmenter has found in an image."""

    mask: Mask
    """bool [MASK_SIZE, MASK_SIZE], as the network has it."""
    lungs: Lungs
    """What follows from it."""


def find_lungs(images: Sequence[Grey], uri: str | None = None) -> list[FoundLungs]:
    """Return where the lungs of images are, by a segmenter.

    The lungs of a faint film are missed where bright soft tissue takes most of its contrast. So an image without
    plausible lungs is looked at once more, with its local contrast raised; what is found then counts if it is plausible.

    Args:
        images: n of `segmenter_input`.
        uri: of a segmenter that jobs/lungs.py wrote; None takes that of this installation.

    Raises:
        ModelError: if the segmenter is missing or damaged.
    """
    from pneumo_ray.anatomy import segmenter as segmenters  # brings torch, which only those need who find lungs

    if not len(images):
        return []
    segmenter = segmenters.own_segmenter() if uri is None else segmenters.trained_segmenter(uri)
    found = [FoundLungs(mask, lungs_of(mask)) for mask in segmenter.find(np.stack(images))]
    doubtful = [number for number, (_, lungs) in enumerate(found) if lungs.quality != PLAUSIBLE]
    if doubtful:
        again = segmenter.find(np.stack([_with_local_contrast(images[number]) for number in doubtful]))
        for number, mask in zip(doubtful, again, strict=True):
            if (lungs := lungs_of(mask)).quality == PLAUSIBLE:
                found[number] = FoundLungs(mask, lungs)
    return found


def _with_local_contrast(image: Grey) -> Grey:
    """Equalise the histogram in each of 4 x 4 parts, with a limit (CLAHE; Zuiderveld 1994, Graphics Gems IV)."""
    return np.asarray(cv2.createCLAHE(_CONTRAST_LIMIT, (4, 4)).apply(image))


def lung_values(mask: Mask, lungs: Lungs | None = None) -> Row:
    """Return the columns of one image, `LUNG_FIELDS`, from its mask, bool [H, W], over the whole image.

    A mask that is not plausible is kept as it is, so that somebody can look at it, unless it is too ragged to be small.

    Args:
        mask: as it was given or found.
        lungs: of it, where they are known.
    """
    lungs = lungs or lungs_of(mask)
    kept = mask if lungs.mask is None else lungs.mask
    png = encode_mask(kept)
    return {
        "lung_box": lungs.box,
        "lung_right_box": lungs.right_box,
        "lung_left_box": lungs.left_box,
        "lung_area": lungs.area,
        "lung_quality": lungs.quality,
        "lung_mask": png if len(png) < _MOST_BYTES else None,
        "view": lungs.view,
    }
