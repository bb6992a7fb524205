"""Optional elements of a DICOM object, read for what they can mean: one that is empty or cannot be read is absent.

The values are taken as they stand in the file, before pydicom converts them: its conversion raises on a decimal comma,
and guesses the sign of an element that may be signed or not (PS3.5 6.2, "US or SS") from the wrong other element.
"""

import math
from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

_WORD = 1 << 16


def read_text(dataset: Dataset, keyword: str) -> list[str]:
    """Return the values of a text element in upper case, without blanks and NULs around them; empty ones are left out."""
    values = (str(value).strip(" \t\r\n\0").upper() for value in _values(dataset, keyword))
    return [value for value in values if value]


def read_number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first value of a decimal string, which may have a comma for its point; None where there is none.

    NaN and infinity are returned as such: what they do to an image is for the caller to judge.
    """
    for value in _values(dataset, keyword)[:1]:
        try:
            return float(str(value).strip(" \0").replace(",", "."))
        except ValueError:
            return None
    return None


def is_unreadable(dataset: Dataset, keyword: str) -> bool:
    """Whether a decimal string holds something that is no number."""
    return bool(read_text(dataset, keyword)) and read_number(dataset, keyword) is None


def read_words(dataset: Dataset, keyword: str, *, is_little_endian: bool) -> np.ndarray | None:
    """Return 16-bit words, uint16 [n], whatever sign the file gives them; None where there are none.

    Args:
        dataset: the object or an item of it.
        keyword: of an element of VR US, SS or OW.
        is_little_endian: the byte order of the file.
    """
    value = _value(dataset, keyword)
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, bytes | bytearray):
        raw = bytes(value[: len(value) // 2 * 2])
        words = np.frombuffer(raw, "<u2" if is_little_endian else ">u2").astype(np.uint16)
    else:
        try:
            words = (np.atleast_1d(np.asarray(value, dtype=np.int64)) % _WORD).astype(np.uint16)
        except (TypeError, ValueError, OverflowError):
            return None
    return words if words.size else None


def read_items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none where it is absent, empty or no sequence."""
    try:
        sequence = dataset.get(keyword)
    except Exception:  # pydicom parses a sequence when it is asked for, and what it raises depends on the damage
        return []
    return list(sequence) if isinstance(sequence, Sequence) else []


def scopes(dataset: Dataset, frame: int, macro: str) -> list[Dataset]:
    """Return the datasets in which the elements of a functional group may stand, the one that wins first.

    A multi-frame object keeps them for the frame, for all frames (PS3.3 C.7.6.16), or at the top as others do.

    Args:
        dataset: the object.
        frame: counted from 0.
        macro: keyword of the functional group's sequence, such as `FrameVOILUTSequence`.
    """
    per_frame = read_items(dataset, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    groups = [*per_frame, *read_items(dataset, "SharedFunctionalGroupsSequence")[:1]]
    return [*(item for group in groups for item in read_items(group, macro)[:1]), dataset]


def signed_word(word: int) -> int:
    """Return a 16-bit word as a signed number."""
    return word - _WORD if word >= _WORD // 2 else word


def is_usable(*numbers: float | None) -> bool:
    """Whether all numbers are there and finite."""
    return all(number is not None and math.isfinite(number) for number in numbers)


def _value(dataset: Dataset, keyword: str) -> Any:  # pydicom has no types; a file may hold anything
    tag = tag_for_keyword(keyword)
    return None if tag is None or tag not in dataset else dataset.get_item(tag).value


def _values(dataset: Dataset, keyword: str) -> list[object]:
    value = _value(dataset, keyword)
    if value is None:
        return []
    if isinstance(value, bytes | bytearray):
        value = bytes(value).decode("latin-1")
    if isinstance(value, str):
        return [*value.split("\\")] if value else []
    try:
        return list(value)
    except TypeError:
        return [value]
