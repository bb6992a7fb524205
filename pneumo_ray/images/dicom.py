"""DICOM radiographs: read, accept what is a radiograph, decode a frame to uint8 grey."""

import logging
import re
import warnings
from io import BytesIO
from typing import NamedTuple

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pneumo_ray.images.decode_errors import NotAnImageError, TruncatedImageError, WrongModalityError, named_errors
from pneumo_ray.images.dicom_elements import read_text
from pneumo_ray.images.dicom_grey import colour_to_grey, monochrome_to_grey
from pneumo_ray.images.dicom_person import KEYWORDS as PERSON_KEYWORDS
from pneumo_ray.images.dicom_pixels import image_size as image_size
from pneumo_ray.images.dicom_pixels import photometric_of, stored_frame
from pneumo_ray.images.dicom_repair import mend_blank_vrs
from pneumo_ray.images.dicom_streams import check_inflated_size

__all__ = [
    "Decoded",
    "check_modality",
    "decode_dicom",
    "decode_frame",
    "frame_to_grey",
    "has_preamble",
    "image_size",
    "photometric_of",
    "read_dataset",
    "starts_like_dataset",
    "view_flips",
]

# pydicom's warnings and log lines quote the offending value, which may be a name or a date of birth. The filters are
# set once, because warnings.catch_warnings is not safe with threads.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

RADIOGRAPHY = ("CR", "DX", "RG")
"""Modalities that are radiographs: computed, digital, and conventional film that was digitised."""

_SPELLINGS = (*RADIOGRAPHY, "DR", "XR", "CXR", "DXR")
_RADIOGRAPH_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
)
_STORAGE = "1.2.840.10008.5.1.4.1.1."
"""Begins the SOP classes of the standard that hold images, reports and the rest."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class of a secondary capture; its multi-frame kinds are .1 to .4 below it."""

MAKER = "pneumo_ray"
"""Manufacturer of the results that `jobs/publish.py` puts into a study: captures of them are no radiographs."""

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
    *PERSON_KEYWORDS,
]


class Decoded(NamedTuple):
    """An image, and what of its file took no part in it."""

    pixels: np.ndarray
    """uint8 [H, W], C-contiguous and writable."""
    note: str | None = None
    """Names of what was left out, such as `window_left_one_grey`, with a comma between them; None for nothing."""


def has_preamble(data: bytes) -> bool:
    """Whether the bytes have DICOM's magic number after a preamble of 128 bytes."""
    return data[128:132] == b"DICM"


