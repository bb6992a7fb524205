"""DICOM radiographs to uint8 grey, in the order of the grayscale pipeline of PS3.3 C.7.6.3 and C.11, with pydicom.

stored values -> modality LUT or rescale -> VOI LUT or window -> inversion -> 8 bit. All of it maps one stored
value to one grey level, so it is worked out once per level that occurs (at most 65,536 for 16 bits) and looked up
per pixel. Colour goes to RGB and then to luma.
"""

import logging
import re
import warnings
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from pneumo_ray.images.decode_errors import (
    DEEP_SAMPLES,
    CorruptImageError,
    NoPixelsError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedSyntaxError,
    WrongModalityError,
    check_frame,
    check_size,
    named_errors,
)
from pneumo_ray.images.dicom_streams import check_codestream, check_inflated_size
from pneumo_ray.images.grey_levels import apply_window, look_up, split_levels, stretch, to_uint8

# pydicom's warnings and log lines quote the offending value, which may be a name or a date of birth. The filters are
# set once, because warnings.catch_warnings is not safe with threads.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

RADIOGRAPHY = ("CR", "DX", "RG")
"""Modalities that are radiographs: computed, digital, and conventional film that was digitised."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class of a secondary capture; its multi-frame kinds are .1 to .4 below it."""

PHOTOMETRICS = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "XYB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
)
"""Photometric interpretations that the standard knows (PS3.3 C.7.6.3.1.2)."""

_LIBJPEG_SYNTAXES = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
_HEADER_KEYWORDS = [
    "SpecificCharacterSet",
    "SOPClassUID",
    "Modality",
    "PatientID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "NumberOfFrames",
    "PhotometricInterpretation",
]


def has_preamble(data: bytes) -> bool:
    """Say whether the bytes carry DICOM's magic number after a preamble of 128 bytes."""
    return data[128:132] == b"DICM"


def starts_like_dataset(data: bytes) -> bool:
    """Say whether bytes without a preamble begin as a DICOM file does: with an element of group 0002 or 0008."""
    group, element = data[:2], data[2:4]
    if group in (b"\x02\x00", b"\x08\x00"):
        number = int.from_bytes(element, "little")
    elif group == b"\x00\x08":
        number = int.from_bytes(element, "big")
    else:
        return False
    is_explicit = data[4:6].isalpha() and data[4:6].isupper()
    return len(data) > 8 and number < 0x0100 and (is_explicit or int.from_bytes(data[4:8], "little") < len(data))


@named_errors("DICOM")
def decode_dicom(data: bytes, frame: int = 0) -> np.ndarray:
    """Decode one frame of a radiograph: `read_dataset`, `check_modality`, `frame_to_grey`.

    Args:
        data: the whole file.
        frame: counted from 0.

    Returns:
        uint8 [H, W], C-contiguous and writable.

    Raises:
        DecodeError: one subclass per cause.
    """
    dataset = read_dataset(data)
    check_modality(dataset)
    return frame_to_grey(dataset, frame)


@named_errors("DICOM")
def read_dataset(data: bytes, *, header_only: bool = False) -> Dataset:
    """Parse the elements of a DICOM file, with or without a preamble and file meta information.

    Args:
        data: the whole file.
        header_only: read only what describes the image and the patient's key.

    Returns:
        pydicom's dataset; its file meta information always names a transfer syntax.

    Raises:
        NotAnImageError: if bytes without the magic number turn out not to be DICOM.
        TruncatedImageError: if the file ends early.
        ImageTooLargeError: if a deflated file grows beyond two bytes for each of `MAX_PIXELS`.
        CorruptImageError: if the elements cannot be parsed.
    """
    check_inflated_size(data, 132 if has_preamble(data) else 0)
    dataset = dcmread(
        BytesIO(data),
        force=not has_preamble(data),
        stop_before_pixels=header_only,
        specific_tags=_HEADER_KEYWORDS if header_only else None,
    )
    # pydicom drops all elements where the last one is cut short; without a preamble, the tag of the pixel data tells.
    if len(dataset) == 0 and (has_preamble(data) or b"\xe0\x7f\x10\x00" in data):
        raise TruncatedImageError("the DICOM file ends before its image does; copy it again from its source")
    if not has_preamble(data) and "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise NotAnImageError("the bytes begin like DICOM but describe no object; leave the file out of the archive")
    if not dataset.file_meta.get("TransferSyntaxUID"):
        is_implicit, is_little_endian = dataset.original_encoding
        native = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else native
    return dataset


