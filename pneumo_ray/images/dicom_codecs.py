"""imagecodecs (BSD) as a decoding plugin of pydicom: JPEG Lossless, 12-bit JPEG, JPEG-LS, JPEG 2000 and HTJ2K.

It wraps libjpeg-turbo, CharLS and OpenJPEG. Of the permissive decoders it is the fastest, and the only one that no
damaged stream has brought down; GDCM dies of three in a hundred. The names below are those that pydicom asks a plugin for.
"""

import imagecodecs
import numpy as np
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

DECODER_DEPENDENCIES = dict.fromkeys(
    (JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless), ("imagecodecs",)
)


def is_available(uid: str) -> bool:
    """Whether there is a decoder for a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(src: bytes, runner: DecodeRunner) -> bytearray:
    """Return the samples of a frame in the machine's byte order, and correct what the runner believes of them.

    Args:
        src: the codestream.
        runner: facts of the header. A lossy codec may overshoot the bits that are stored, which would be cut off as if
            they were none of the sample, so that white turned black; they are clipped here.

    Raises:
        ValueError: if the frame is not of the size in the header.
    """
    if runner.transfer_syntax == JPEG2000Lossless:
        pixels = imagecodecs.jpeg2k_decode(src, numthreads=1)
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # undone by the codec
            runner.set_option("photometric_interpretation", "RGB")
    elif runner.transfer_syntax == JPEGLSLossless:
        pixels = imagecodecs.jpegls_decode(src)
    else:
        pixels = imagecodecs.jpeg8_decode(src)
    shape = (runner.rows, runner.columns, runner.samples_per_pixel)
    if pixels.reshape(*pixels.shape[:2], -1).shape != shape:
        raise ValueError("the codestream is not of the size in the header")
    if runner.get_option("is_lossy") and pixels.dtype.kind == "u" and runner.pixel_representation == 0:
        pixels = np.minimum(pixels, np.array((1 << runner.bits_stored) - 1, dtype=np.uint64).astype(pixels.dtype))
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    if pixels.ndim == 3:
        runner.set_option("planar_configuration", 0)
    return bytearray(np.ascontiguousarray(pixels))
