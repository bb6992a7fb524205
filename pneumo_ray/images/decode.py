"""Bytes of a JPEG, PNG, TIFF, WebP or DICOM file -> uint8 [H, W] grey, or an error that names the cause.

The format is determined by its magic number; only the Pillow plugin of this format, or pydicom, is used.
A JPEG may be decoded at 1/2, 1/4 or 1/8 size inside its inverse DCT (libjpeg's scaling), which is where the time goes.
"""

from dataclasses import dataclass, field
from io import BytesIO

import numpy as np

# Importing the four plugins here keeps Image.open from loading all the others.
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from pneumo_ray.errors import DecodeError
from pneumo_ray.images import dicom
from pneumo_ray.images.decode_errors import (
    DEEP_SAMPLES,
    MAX_FRAMES,
    MAX_SAMPLES,
    CorruptImageError,
    EmptyFileError,
    ImageTooLargeError,
    NoPixelsError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedSyntaxError,
    WrongModalityError,
    check_frame,
    check_scans,
    check_size,
    named_errors,
)
from pneumo_ray.images.deep_colour import deep_luma, is_deep_colour
from pneumo_ray.images.dicom import Decoded
from pneumo_ray.images.dicom_person import NOBODY, Person, read_person
from pneumo_ray.images.grey_levels import robust_scale
from pneumo_ray.images.tiff_pages import pages_of

__all__ = [
    "MAX_FRAMES",
    "MAX_SAMPLES",
    "CorruptImageError",
    "DecodeError",
    "Decoded",
    "EmptyFileError",
    "ImageInfo",
    "ImageTooLargeError",
    "NoPixelsError",
    "NotAnImageError",
    "TruncatedImageError",
    "UnsupportedSyntaxError",
    "WrongModalityError",
    "decode_image",
    "decode_with_note",
    "format_of",
    "inspect_image",
]


@dataclass(frozen=True)
class ImageInfo:
    """Facts from the header of an image; no pixel is decoded for them, except for pages of a TIFF that may be copies."""

    width: int
    """Columns of the upright image, in pixels (of the first image, for a TIFF)."""
    height: int
    """Rows of the upright image, in pixels."""
    mode: str
    """Pillow's mode ("L", "RGB", "CMYK", "I;16"), or the photometric interpretation of a DICOM."""
    format: str
    """ "JPEG", "PNG", "TIFF", "WEBP" or "DICOM"."""
    frames: int
    """Frames of a DICOM or pages of a TIFF, without thumbnails (`tiff_pages`); 1 for the rest."""
    patient_key: str | None = field(default=None, repr=False)
    """The DICOM PatientID, or None. An identifier: hash it, never write or log it."""
    person: Person = NOBODY
    """Age, sex, view position and manufacturer of a DICOM; nothing of other formats."""


def decode_image(data: bytes, *, min_size: int | None = None, frame: int = 0) -> np.ndarray:
    """Decode one image to grey.

    Colour becomes ITU-R 601 luma, transparency is laid over black, 16 and 32-bit images are scaled by
    `grey_levels.robust_scale`, EXIF orientation is applied, and a DICOM goes through `dicom.frame_to_grey`.

    A JPEG or TIFF must be complete, the end marker of a JPEG included. A PNG whose pixels are all there but
    whose last chunk is missing still decodes. A JPEG that lost its middle but kept its end marker cannot be distinguished from
    an intact one: libjpeg fills the gap with grey.

    Args:
        data: the whole file.
        min_size: allows a JPEG to come out at 1/2, 1/4 or 1/8 of its size, as long as both sides keep at least
            this many pixels (a side that is smaller to begin with stays as it is). None decodes in full.
        frame: the DICOM frame, or the TIFF page among those that are no thumbnails, counted from 0.

    Returns:
        uint8 [H, W], C-contiguous and writable.

    Raises:
        DecodeError: one subclass per cause, whatever the bytes are.
        ValueError: if `min_size` is not positive.
    """
    if min_size is not None and min_size < 1:
        raise ValueError(f"min_size must be a positive number of pixels, got {min_size}")
    file_format = _sniff(data)
    if file_format == "DICOM":
        return dicom.decode_dicom(data, frame).pixels
    with named_errors(file_format, cut_short=_ends_early(data, file_format)):
        image = _open(data, file_format)
        pages = pages_of(image, lambda page: _page_to_grey(page, data, page.tell()))
        check_frame(frame, len(pages))
        if pages[frame]:
            image.seek(pages[frame])
            _check_size(image)
        orientation = _orientation(image)
        if file_format == "JPEG":
            # Counting takes 0.2 ms per file, and libjpeg reads only one scan of a sequential grey JPEG.
            if image.mode != "L" or "progressive" in image.info:
                check_scans(data)
            # Mode "L" makes libjpeg return the luma plane itself, at full size too.
            image.draft("L", (min_size, min_size) if min_size else image.size)
        grey = _page_to_grey(image, data, pages[frame])
        if orientation in _TRANSPOSE:
            grey = np.array(Image.fromarray(grey).transpose(_TRANSPOSE[orientation]))
        return grey


