"""Look-up tables of a DICOM object: modality, VOI and palette (PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5 and .6).

A descriptor is three words: number of entries, first value that is looked up, bits of an entry. The entries decide
where the third contradicts them, and the sign of the second is that of what is looked up, also against its VR.
"""

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from pneumo_ray.images.dicom_elements import read_words, signed_word


@dataclass(frozen=True)
class Lut:
    """A table and how to look up in it."""

    entries: np.ndarray
    """float64 [n]."""
    first: int
    """The value that the first entry is for; smaller ones take it too, and larger ones than the last take the last."""
    bits: int
    """Of an entry that is white."""

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the entry for each value, float64 of the shape of `values`."""
        return self.entries[np.clip(values - self.first, 0, len(self.entries) - 1).astype(np.intp)]

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Return the entry for each value in 0 .. 1."""
        return np.clip(self(values) / (2**self.bits - 1), 0.0, 1.0)


def read_lut(
    item: Dataset, *, signed: bool, little: bool, descriptor: str = "LUTDescriptor", data: str = "LUTData"
) -> Lut | None:
    """Read a table; None where there is none, or where it or its descriptor is empty or cut.

    Args:
        item: of a modality or VOI LUT sequence, or the object itself.
        signed: what is looked up may be negative.
        little: the byte order of the file.
        descriptor: keyword of the descriptor.
        data: keyword of the entries.
    """
    described = read_words(item, descriptor, is_little_endian=little)
    words = read_words(item, data, is_little_endian=little)
    if described is None or len(described) != 3 or words is None:
        return None
    num_entries, first, bits = (int(word) for word in described)
    num_entries = num_entries or 1 << 16
    if len(words) < num_entries <= 2 * len(words) and bits <= 8:  # two entries per word, the first below
        words = np.stack([words & 0xFF, words >> 8], axis=1).reshape(-1)
    entries = words[:num_entries]
    return Lut(entries.astype(np.float64), signed_word(first) if signed else first, _depth(int(entries.max()), bits))


def _depth(largest: int, declared: int) -> int:
    """Return the bits of an entry: as declared, unless the largest entry needs more or leaves three quarters unused."""
    needed = max(largest.bit_length(), 1)
    if 1 <= declared <= 16 and declared - 2 < needed <= declared:
        return declared
    return next(bits for bits in (8, 10, 12, 14, 16) if bits >= needed)


def palette_to_rgb(pixels: np.ndarray, dataset: Dataset, *, signed: bool, little: bool) -> np.ndarray | None:
    """Return the colours of palette indices; None where a table is missing or cut.

    Args:
        pixels: integers [H, W].
        dataset: the object.
        signed: the indices may be negative.
        little: the byte order of the file.

    Returns:
        uint8 [H, W, 3].
    """
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    luts = [
        read_lut(dataset, signed=signed, little=little, descriptor=f"{name}Descriptor", data=f"{name}Data")
        for name in names
    ]
    found = [lut for lut in luts if lut is not None]
    if len(found) < 3:
        return None
    white = 2 ** max(lut.bits for lut in found) - 1  # one colour may well be dark throughout
    return np.stack([np.rint(255 * lut(pixels) / white).astype(np.uint8) for lut in found], axis=-1)