@named_errors("DICOM")
def check_modality(dataset: Dataset) -> None:
    """Refuse what is not a radiograph: other than CR, DX, RG, or a secondary capture (OT or SC of that SOP class).

    An object that names no modality is accepted.

    Raises:
        WrongModalityError: names the modality.
    """
    modality = str(dataset.get("Modality") or "").strip().upper()
    sop_class = str(dataset.get("SOPClassUID") or "")
    is_capture = sop_class == SECONDARY_CAPTURE or sop_class.startswith(f"{SECONDARY_CAPTURE}.")
    if not modality or modality in RADIOGRAPHY or (modality in ("OT", "SC") and is_capture):
        return
    name = modality if re.fullmatch("[A-Z]{2,8}", modality) else "of this object"
    raise WrongModalityError(
        f"modality {name} is not a radiograph; only {', '.join(RADIOGRAPHY)} and secondary captures are scored, "
        "so leave the file out of the archive"
    )


@named_errors("DICOM")
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
    if frames < 1 or samples < 1:  # no row would come of it, and no limit would hold
        raise CorruptImageError("the DICOM object claims fewer frames or samples than one; export it again")
    depth = DEEP_SAMPLES if int(dataset.get("BitsAllocated") or 0) > 16 else 1
    check_size(columns, rows, samples=depth * samples, frames=frames)
    return rows, columns, frames


def photometric_of(dataset: Dataset) -> str:
    """Return the photometric interpretation, or `unknown`: what else stands there may be a name, and is written down."""
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    return photometric if photometric in PHOTOMETRICS else "unknown"


@named_errors("DICOM")
def frame_to_grey(dataset: Dataset, frame: int = 0) -> np.ndarray:
    """Decode one frame and map it to grey as it is meant to be displayed.

    The VOI LUT wins over the window, and the first of several is taken. Without either, an 8-bit image is left as
    it is and a deeper one is scaled between its percentiles as by `grey_levels.robust_scale`. MONOCHROME1 or
    Presentation LUT Shape INVERSE, or both, invert once. PatientOrientation R\\F is mirrored, L\\H is turned over,
    R\\H both, so that the patient's left is on the right and the feet are below; an axis with any other letter stays.

    Args:
        dataset: from `read_dataset`.
        frame: counted from 0; only this frame is decoded.

    Returns:
        uint8 [H, W], C-contiguous and writable.

    Raises:
        NoPixelsError: if there is no image or no such frame.
        UnsupportedSyntaxError: names the transfer syntax and what to install.
        DecodeError: another subclass, for damaged pixel data.
    """
    _, _, frames = image_size(dataset)
    check_frame(frame, frames)
    if "PixelData" not in dataset:
        raise NoPixelsError("the DICOM object holds no pixel data; leave the file out of the archive")
    decoder = _find_decoder(dataset)
    if decoder.is_native:
        if len(dataset.PixelData) < get_expected_length(dataset):
            raise TruncatedImageError("the DICOM file has fewer pixels than its header says; copy it again")
    else:
        check_codestream(get_frame(dataset.PixelData, frame, number_of_frames=frames))
    pixels, properties = decoder.as_array(dataset, index=frame)
    photometric = str(properties["photometric_interpretation"])
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        grey = _monochrome_to_grey(pixels, dataset)
    else:
        grey = _colour_to_grey(pixels, dataset, photometric)
    return np.ascontiguousarray(_to_standard_view(grey, dataset))