def starts_like_dataset(data: bytes) -> bool:
    """Whether bytes without a preamble begin like a DICOM file: with an element of group 0002 or 0008."""
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
def decode_dicom(data: bytes, frame: int = 0) -> Decoded:
    """Decode one frame of a radiograph: `read_dataset`, `check_modality`, `frame_to_grey`.

    Args:
        data: the whole file.
        frame: counted from 0.

    Raises:
        DecodeError: one subclass per cause.
    """
    dataset = read_dataset(data)
    check_modality(dataset)
    return decode_frame(dataset, frame)


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
        ImageTooLargeError: if a deflated file grows beyond two bytes for each of `MAX_SAMPLES`.
        CorruptImageError: if the elements cannot be parsed.
    """
    start = 132 if has_preamble(data) else 0
    check_inflated_size(data, start)
    try:
        dataset = _parse(data, header_only)
        failure = None
    except Exception as error:
        failure = error
    if failure is not None or not _is_whole(dataset, header_only):
        mended = mend_blank_vrs(data, start)
        if mended is not None:
            return _parse(mended, header_only)
        if failure is not None:
            raise failure
    # pydicom drops all elements if the last one is truncated; without a preamble, the tag of the pixel data identifies the file.
    if len(dataset) == 0 and (has_preamble(data) or b"\xe0\x7f\x10\x00" in data):
        raise TruncatedImageError("the DICOM file ends before its image is complete; copy it again from its source")
    if not has_preamble(data) and "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise NotAnImageError("the bytes begin like DICOM but describe no object; leave the file out of the archive")
    return dataset


def _parse(data: bytes, header_only: bool) -> Dataset:
    """Let pydicom read the elements, and name the transfer syntax where the file does not."""
    dataset = dcmread(
        BytesIO(data),
        force=not has_preamble(data),
        stop_before_pixels=header_only,
        specific_tags=_HEADER_KEYWORDS if header_only else None,
    )
    if not dataset.file_meta.get("TransferSyntaxUID"):
        is_implicit, is_little_endian = dataset.original_encoding
        native = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else native
    return dataset


def _is_whole(dataset: Dataset, header_only: bool) -> bool:
    """Whether what every image has was found, and no element whose VR was blank, which pydicom gives as None."""
    if ("Rows" if header_only else "PixelData") not in dataset:
        return False
    is_implicit = dataset.original_encoding[0]
    return bool(is_implicit) or all(dataset.get_item(tag).VR is not None for tag in dataset.keys())  # noqa: SIM118


@named_errors("DICOM")
def check_modality(dataset: Dataset) -> None:
    """Refuse what is not a radiograph.

    The SOP class decides: CR and DX objects are radiographs, whatever their modality is called, and those of other
    classes of the standard are not. A secondary capture, a private class or none at all is one by its modality: CR,
    DX, RG, their other spellings, none, and OT or SC in a secondary capture.

    Raises:
        WrongModalityError: names the modality and, where it is one of the standard, the SOP class.
    """
    modalities = read_text(dataset, "Modality")
    sop_class = UID((read_text(dataset, "SOPClassUID") or [""])[0])
    is_capture = sop_class == SECONDARY_CAPTURE or sop_class.startswith(f"{SECONDARY_CAPTURE}.")
    if sop_class in _RADIOGRAPH_CLASSES:
        return
    if is_capture and read_text(dataset, "Manufacturer") == [MAKER.upper()]:
        raise WrongModalityError("the image is a capture of results of pneumo_ray; leave the file out of the archive")
    if is_capture or not sop_class.startswith(_STORAGE):
        allowed = (*_SPELLINGS, "OT", "SC") if is_capture else _SPELLINGS
        if not modalities or any(modality in allowed for modality in modalities):
            return
    name = modalities[0] if modalities and re.fullmatch("[A-Z]{2,8}", modalities[0]) else "of this object"
    kind = f" ({sop_class.name})" if sop_class.name != sop_class else ""
    raise WrongModalityError(
        f"modality {name} is not a radiograph{kind}; only {', '.join(RADIOGRAPHY)} and secondary captures are scored, "
        "so leave the file out of the archive"
    )


def frame_to_grey(dataset: Dataset, frame: int = 0) -> np.ndarray:
    """Return the pixels of `decode_frame`, uint8 [H, W]."""
    return decode_frame(dataset, frame).pixels


@named_errors("DICOM")
def decode_frame(dataset: Dataset, frame: int = 0) -> Decoded:
    """Decode one frame and map it to grey as it is meant to be displayed.

    The VOI LUT wins over the window, and the first of several is taken; one that leaves a single grey gives way to the
    next. Without either, an image of 8 bits is left as it is and a deeper one is scaled between its percentiles as by
    `grey_levels.robust_scale`. MONOCHROME1 or Presentation LUT Shape INVERSE, or both, invert once. Padding is black
    and counts for nothing. PatientOrientation R\\F is mirrored, L\\H is turned over, R\\H both, so that the patient's
    left is on the right and the feet are below; an axis with any other letter stays.

    Args:
        dataset: from `read_dataset`.
        frame: counted from 0; only this frame is decoded.

    Raises:
        NoPixelsError: if there is no image or no such frame.
        UnsupportedSyntaxError: names the transfer syntax and what to do.
        DecodeError: another subclass, for damaged pixel data.
    """
    stored = stored_frame(dataset, frame)
    if stored.photometric in ("MONOCHROME1", "MONOCHROME2"):
        grey, notes = monochrome_to_grey(stored, dataset, frame)
    else:
        grey, notes = colour_to_grey(stored, dataset), []
    return Decoded(np.ascontiguousarray(_to_standard_view(grey, dataset)), ",".join(dict.fromkeys(notes)) or None)


def view_flips(dataset: Dataset) -> tuple[bool, bool]:
    """Whether decoding mirrors the columns and turns the rows over; both undo themselves.

    Rows are to run to the patient's left and columns to the feet, where PatientOrientation is exact.
    """
    orientation = read_text(dataset, "PatientOrientation")
    if len(orientation) != 2:
        return False, False
    return orientation[0] == "R", orientation[1] == "H"


def _to_standard_view(grey: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Flip [H, W] as `view_flips` says."""
    is_mirrored, is_turned_over = view_flips(dataset)
    if is_mirrored:
        grey = grey[:, ::-1]
    if is_turned_over:
        grey = grey[::-1]
    return grey
