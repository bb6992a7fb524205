"""PNG and TIFF with 16 bits in each of several channels, which Pillow opens with the upper 8 of them.

A radiograph of 12 bits that was saved as colour would keep 16 grey levels of its 4,096. OpenCV keeps all bits.
"""

import cv2
import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from pneumo_ray.images.decode_errors import CorruptImageError, UnsupportedSyntaxError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 284, 338, 339
_RGB, _ASSOCIATED_ALPHA, _UNSIGNED = 2, 1, 1
_PNG_COLOUR_TYPES = (2, 4, 6)
_PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
_ROWS = 64
_LUMA = np.array([0.114, 0.587, 0.299], np.float32)
"""ITU-R 601, in OpenCV's order blue, green, red."""

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what cannot be read is one sentence of ours


def is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether the page that an image is at has several channels of 16 bits.

    Args:
        image: as Pillow opened it.
        data: the whole file.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[24:25] == b"\x10" and data[25] in _PNG_COLOUR_TYPES  # bit depth and colour type of IHDR
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, ())
        return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8
    return False


def deep_luma(image: Image.Image, data: bytes, page: int) -> np.ndarray:
    """Return the ITU-R 601 luma, laid over black where it is transparent.

    Args:
        image: at the page; is loaded, so that a damaged file fails as every other does.
        data: the whole file.
        page: of a TIFF, from 0.

    Returns:
        uint16 [H, W], turned upright where the file is a TIFF, as Pillow does.

    Raises:
        UnsupportedSyntaxError: for 16-bit colour other than grey or RGB in one plane.
        CorruptImageError: if OpenCV cannot read what Pillow could.
    """
    has_alpha = image.has_transparency_data
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        bits, formats = tags[_BITS_PER_SAMPLE], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
        if (tags.get(_PHOTOMETRIC), tags.get(_PLANAR, 1), set(bits), set(formats)) != (_RGB, 1, {16}, {_UNSIGNED}):
            raise UnsupportedSyntaxError(
                "TIFF files of more than 8 bits and several channels are read as RGB of 16 bits in one plane only; save it as grey"
            )
        has_alpha = has_alpha and tags.get(_EXTRA_SAMPLES, (0,))[0] != _ASSOCIATED_ALPHA  # laid over black already
    image.load()
    if isinstance(image, PngImagePlugin.PngImageFile):
        data = _bare_png(data)
    found: list[np.ndarray] = list(
        cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED, range=(page, page + 1))[1]
    )
    if len(found) != 1 or found[0].dtype != np.uint16 or found[0].ndim != 3 or found[0].shape[1::-1] != image.size:
        raise CorruptImageError(
            "the file's 16-bit colours cannot be decoded; copy it again from its source, or save it as grey"
        )
    return _luma_of(found[0], has_alpha and found[0].shape[2] == 4)


def _bare_png(data: bytes) -> bytes:
    """Return a PNG with the chunks of its pixels alone: OpenCV allocates whatever length any other claims, up to 2 GB."""
    kept, position = [data[:8]], 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            break
        if data[position + 4 : position + 8] in (b"IHDR", b"tRNS", b"IDAT"):
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, _PNG_END])


def _luma_of(pixels: np.ndarray, has_alpha: bool) -> np.ndarray:
    """Return the luma of uint16 [H, W, 3 or 4], some rows at a time: in float32 all of them would take twice the file's."""
    grey = np.empty(pixels.shape[:2], np.uint16)
    for start in range(0, len(pixels), _ROWS):
        rows = pixels[start : start + _ROWS]
        luma = rows[..., :3].astype(np.float32) @ _LUMA
        if has_alpha:
            luma *= rows[..., 3].astype(np.float32) / 65535
        grey[start : start + _ROWS] = np.rint(luma).clip(0, 65535)
    return grey
