"""The stored values of one frame of a DICOM object: its image pixel module, checked against its pixels.

Which codec decodes a frame is decided by the frame's first bytes, because transfer syntaxes are written wrongly. It is
named to pydicom, which otherwise takes whatever is installed (its plugins differ in exactness).
"""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from pneumo_ray.images.decode_errors import (
    DEEP_SAMPLES,
    CorruptImageError,
    NoPixelsError,
    TruncatedImageError,
    UnsupportedSyntaxError,
    check_frame,
    check_size,
)
from pneumo_ray.images.dicom_elements import read_text
from pneumo_ray.images.dicom_frames import ITEM, frame_of
from pneumo_ray.images.dicom_streams import read_codestream

PHOTOMETRICS = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "XYB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
)
"""Photometric interpretations that the standard knows (PS3.3 C.7.6.3.1.2)."""

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
_PLUGINS = {
    JPEGBaseline8Bit: "pillow",
    RLELossless: "pydicom",
    **dict.fromkeys((JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless), "imagecodecs"),
}
for _uid, _plugin in _PLUGINS.items():
    if _plugin == "imagecodecs" and _plugin not in get_decoder(_uid).available_plugins:
        get_decoder(_uid).add_plugin(_plugin, ("pneumo_ray.images.dicom_codecs", "decode_frame"))


@dataclass(frozen=True)
class StoredFrame:
    """One frame before any look-up."""

    pixels: np.ndarray
    """Integers, [H, W] or [H, W, 3]."""
    photometric: str
    """MONOCHROME1, MONOCHROME2, PALETTE COLOR, or RGB, to which pydicom converts the YBR kinds."""
    bits: int
    """Bits of a sample that count."""
    is_signed: bool

    @property
    def value_range(self) -> tuple[int, int]:
        """Smallest and largest value that so many bits can hold."""
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.is_signed else (0, (1 << self.bits) - 1)


def image_size(dataset: Dataset) -> tuple[int, int, int]:
    """Return rows, columns and frames by the header.

    Raises:
        NoPixelsError: if the object describes no image.
        CorruptImageError: if a count is negative.
        ImageTooLargeError: above the limits of `check_size`.
    """
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if rows < 1 or columns < 1:
        raise NoPixelsError("the DICOM object holds no image; leave the file out of the archive")
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    if frames < 1 or samples < 1:  # it would have no row, and the limits would not apply
        raise CorruptImageError("the DICOM object claims fewer frames or samples than one; export it again")
    depth = DEEP_SAMPLES if int(dataset.get("BitsAllocated") or 0) > 16 else 1
    check_size(columns, rows, samples=depth * samples, frames=frames)
    return rows, columns, frames


def photometric_of(dataset: Dataset) -> str:
    """Return the photometric interpretation, or `unknown`: an invalid value may contain a name and would be stored."""
    values = read_text(dataset, "PhotometricInterpretation")
    return values[0] if len(values) == 1 and values[0] in PHOTOMETRICS else "unknown"


def stored_frame(dataset: Dataset, frame: int) -> StoredFrame:
    """Decode one frame of a dataset from `read_dataset`.

    Raises:
        NoPixelsError: if there is no image or no such frame.
        CorruptImageError: naming the element that is missing, or that the pixels contradict.
        UnsupportedSyntaxError: names the transfer syntax and what to do.
        DecodeError: another subclass, for damaged pixel data.
    """
    rows, columns, num_frames = image_size(dataset)
    check_frame(frame, num_frames)
    if "PixelData" not in dataset:
        raise NoPixelsError("the DICOM object holds no pixel data; leave the file out of the archive")
    photometric = photometric_of(dataset)
    if photometric == "unknown":
        if not read_text(dataset, "PhotometricInterpretation"):
            raise _missing("Photometric Interpretation")
        raise UnsupportedSyntaxError("the DICOM's photometric interpretation is none of the standard; export it again")
    allocated = _integer(dataset, "BitsAllocated", "Bits Allocated")
    bits = int(dataset.get("BitsStored") or allocated)
    high_bit = bits - 1 if dataset.get("HighBit") is None else int(dataset.HighBit)
    if not 1 <= bits <= allocated or not 0 <= high_bit < allocated:
        raise CorruptImageError("the DICOM's Bits Stored or High Bit lies outside Bits Allocated; export it again")
    is_signed = bool(_integer(dataset, "PixelRepresentation", "Pixel Representation"))
    samples = int(dataset.get("SamplesPerPixel") or (1 if photometric[:4] in ("MONO", "PALE") else 3))
    options: DecoderOptions = {
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": samples,
        "photometric_interpretation": photometric,
        "bits_allocated": allocated,
        # The sample ends at the high bit; what lies below its last bit is looked at afterwards.
        "bits_stored": max(bits, high_bit + 1),
        "pixel_representation": int(is_signed),
        "planar_configuration": int(dataset.get("PlanarConfiguration") or 0),
        "pixel_keyword": "PixelData",
        "pixel_vr": dataset["PixelData"].VR,
    }
    pixels, found = _decode(dataset, frame, num_frames, options)
    pixels = _shifted(pixels, bits, high_bit)
    return StoredFrame(pixels, str(found["photometric_interpretation"]), bits, is_signed)