def decode_with_note(data: bytes, *, min_size: int | None = None, frame: int = 0) -> Decoded:
    """Decode one image as `decode_image` does; also return what of its file took no part in it.

    Raises:
        DecodeError: one subclass per cause, whatever the bytes are.
    """
    if _sniff(data) == "DICOM":
        return dicom.decode_dicom(data, frame)
    return Decoded(decode_image(data, min_size=min_size, frame=frame))


def inspect_image(data: bytes) -> ImageInfo:
    """Read the header of an image.

    Files that are unusable by their header (too large, not a radiograph, no image) raise here as they do in
    `decode_image`; damaged pixels are detected only there.

    Args:
        data: the whole file.

    Returns:
        Size, mode, format, frames, the patient's key, and what is known of the patient without naming one.

    Raises:
        DecodeError: one subclass per cause, whatever the bytes are.
    """
    file_format = _sniff(data)
    if file_format == "DICOM":
        with named_errors("DICOM"):
            dataset = dicom.read_dataset(data, header_only=True)
            dicom.check_modality(dataset)
            height, width, frames = dicom.image_size(dataset)
            return ImageInfo(
                width=width,
                height=height,
                mode=dicom.photometric_of(dataset),
                format="DICOM",
                frames=frames,
                patient_key=str(dataset.get("PatientID") or "").strip() or None,
                person=read_person(dataset),
            )
    with named_errors(file_format, cut_short=_ends_early(data, file_format)):
        image = _open(data, file_format)
        pages = pages_of(image, lambda page: _page_to_grey(page, data, page.tell()))
        if pages[0]:
            image.seek(pages[0])
            _check_size(image)
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        return ImageInfo(width, height, image.mode, file_format, len(pages))


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_PHOTOMETRIC_TAG = 262
_MIN_IS_WHITE = 0


def format_of(data: bytes) -> str | None:
    """Name the format by its magic number, or None; DICOM first, because its preamble may hold the magic of a TIFF.

    Args:
        data: the file, or at least its first 132 bytes.
    """
    if dicom.has_preamble(data):
        return "DICOM"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if dicom.starts_like_dataset(data):
        return "DICOM"
    return None


def _sniff(data: bytes) -> str:
    if not data:
        raise EmptyFileError("the file is empty; copy it again from its source")
    if (found := format_of(data)) is None:
        raise NotAnImageError(
            "the bytes are not a JPEG, PNG, TIFF, WebP or DICOM file; convert the file or leave it out of the archive"
        )
    return found


def _open(data: bytes, file_format: str) -> Image.Image:
    image = Image.open(BytesIO(data), formats=(file_format,))
    _check_size(image)
    return image


def _check_size(image: Image.Image) -> None:
    """Check the limit against the memory that Pillow allocates: all bands at once."""
    samples = DEEP_SAMPLES if image.mode in ("I", "F") else len(image.getbands())
    check_size(image.width, image.height, samples)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; invalid EXIF counts as upright.

    Only EXIF before the pixels counts, so that header and image agree. Pillow applies the orientation of a TIFF itself.
    """
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _page_to_grey(image: Image.Image, data: bytes, page: int) -> np.ndarray:
    """Return the page that an image is at as uint8 [H, W] luma."""
    _check_size(image)
    if is_deep_colour(image, data):
        return robust_scale(deep_luma(image, data, page))
    return _to_grey(image)


def _to_grey(image: Image.Image) -> np.ndarray:
    """Return the pixels as uint8 [H, W] luma."""
    if image.mode == "L" and not image.has_transparency_data:
        return np.array(image)
    if image.mode == "F" or image.mode.startswith("I"):
        grey = robust_scale(np.asarray(image))
        # Pillow inverts a MinIsWhite TIFF of up to 8 bits, but not of 16.
        is_negative = isinstance(image, TiffImagePlugin.TiffImageFile) and (
            image.tag_v2.get(_PHOTOMETRIC_TAG) == _MIN_IS_WHITE
        )
        return 255 - grey if is_negative else grey
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        luma = np.asarray(rgba.convert("L"), dtype=np.uint16)
        alpha = np.asarray(rgba.getchannel("A"), dtype=np.uint16)
        return ((luma * alpha + 127) // 255).astype(np.uint8)
    return np.array(image.convert("L"))


def _ends_early(data: bytes, file_format: str) -> bool:
    """Whether the file ends early; called when decoding fails, to distinguish a truncated file from a corrupt one."""
    if file_format == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    if file_format == "PNG":
        return b"IEND" not in data[-64:]
    if file_format == "WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    # A TIFF is truncated if its first directory, which most writers put last, is beyond the end.
    offset = data[8:16] if b"+" in data[2:4] else data[4:8]
    return int.from_bytes(offset, "little" if data[:1] == b"I" else "big") + 2 > len(data)
