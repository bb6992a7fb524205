"""Stored values to uint8 grey: the grayscale pipeline of PS3.3 C.7.6.3 and C.11, and colour to luma.

stored values -> modality LUT or rescale -> VOI LUT or window -> inversion -> 8 bit. All of it maps one stored value to
one grey level, so it is worked out once per level that occurs (at most 65,536 for 16 bits) and looked up per pixel.
What cannot be used is left out, and noted.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

from pneumo_ray.images.decode_errors import CorruptImageError, UnsupportedSyntaxError
from pneumo_ray.images.dicom_elements import (
    is_unreadable,
    is_usable,
    read_items,
    read_number,
    read_text,
    read_words,
    scopes,
    signed_word,
)
from pneumo_ray.images.dicom_luts import palette_to_rgb, read_lut
from pneumo_ray.images.dicom_pixels import StoredFrame
from pneumo_ray.images.grey_levels import apply_window, count_levels, look_up, split_levels, stretch, to_uint8

FLAT_WINDOW = "window_left_one_grey"
BAD_WINDOW = "window_unreadable"
BAD_VOI_LUT = "voi_lut_unreadable"
BAD_RESCALE = "rescale_unreadable"
BAD_MODALITY_LUT = "modality_lut_unreadable"
"""Why an element of the file takes no part in its grey."""


def monochrome_to_grey(stored: StoredFrame, dataset: Dataset, frame: int) -> tuple[np.ndarray, list[str]]:
    """Run the grayscale pipeline on the levels of a frame and look each pixel up.

    Args:
        stored: of photometric interpretation MONOCHROME1 or MONOCHROME2.
        dataset: the object.
        frame: counted from 0.

    Returns:
        uint8 [H, W], and what of the file was left out.

    Raises:
        CorruptImageError: if the rescale or the modality LUT leaves one flat grey.
    """
    notes: list[str] = []
    levels, index = split_levels(stored.pixels)
    is_padding = _padding(levels, stored, dataset)
    values, value_range = _modality_values(levels, stored, dataset, frame, notes)
    counts = None if is_padding is None else count_levels(index, len(levels)) * ~is_padding
    if counts is not None and not counts.any():
        is_padding = counts = None
    unit = None
    for candidate in _voi_units(values, value_range, dataset, frame, notes):
        if _may_be_flat(candidate, counts):
            counts = count_levels(index, len(levels)) if counts is None else counts
            occurs = counts > 0
            if np.ptp(to_uint8(candidate)[occurs]) == 0 and np.ptp(values[occurs]) > 0:
                notes.append(FLAT_WINDOW)
                continue
        unit = candidate
        break
    if unit is None and values is levels and stored.bits == 8 and not stored.is_signed:
        unit = np.clip(levels / 255.0, 0.0, 1.0)
    if unit is None:
        unit = stretch(values, count_levels(index, len(levels)) if counts is None else counts)
    grey = to_uint8(unit)
    if stored.photometric == "MONOCHROME1" or "INVERSE" in read_text(dataset, "PresentationLUTShape"):
        grey = 255 - grey
    if is_padding is not None:
        grey[is_padding] = 0
    return look_up(grey, index), notes


def colour_to_grey(stored: StoredFrame, dataset: Dataset) -> np.ndarray:
    """Return the ITU-R 601 luma of a palette or colour frame, uint8 [H, W].

    Raises:
        UnsupportedSyntaxError: for a colour space that is not converted.
        CorruptImageError: if the pixels are not in colour.
    """
    pixels, bits = stored.pixels, stored.bits
    if stored.photometric == "PALETTE COLOR":
        pixels, bits = _palette_rgb(stored, dataset), 8
    elif stored.photometric != "RGB":
        raise UnsupportedSyntaxError(
            "the DICOM's photometric interpretation is not supported; export it as MONOCHROME2 or RGB"
        )
    if pixels.ndim != 3 or pixels.dtype.kind != "u":
        raise CorruptImageError("the DICOM declares colour but its pixels have none; export it again")
    rgb = np.right_shift(pixels[:, :, :3], max(bits - 8, 0)).astype(np.uint8)
    return np.array(Image.fromarray(rgb).convert("L"))


def _palette_rgb(stored: StoredFrame, dataset: Dataset) -> np.ndarray:
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        rgb: np.ndarray | None = apply_color_lut(stored.pixels, dataset)
        if rgb is not None and rgb.dtype.itemsize > 1:
            rgb = (rgb >> 8).astype(np.uint8)
    else:
        rgb = palette_to_rgb(stored.pixels, dataset, signed=stored.is_signed, little=_is_little_endian(dataset))
    if rgb is None:
        raise CorruptImageError("the DICOM's palette is missing or cut; export it again")
    return rgb


def _modality_values(
    levels: np.ndarray, stored: StoredFrame, dataset: Dataset, frame: int, notes: list[str]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the value of each level behind the modality LUT or rescale, and the range that values may have."""
    for item in read_items(dataset, "ModalityLUTSequence")[:1]:
        lut = read_lut(item, signed=stored.is_signed, little=_is_little_endian(dataset))
        if lut is None:
            if len(item):
                notes.append(BAD_MODALITY_LUT)
            continue
        values = lut(levels)
        if len(levels) > 1 and np.ptp(values) == 0:
            raise CorruptImageError("the DICOM's modality LUT leaves one flat grey; export it again")
        return values, (0.0, float(values.max()))
    for scope in scopes(dataset, frame, "PixelValueTransformationSequence"):
        slope, intercept = read_number(scope, "RescaleSlope"), read_number(scope, "RescaleIntercept")
        if is_unreadable(scope, "RescaleSlope") or is_unreadable(scope, "RescaleIntercept"):
            notes.append(BAD_RESCALE)
        if slope is None or intercept is None:
            continue
        if (slope, intercept) == (1.0, 0.0):
            break
        with np.errstate(over="ignore", invalid="ignore"):
            values = levels * slope + intercept
            ends = np.array(stored.value_range) * slope + intercept
        if not np.isfinite(values).all() or not slope:  # the result would be one constant grey
            raise CorruptImageError("the DICOM's rescale slope or intercept is not a usable number; export it again")
        return values, (float(ends.min()), float(ends.max()))
    return levels, stored.value_range


