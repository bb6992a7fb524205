"""How much a stream inside a DICOM file would grow to, asked before a library unpacks it in one piece."""

import zlib
from io import BytesIO

from pydicom.filereader import read_dataset as read_elements
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pneumo_ray.images.decode_errors import MAX_PIXELS, ImageTooLargeError, check_scans, check_size


def check_codestream(stream: bytes) -> None:
    """Refuse an encapsulated JPEG or JPEG 2000 by its own size, which may differ from the DICOM header's.

    Raises:
        ImageTooLargeError: above the limits of `check_size` and `check_scans`.
    """
    start = stream.find(b"\xff\x4f\xff\x51", 0, 1024)
    if start >= 0:  # JPEG 2000: SIZ holds Xsiz, Ysiz, XOsiz, YOsiz from byte 8, and the components at 40
        x1, y1, x0, y0 = (int.from_bytes(stream[start + k : start + k + 4], "big") for k in (8, 12, 16, 20))
        components = int.from_bytes(stream[start + 40 : start + 42], "big")
        check_size(x1 - x0, y1 - y0, samples=components)
    elif stream.startswith(b"\xff\xd8"):
        check_scans(stream)
        position = 2
        while stream[position : position + 1] == b"\xff":
            marker, length = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4], "big")
            if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
                height, width = (int.from_bytes(stream[position + k : position + k + 2], "big") for k in (5, 7))
                check_size(width, height, samples=stream[position + 9])
                return
            position += 2 + length


def check_inflated_size(data: bytes, start: int) -> None:
    """Refuse a deflated dataset that would grow beyond the limit; pydicom inflates it in one piece.

    Args:
        data: the whole file.
        start: where its file meta information begins.

    Raises:
        ImageTooLargeError: above two bytes for each of `MAX_PIXELS`.
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
        if size > 2 * MAX_PIXELS:
            raise ImageTooLargeError("the deflated DICOM file grows beyond the limit; export it uncompressed")
