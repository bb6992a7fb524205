"""Streams inside a DICOM file: what a codestream is, and how much it would grow to, asked before a library unpacks it."""

import zlib
from io import BytesIO
from typing import NamedTuple

from pydicom.filereader import read_dataset as read_elements
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from pneumo_ray.images.decode_errors import (
    MAX_SAMPLES,
    CorruptImageError,
    ImageTooLargeError,
    TruncatedImageError,
    UnsupportedSyntaxError,
    check_scans,
    check_size,
)

_J2K_START, _JP2_START = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
_TILE_PART, _TILE_DATA, _J2K_END = b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_LOSSLESS, _JPEG_LS = 0xC3, 0xF7
_HUFFMAN = (0xC0, 0xC1, 0xC2)
_FRAME_MARKERS = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), _JPEG_LS)


class Codestream(NamedTuple):
    """One compressed frame."""

    data: bytes
    syntax: UID
    """A transfer syntax of its kind, which need not be the one that the file names."""
    precision: int
    """Bits of a sample."""
    is_lossy: bool
    """Its samples may overshoot what was stored."""


def read_codestream(data: bytes) -> Codestream | None:
    """Return the kind of a frame by its bytes alone; None if they are neither JPEG, JPEG-LS nor JPEG 2000.

    Raises:
        ImageTooLargeError: if they claim more than `check_size` and `check_scans` allow; the DICOM header may not.
        TruncatedImageError: if the end marker is missing: CharLS would look for it without end.
        UnsupportedSyntaxError: if it is an arithmetic or hierarchical JPEG.
        CorruptImageError: if it has no frame header.
    """
    if data.startswith((_J2K_START, _JP2_START)):
        return _read_jpeg2000(data[max(data.find(_J2K_START), 0) :])
    if data.startswith(b"\xff\xd8"):
        return _read_jpeg(data)
    return None


def _read_jpeg2000(data: bytes) -> Codestream:
    """Read SIZ, in which Xsiz, Ysiz, XOsiz, YOsiz begin at byte 8, the components at 40 and the first depth at 42."""
    x1, y1, x0, y0 = (int.from_bytes(data[k : k + 4], "big") for k in (8, 12, 16, 20))
    check_size(x1 - x0, y1 - y0, samples=int.from_bytes(data[40:42], "big"))
    coding = data.find(b"\xff\x52", 0, 4096)  # COD; its byte 13 is 0 for the wavelet that rounds
    is_lossy = coding >= 0 and data[coding + 13 : coding + 14] == b"\x00"
    precision = (data[42] & 0x7F) + 1 if len(data) > 42 else 0
    return Codestream(_without_afterword(data), JPEG2000Lossless, precision, is_lossy)


def _without_afterword(data: bytes) -> bytes:
    """Cut what stands between the last tile-part and the end marker: a comment there stops OpenJPEG (T.800 A.4.4)."""
    position = data.find(_TILE_PART)
    while position >= 0 and data[position : position + 2] == _TILE_PART:
        length = int.from_bytes(data[position + 6 : position + 10], "big")
        if length < 14 or position + length > len(data):  # 0 is "to the end", and what is cut is OpenJPEG's to refuse
            return data
        position += length
    if position < 0 or data[position : position + 2] in (_J2K_END, b"", b"\xff"):
        return data
    return data[:position] + _J2K_END if data[position : position + 1] == b"\xff" else data


def _read_jpeg(data: bytes) -> Codestream:
    check_scans(data)
    position = 2
    while data[position : position + 1] == b"\xff":
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(data[position + k : position + k + 2], "big") for k in (5, 7))
            check_size(width, height, samples=data[position + 9])
            if b"\xff\xd9" not in data[-64:]:
                raise TruncatedImageError("the JPEG in the DICOM file ends early; copy it again from its source")
            precision, components = data[position + 4], data[position + 9]
            return Codestream(data, _syntax_of(marker, precision, components), precision, marker in _HUFFMAN)
        position += 2 + length
    raise CorruptImageError("the JPEG in the DICOM file has no frame header; export it again")


def _syntax_of(marker: int, precision: int, components: int) -> UID:
    if marker in _HUFFMAN and precision == 8:
        return JPEGBaseline8Bit
    if marker in _HUFFMAN and components == 1:
        return JPEGExtended12Bit
    if marker == _LOSSLESS:
        return JPEGLosslessSV1
    if marker == _JPEG_LS:
        return JPEGLSLossless
    raise UnsupportedSyntaxError(
        "the JPEG in the DICOM file is of a process without a decoder (arithmetic, hierarchical, or colour of more than "
        "8 bits); convert the file to Explicit VR Little Endian"
    )


def check_inflated_size(data: bytes, start: int) -> None:
    """Refuse a deflated dataset that would grow beyond the limit; pydicom inflates it in one piece.

    Args:
        data: the whole file.
        start: where its file meta information begins.

    Raises:
        ImageTooLargeError: above two bytes for each of `MAX_SAMPLES`.
    """
    if DeflatedExplicitVRLittleEndian.encode() not in data[:4096]:
        return
    stream = BytesIO(data)
    stream.seek(start)
    read_elements(
        stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _vr, _length: tag.group != 2
    )
    inflater, rest, size = zlib.decompressobj(-zlib.MAX_WBITS), stream.read(), 0
    while rest and not inflater.eof:
        size += len(inflater.decompress(rest, 1 << 24))
        rest = inflater.unconsumed_tail
        if size > 2 * MAX_SAMPLES:
            raise ImageTooLargeError("the deflated DICOM file grows beyond the limit; export it uncompressed")
