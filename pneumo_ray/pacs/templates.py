"""Many objects of one structure: highdicom makes the first, and the others are filled into what it made.

Most elements of an object are the same in all objects of a job, and highdicom takes several times as long to make them as it
takes to change the others. Pixels, the last element of a file, pass by pydicom, which copies them several times.
"""

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from pneumo_ray.pacs.objects import file_bytes
from pneumo_ray.pacs.writer import file_of
from pneumo_ray.storage import Pieces

_PIXELS = {"B": (0x7FE00010, b"OB"), "H": (0x7FE00010, b"OW"), "f": (0x7FE00008, b"OF")}
"""Tag and VR of pixels, by the character of their type: Pixel Data, or Float Pixel Data."""


class Templates:
    """Objects that were made, by their structure; not for several threads."""

    def __init__(self, limit: int = 64) -> None:
        """Begin without any.

        Args:
            limit: of the structures that are kept, those used last.
        """
        self._limit = limit
        self._made: dict[object, Dataset] = {}

    def file(
        self,
        structure: object,
        make: Callable[[], Dataset],
        fill: Callable[[Dataset], None],
        pixels: NDArray[Any] | None = None,
    ) -> Pieces:
        """Return the file of an object.

        Args:
            structure: what decides which elements it has, the type of its pixels included.
            make: makes it, with its pixels.
            fill: changes an object of the same structure to it, without its pixels.
            pixels: of the object, uint8, uint16 or float32; None for an object without any.
        """
        template = self._made.pop(structure, None)
        if template is None:
            content: Pieces = (file_bytes(make()),)
            template = dcmread(BytesIO(content[0]))
            if pixels is not None:
                del template[_PIXELS[pixels.dtype.char][0]]
        else:
            fill(template)
            content = (file_of(template), *(() if pixels is None else _pixel_element(pixels)))
        self._made[structure] = template
        while len(self._made) > self._limit:
            del self._made[next(iter(self._made))]
        return content


def _pixel_element(pixels: NDArray[Any]) -> tuple[bytes, memoryview, bytes]:
    """Return the element of pixels in Explicit VR Little Endian (PS3.5 7.1.2): its head, its value and its padding."""
    (tag, vr), padding = _PIXELS[pixels.dtype.char], pixels.nbytes % 2
    head = struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, pixels.nbytes + padding)
    value = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    return head, value.data.cast("B"), b"\0" * padding
