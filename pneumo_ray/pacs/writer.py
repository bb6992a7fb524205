"""The bytes of an object, as pydicom writes them, in a fifth of its time.

Most elements of an object that was filled into another one (see `templates`) are the bytes that pydicom read, and are
copied. Text in ASCII and doubles are written here, and whatever else there is by pydicom. Everything is Explicit VR Little
Endian with defined lengths (PS3.5 7.1.2 and 7.5.1).
"""

import struct
from collections.abc import Iterable

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

_SHORT, _LONG, _ITEM = struct.Struct("<HH2sH"), struct.Struct("<HH2sHI"), struct.Struct("<HHI")
_TEXTS = frozenset({"AE", "AS", "CS", "DA", "DS", "IS", "LO", "LT", "SH", "ST", "TM", "UI", "UT"})
_PREAMBLE = bytes(128) + b"DICM"
_ASCII = "iso8859"
"""pydicom's name of the default repertoire."""


def file_of(dataset: Dataset) -> bytes:
    """Return the DICOM file of a dataset that was read from one.

    Args:
        dataset: its file meta information is complete; its group length is counted again.
    """
    meta = _elements(element for element in dataset.file_meta.values() if element.tag != 0x00020000)
    length = _SHORT.pack(0x0002, 0x0000, b"UL", 4) + struct.pack("<I", len(meta))
    return b"".join((_PREAMBLE, length, meta, encoded(dataset)))


def encoded(dataset: Dataset, charset: str | MultiValue[str] = _ASCII) -> bytes:
    """Return the elements of a dataset.

    Args:
        dataset: to write.
        charset: Specific Character Set of the dataset that it is an item of.
    """
    elements = list(dataset.values())
    if any(_is_foreign(element) for element in elements):  # an item that was copied from a file of another encoding
        stream = _stream()
        write_dataset(stream, dataset, charset)
        return stream.getvalue()
    return _elements(elements, dataset.get("SpecificCharacterSet", charset))


def _is_foreign(element: DataElement | RawDataElement) -> bool:
    """Whether an element is raw, in another encoding than Explicit VR Little Endian."""
    return isinstance(element, RawDataElement) and (element.is_implicit_VR or not element.is_little_endian)


def _elements(elements: Iterable[DataElement | RawDataElement], charset: str | MultiValue[str] = _ASCII) -> bytes:
    return b"".join(_element(element, charset) for element in sorted(elements, key=lambda element: int(element.tag)))


def _element(element: DataElement | RawDataElement, charset: str | MultiValue[str]) -> bytes:
    if isinstance(element, RawDataElement):
        value = element.value or b""
    elif element.VR == VR.SQ:
        items = [encoded(item, charset) for item in element.value]
        value = b"".join(part for item in items for part in (_ITEM.pack(0xFFFE, 0xE000, len(item)), item))
    else:
        text = _text(element)
        if text is None:
            return _by_pydicom(element, charset)
        value = text
    vr, tag = str(element.VR), int(element.tag)
    if vr in EXPLICIT_VR_LENGTH_32:
        return _LONG.pack(tag >> 16, tag & 0xFFFF, vr.encode(), 0, len(value)) + value
    return _SHORT.pack(tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def _text(element: DataElement) -> bytes | None:
    """Return the value of an element in bytes; None where pydicom has to write it."""
    value = element.value
    if element.VR == VR.FD and isinstance(value, float):
        return struct.pack("<d", value)
    if element.VR not in _TEXTS:
        return None
    if element.VR in (VR.DS, VR.IS):
        value = getattr(value, "original_string", None)
    if not isinstance(value, str) or not value.isascii():
        return None
    padding = b"" if len(value) % 2 == 0 else b"\0" if element.VR == VR.UI else b" "
    return value.encode() + padding


def _by_pydicom(element: DataElement, charset: str | MultiValue[str]) -> bytes:
    stream = _stream()
    write_data_element(stream, element, charset)
    return stream.getvalue()


def _stream() -> DicomBytesIO:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    return stream