def _monochrome_to_grey(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Run the grayscale pipeline on the levels of `pixels` [H, W] and look each pixel up."""
    levels, index = split_levels(pixels)
    values = levels
    if dataset.get("ModalityLUTSequence"):
        values, _ = _apply_lut(levels, dataset.ModalityLUTSequence[0], dataset)
    elif "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        with np.errstate(over="ignore", invalid="ignore"):
            values = levels * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        if not np.isfinite(values).all() or not float(dataset.RescaleSlope):  # one flat grey would come of it
            raise CorruptImageError("the DICOM's rescale slope or intercept is not a usable number; export it again")
    window = _window_of(dataset)
    voi = (dataset.get("VOILUTSequence") or [None])[0]
    if voi is not None and "LUTDescriptor" in voi and "LUTData" in voi:
        output, bits = _apply_lut(values, voi, dataset)
        unit = np.clip(output / (2**bits - 1), 0.0, 1.0)
    elif window is not None:
        unit = apply_window(values, *window)
    elif np.array_equal(values, levels) and pixels.dtype == np.uint8 and dataset.get("BitsStored") == 8:
        unit = levels / 255.0
    else:
        unit = stretch(values, index)
    grey = to_uint8(unit)
    if dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        grey = 255 - grey
    return look_up(grey, index)


def _apply_lut(values: np.ndarray, item: Dataset, dataset: Dataset) -> tuple[np.ndarray, int]:
    """Look values up in a modality or VOI LUT (PS3.3 C.11.1.1); return the output and its number of bits.

    pydicom's own functions refuse a modality LUT of 12 bits, and wrap around in an 8-bit VOI LUT of more than 256
    entries.
    """
    num_entries, first, bits = (int(number) for number in item.LUTDescriptor)
    table: Any = item.LUTData
    if isinstance(table, bytes):
        is_wide = len(table) >= 2 * (num_entries or 65536)
        byte_order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(table, dtype=f"{byte_order}u2" if is_wide else "u1")
    table = np.asarray(table, dtype=np.float64)[: num_entries or 65536]
    return table[np.clip(values - first, 0, len(table) - 1).astype(np.intp)], bits


def _window_of(dataset: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, or None where there is none that can be used."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    values = [np.atleast_1d(dataset.get(name, None)) for name in ("WindowCenter", "WindowWidth")]
    if any(value.size == 0 or value[0] in (None, "") for value in values):
        return None
    center, width = (float(value[0]) for value in values)
    smallest = 1.0 if function == "LINEAR" else np.finfo(float).tiny
    if (
        function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
        or not np.isfinite(center)
        or not smallest <= width < np.inf
    ):
        return None
    return center, width, function


def _colour_to_grey(pixels: np.ndarray, dataset: Dataset, photometric: str) -> np.ndarray:
    """Return the ITU-R 601 luma of a palette or colour image."""
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    elif photometric == "RGB":  # pydicom's decoder has converted the YBR kinds already
        bits = int(dataset.BitsStored)
    else:
        raise UnsupportedSyntaxError(
            "the DICOM's photometric interpretation is not supported; export it as MONOCHROME2 or RGB"
        )
    if pixels.ndim != 3 or pixels.dtype.kind != "u":
        raise CorruptImageError("the DICOM says it is in colour but its pixels are not; export it again")
    rgb = np.right_shift(pixels[:, :, :3], max(bits - 8, 0)).astype(np.uint8)
    return np.array(Image.fromarray(rgb).convert("L"))


def _to_standard_view(grey: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Flip [H, W] so that rows run to the patient's left and columns to the feet, where PatientOrientation is exact."""
    orientation: Any = dataset.get("PatientOrientation") or ()
    if isinstance(orientation, str) or len(orientation) != 2:
        return grey
    if orientation[0] == "R":
        grey = grey[:, ::-1]
    if orientation[1] == "H":
        grey = grey[::-1]
    return grey


def _find_decoder(dataset: Dataset) -> Any:
    """Return pydicom's decoder for the transfer syntax, or say what to install."""
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    name = syntax.name if syntax.is_valid else "unknown"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    # Pillow is on offer for JPEG Extended but reads only its 8-bit kind.
    is_too_deep = syntax == JPEGExtended12Bit and int(dataset.get("BitsStored") or 0) > 8
    if decoder is None or not decoder.is_available or (is_too_deep and "pylibjpeg" not in decoder.available_plugins):
        remedy = (
            "install one with pip install 'pneumo_ray[dicom-jpeg]'"
            if syntax in _LIBJPEG_SYNTAXES
            else "convert the file to Explicit VR Little Endian"
        )
        raise UnsupportedSyntaxError(f"no decoder is installed for DICOM transfer syntax {name}; {remedy}")
    return decoder