class DecoderOptions(TypedDict):
    """Facts of a frame, by the names that pydicom's decoders have for them."""

    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    planar_configuration: int
    pixel_keyword: str
    pixel_vr: str
    is_lossy: NotRequired[bool]


def _decode(
    dataset: Dataset, frame: int, num_frames: int, options: DecoderOptions
) -> tuple[np.ndarray, dict[str, str | int]]:
    """Decode a frame natively or by its codec, also where the transfer syntax contradicts it."""
    syntax, data = UID(dataset.file_meta.TransferSyntaxUID), dataset.PixelData
    length = options["rows"] * options["columns"] * options["samples_per_pixel"] * options["bits_allocated"] / 8
    if options["photometric_interpretation"] == "YBR_FULL_422":
        length = length / 3 * 2
    is_whole = len(data) >= num_frames * length
    if data[:4] != ITEM or (is_whole and syntax in _NATIVE):
        if syntax not in _NATIVE:
            if not _is_coded(syntax) or not is_whole:
                raise _no_codec(syntax)
            syntax = ExplicitVRLittleEndian
        if not is_whole:
            raise TruncatedImageError("the DICOM file has fewer pixels than its header says; copy it again")
        return get_decoder(syntax).as_array(data, index=frame, number_of_frames=num_frames, **options)
    coded = frame_of(data, frame, num_frames)
    stream = read_codestream(coded)
    if stream is not None:
        syntax, coded, options["is_lossy"] = stream.syntax, stream.data, stream.is_lossy
    elif syntax != RLELossless:
        raise _no_codec(syntax)
    # pydicom takes a frame only inside items.
    return get_decoder(syntax).as_array(
        encapsulate([coded]), index=0, number_of_frames=1, decoding_plugin=_PLUGINS[syntax], **options
    )


def _is_coded(syntax: UID) -> bool:
    """Whether frames of a transfer syntax are what `read_codestream` reads, or RLE."""
    return syntax == RLELossless or syntax in (
        *JPEGTransferSyntaxes,
        *JPEGLSTransferSyntaxes,
        *JPEG2000TransferSyntaxes,
    )


def _no_codec(syntax: UID) -> CorruptImageError | UnsupportedSyntaxError:
    if syntax in _NATIVE or _is_coded(syntax):
        return CorruptImageError(
            "the DICOM's pixel data is not what its transfer syntax says; copy it again from its source"
        )
    name = syntax.name if syntax.is_valid else "unknown"
    return UnsupportedSyntaxError(
        f"no decoder is installed for DICOM transfer syntax {name}; convert the file to Explicit VR Little Endian"
    )


def _shifted(pixels: np.ndarray, bits: int, high_bit: int) -> np.ndarray:
    """Return the samples that end at the high bit (PS3.5 8.1.1), where the pixels agree that they do.

    A header may say 15 of samples that are aligned to the right all the same; moved by it, they would be near black.

    Raises:
        CorruptImageError: if they do not.
    """
    shift = high_bit + 1 - bits
    if shift == 0:
        return pixels
    if shift > 0 and not np.bitwise_or.reduce(pixels, axis=None) & ((1 << shift) - 1):
        return np.right_shift(pixels, shift)
    if shift < 0 and int(pixels.min()) >= 0 and int(pixels.max()) < 1 << high_bit + 1:
        return pixels
    raise CorruptImageError("the DICOM's High Bit contradicts its pixels; export it again")


def _integer(dataset: Dataset, keyword: str, name: str) -> int:
    if dataset.get(keyword) is None:
        raise _missing(name)
    return int(dataset[keyword].value)


def _missing(name: str) -> CorruptImageError:
    return CorruptImageError(
        f"the DICOM object lacks {name}, without which its pixels have no meaning; export it again"
    )
