"""Explicit VR files in which elements have a VR of two blanks or NULs, which pydicom loses the thread on.

pydicom takes such an element for one of implicit VR, whose length has 32 bits, and reads on somewhere in the pixels.
The length has 16 bits (DCMTK, `DcmVR`, "illegal VR"), except where the dictionary gives a VR of the long form.
"""

import struct

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.uid import ExplicitVRBigEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

_BLANK = (b"  ", b"\x00\x00")
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


def mend_blank_vrs(data: bytes, start: int) -> bytes | None:
    """Return the file with the VR of the dictionary in place of blank ones; None if there is none, or no way through.

    Args:
        data: the whole file, of explicit VR.
        start: where its file meta information, or without one its dataset, begins.
    """
    walk = _Walk(data)
    try:
        walk.elements(start)
    except (struct.error, ValueError):
        return None
    return bytes(walk.mended) if walk.num_mended else None


class _Walk:
    """Goes through the elements in front of the pixel data, and mends as it goes."""

    def __init__(self, data: bytes) -> None:
        self.mended = bytearray(data)
        self.num_mended = 0
        self._data = data
        self._is_big_endian = data[:2] == b"\x00\x08"  # without file meta information

    def elements(self, position: int) -> int:
        """Walk elements up to the pixel data, the end of an item or of the file; return where the walk ended."""
        while position + 8 <= len(self._data):
            tag = self._tag(position)
            if tag == _ITEM_END:
                return position + 8
            header, length = self._header(position, tag)
            if tag == _PIXEL_DATA:
                break
            if tag == 0x00020010:
                uid = self._data[position + header : position + header + length].strip(b" \0")
                self._is_big_endian = uid.decode("latin-1") == ExplicitVRBigEndian
            position += header
            position = self._sequence(position) if length == _UNDEFINED else position + length
        return position

    def _tag(self, position: int) -> int:
        group, element = struct.unpack_from(self._order(position) + "HH", self._data, position)
        return int(group) << 16 | int(element)

    def _order(self, position: int) -> str:
        """Return the byte order at an element: file meta information is little-endian always (PS3.10 7.1)."""
        if self._data[position : position + 2] == b"\x02\x00":
            return "<"
        return ">" if self._is_big_endian else "<"

    def _header(self, position: int, tag: int) -> tuple[int, int]:
        """Return the number of bytes of an element's header and its length; give it a VR where it has none."""
        order, vr = self._order(position), self._data[position + 4 : position + 6]
        if vr in _BLANK:
            named = dictionary_VR(tag)[:2] if dictionary_has_tag(tag) else VR.LO
            if named in EXPLICIT_VR_LENGTH_32 and not self._is_long(position, order):
                named = VR.LO
            self.mended[position + 4 : position + 6] = named.encode()
            self.num_mended += 1
            vr = named.encode()
        if not vr.isalpha():
            raise ValueError("not an explicit VR")
        if vr.decode() in EXPLICIT_VR_LENGTH_32:
            return 12, int(struct.unpack_from(order + "I", self._data, position + 8)[0])
        return 8, int(struct.unpack_from(order + "H", self._data, position + 6)[0])

    def _is_long(self, position: int, order: str) -> bool:
        if self._data[position + 6 : position + 8] != b"\x00\x00":
            return False
        length = struct.unpack_from(order + "I", self._data, position + 8)[0]
        return length == _UNDEFINED or position + 12 + length <= len(self._data)

    def _sequence(self, position: int) -> int:
        """Walk the items of a sequence of undefined length; return where it ends."""
        while True:
            tag, length = (
                self._tag(position),
                struct.unpack_from(self._order(position) + "I", self._data, position + 4)[0],
            )
            position += 8
            if tag == _SEQUENCE_END:
                return position
            if tag != _ITEM:
                raise ValueError("not an item")
            position = self.elements(position) if length == _UNDEFINED else position + int(length)
