"""The DICOM image that a result is about: what its results repeat, and where its pixels lie.

The patient and the study are copied from here into an object and go nowhere else. Elements that are absent, or whose
values the standard does not allow, become empty ones of type 2, as an image without them is common.
"""

import logging
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.uid import UID

from pneumo_ray.errors import PneumoError
from pneumo_ray.images.dicom import image_size, view_flips
from pneumo_ray.images.dicom_elements import read_text
from pneumo_ray.pacs.uids import derived_uid

# highdicom quotes a name that it finds odd.
warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")
logging.getLogger("highdicom").setLevel(logging.CRITICAL)

_NEEDED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
           "StudyTime", "ReferringPhysicianName")  # fmt: skip
"""Elements of type 2, empty where the source has none."""
COPIED = (
    *_NEEDED, "SpecificCharacterSet", "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthTime", "OtherPatientIDsSequence", "OtherPatientNames", "EthnicGroup", "PatientComments",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "QualityControlSubject",
    "StudyDescription", "IssuerOfAccessionNumberSequence", "ProcedureCodeSequence", "PatientAge", "PatientSize",
    "PatientWeight",
)  # fmt: skip
"""Elements of the Patient, General Study and Patient Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2)."""
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.7",
    *(f"1.2.840.10008.5.1.4.1.1.7.{kind}" for kind in range(1, 5)),
}
"""SOP classes of sources: CR, DX for presentation and for processing, and secondary captures."""


class SourceError(PneumoError):
    """A DICOM image of which no results can be published."""


@dataclass(frozen=True)
class Source:
    """A DICOM image, or one frame of it."""

    header: Dataset
    """Patient, study and what refers to the image; no pixels."""
    frame: int | None
    """Counted from 0; None for the only one."""
    rows: int
    columns: int
    spacing: tuple[float, float]
    """Millimetres between rows and between columns; 1 where the image does not say."""
    is_mirrored: bool
    """Its columns run to the patient's right: the maps, which are of the standard view, are mirrored."""
    is_turned_over: bool
    lossy: tuple[str, ...]
    """01 where its pixels went through lossy compression, else 00; then how much and how, where that is known."""

    @property
    def uid(self) -> str:
        """Its SOP Instance UID."""
        return str(self.header.SOPInstanceUID)

    @property
    def study(self) -> str:
        """Its Study Instance UID."""
        return str(self.header.StudyInstanceUID)

    @property
    def name(self) -> tuple[str, ...]:
        """What names the image or frame, for UIDs that are derived from it."""
        return (self.uid,) if self.frame is None else (self.uid, f"frame {self.frame}")

    @property
    def number(self) -> int:
        """Instance number for its results: its own, and a block of its own for each frame."""
        with suppress(TypeError, ValueError):
            own = int(self.header.get("InstanceNumber") or 1)
            if 1 <= own < 100_000:
                return own + 100_000 * (self.frame or 0) if self.frame and self.frame < 20_000 else own
        return 1

    def reference(self) -> Dataset:
        """Return an item that refers to the image (PS3.3 10.8)."""
        item = Dataset()
        item.ReferencedSOPClassUID = self.header.SOPClassUID
        item.ReferencedSOPInstanceUID = self.header.SOPInstanceUID
        if self.frame is not None:
            item.ReferencedFrameNumber = self.frame + 1
        return item


def source_of(dataset: Dataset, frame: int | None) -> Source:
    """Return what results need of an image.

    Args:
        dataset: from `images.dicom.read_dataset`.
        frame: counted from 0; None for an image of one frame.

    Raises:
        SourceError: if it has no UIDs, or is of a class of which no results are made.
        NoPixelsError: if it has no image.
    """
    header = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        value = str(dataset.get(keyword) or "")
        if not UID(value).is_valid or not value:
            raise SourceError(f"the image has no valid {keyword}, so that no result can refer to it")
        setattr(header, keyword, value)
    if header.SOPClassUID not in _CLASSES:
        raise SourceError("the image is of a private or unusual SOP class, to which results cannot refer")
    for keyword in COPIED:
        _copy(dataset, header, keyword)
    header.Modality = (read_text(dataset, "Modality") or ["OT"])[0][:16]
    header.InstanceNumber = dataset.get("InstanceNumber") or None
    rows, columns, _ = image_size(dataset)
    _place(header, rows, columns, _spacing(dataset), frame)
    lossy = "01" if "01" in read_text(dataset, "LossyImageCompression") or _is_lossy(dataset) else "00"
    header.LossyImageCompression = lossy
    if lossy == "01":
        _copy(dataset, header, "LossyImageCompressionRatio")
        _copy(dataset, header, "LossyImageCompressionMethod")
    return Source(header, frame, rows, columns, _spacing(dataset), *view_flips(dataset), _lossy(header))


def _lossy(header: Dataset) -> tuple[str, ...]:
    names = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    return tuple(str(header.get(name) or "") for name in names)


def _is_lossy(dataset: Dataset) -> bool:
    """Whether the transfer syntax is one of lossy compression alone: JPEG baseline and extended, JPEG-LS near-lossless."""
    return str(dataset.file_meta.get("TransferSyntaxUID")).endswith(("1.2.4.50", "1.2.4.51", "1.2.4.81"))


def _place(header: Dataset, rows: int, columns: int, spacing: tuple[float, float], frame: int | None) -> None:
    """Give the image a frame of reference of its own: a radiograph has none, and maps are placed in one."""
    names = (header.SOPInstanceUID, *(() if frame is None else (f"frame {frame}",)))
    header.FrameOfReferenceUID = derived_uid("frame of reference", *names)
    header.PositionReferenceIndicator = ""
    header.ImagePositionPatient = [0, 0, 0]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = list(spacing)
    header.SliceThickness = 1
    header.Rows, header.Columns = rows, columns


def _copy(dataset: Dataset, header: Dataset, keyword: str) -> None:
    try:
        element = dataset.get_item(keyword) and dataset[keyword]
        good = element is not None and _is_allowed(keyword, element.value)
    except Exception:  # a value that cannot be read; its text may name the patient
        element, good = None, False
    if element is not None and good:
        header.add(element)
    elif keyword in _NEEDED:
        setattr(header, keyword, "")


def _is_allowed(keyword: str, value: object) -> bool:
    text = str(value or "")
    if keyword == "PatientSex":
        return text in ("", "M", "F", "O")
    if keyword.endswith("Date"):
        return not text or _is_date(text)
    if keyword.endswith("Time"):
        return not text or re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", text) is not None
    if keyword == "SpecificCharacterSet":
        return all(re.fullmatch(r"(ISO_IR \d+|ISO 2022 IR \d+|GB18030|GBK)?", part) for part in _parts(value))
    return True


def _parts(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(part or "") for part in value or ()]  # type: ignore[attr-defined]


def _is_date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return len(text) == 8


def _spacing(dataset: Dataset) -> tuple[float, float]:
    for keyword in _SPACINGS:
        with suppress(ValueError):
            values = [float(text.replace(",", ".")) for text in read_text(dataset, keyword)]
            if len(values) == 2 and all(1e-4 < value < 1e4 for value in values):
                return values[0], values[1]
    return 1.0, 1.0