def _voi_units(
    values: np.ndarray, value_range: tuple[float, float], dataset: Dataset, frame: int, notes: list[str]
) -> Iterator[np.ndarray]:
    """Yield 0 .. 1 of each level by the first VOI LUT and the first window, those of the frame before those of the object."""
    for scope in scopes(dataset, frame, "FrameVOILUTSequence"):
        for item in read_items(scope, "VOILUTSequence")[:1]:
            lut = read_lut(item, signed=value_range[0] < 0, little=_is_little_endian(dataset))
            if lut is not None:
                yield lut.unit(values)
            elif "LUTDescriptor" in item or "LUTData" in item:
                notes.append(BAD_VOI_LUT)
        window = _window_of(scope)
        if window is not None:
            yield apply_window(values, *window)
        elif is_unreadable(scope, "WindowCenter") or is_unreadable(scope, "WindowWidth"):
            notes.append(BAD_WINDOW)


def _window_of(scope: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, or None where there is none that can be used."""
    function = (read_text(scope, "VOILUTFunction") or ["LINEAR"])[0]
    center, width = read_number(scope, "WindowCenter"), read_number(scope, "WindowWidth")
    if center is None or width is None or not is_usable(center, width):
        return None
    smallest = 1.0 if function == "LINEAR" else np.finfo(float).tiny
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width < smallest:
        return None
    return center, width, function


def _may_be_flat(unit: np.ndarray, counts: np.ndarray | None) -> bool:
    """Whether the levels may all come out as one grey: cheaply, by the first and the last that occur."""
    occurring = np.array([0, -1]) if counts is None else np.flatnonzero(counts)[[0, -1]]
    first, last = to_uint8(unit[occurring])
    return bool(first == last)


def _padding(levels: np.ndarray, stored: StoredFrame, dataset: Dataset) -> np.ndarray | None:
    """Return which levels are padding (PS3.3 C.7.5.1.1.2), bool [K]; None where no level is."""
    little = _is_little_endian(dataset)
    words = [read_words(dataset, f"PixelPadding{name}", is_little_endian=little) for name in ("Value", "RangeLimit")]
    ends = [_sample(int(found[0]), stored) for found in words if found is not None]
    if words[0] is None:
        return None
    is_padding = (levels >= min(ends)) & (levels <= max(ends))
    return is_padding if is_padding.any() else None


def _sample(word: int, stored: StoredFrame) -> int:
    """Return a word as a sample of the frame: of its sign, and of its bits where it does not fit."""
    value = signed_word(word) if stored.is_signed else word
    low, high = stored.value_range
    return value if low <= value <= high else (value - low) % (high - low + 1) + low


def _is_little_endian(dataset: Dataset) -> bool:
    return bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)
