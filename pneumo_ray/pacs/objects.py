"""What all objects of a result share: their UIDs, their series, their dates, and their bytes."""

import io

from pydicom.dataset import Dataset

from pneumo_ray.images.dicom import MAKER
from pneumo_ray.pacs.config import Kind
from pneumo_ray.pacs.result import NOTICE, Algorithm, Part
from pneumo_ray.pacs.source import COPIED, Source
from pneumo_ray.pacs.uids import derived_uid
from pneumo_ray.records import JsonObject

OF_KIND: dict[Kind, tuple[Part, ...]] = {"sr": ("sr",), "map": ("map-native", "map-image"), "capture": ("capture",)}
_SERIES: dict[Part, tuple[int, str]] = {
    "sr": (9101, "report"),
    "map-native": (9102, "maps"),
    "map-image": (9102, "maps"),
    "capture": (9103, "panels"),
}
"""Number of the series in the study and what it is, for its description."""
OWN = f"{NOTICE}: {MAKER}"
"""Beginning of the description of every series of results."""
CLASSES: dict[Part, str] = {
    "sr": "1.2.840.10008.5.1.4.1.1.88.33",
    "map-native": "1.2.840.10008.5.1.4.1.1.30",
    "map-image": "1.2.840.10008.5.1.4.1.1.30",
    "capture": "1.2.840.10008.5.1.4.1.1.7",
}
"""SOP classes: Comprehensive SR, Parametric Map, Secondary Capture."""


def instance_uid(source: Source, algorithm: Algorithm, part: Part) -> str:
    """Return the SOP Instance UID of an object. A report that refers to other objects is another one."""
    refers_to = algorithm.explanations if part == "sr" else ()
    return derived_uid(part, algorithm.model_hash, algorithm.config_hash, *refers_to, *source.name)


def series_uid(source: Source, algorithm: Algorithm, part: Part) -> str:
    """Return the Series Instance UID of an object: one for a study and kind, and for maps one for each image.

    The objects of a series share a frame of reference, and every image has its own.
    """
    number, _ = _SERIES[part]
    names = source.name if number == 9102 else (source.study,)
    return derived_uid(f"series {number}", algorithm.model_hash, algorithm.config_hash, *names)


def series_description(algorithm: Algorithm, part: Part) -> str:
    """Return the description of an object's series, at most 64 characters: the notice first, the algorithm's mark last."""
    return f"{OWN} {_SERIES[part][1]} {algorithm.mark}"


def identity(source: Source, algorithm: Algorithm, part: Part) -> JsonObject:
    """Return the arguments that every class of highdicom has."""
    return {
        "series_instance_uid": series_uid(source, algorithm, part),
        "series_number": _SERIES[part][0],
        "series_description": series_description(algorithm, part),
        "sop_instance_uid": instance_uid(source, algorithm, part),
        "instance_number": 2 * source.number - (part != "map-image") if _SERIES[part][0] == 9102 else source.number,
        "manufacturer": MAKER,
        "manufacturer_model_name": algorithm.name[:64],
        "software_versions": algorithm.version[:64],
        "device_serial_number": algorithm.model_hash[:64],
    }


def dated(dataset: Dataset, algorithm: Algorithm) -> Dataset:
    """Give an object the date of the scores in place of the present one, so that it is the same when it is made again."""
    day, time = algorithm.made.strftime("%Y%m%d"), algorithm.made.strftime("%H%M%S")
    del dataset.ContributingEquipmentSequence  # of highdicom, with the present time
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(dataset, f"{name}Date", day)
        setattr(dataset, f"{name}Time", time)
    if "DateOfSecondaryCapture" in dataset:
        dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = day, time
    return dataset


def refill(made: Dataset, source: Source, algorithm: Algorithm, part: Part) -> None:
    """Give an object that was made of another image of the job what it has of this one: patient, study and identity."""
    for keyword in COPIED:
        if keyword in made:
            delattr(made, keyword)
        if keyword in source.header:
            made.add(source.header[keyword])
    made.StudyInstanceUID = source.study
    identified = identity(source, algorithm, part)
    made.SeriesInstanceUID = identified["series_instance_uid"]
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = identified["sop_instance_uid"]
    made.InstanceNumber = identified["instance_number"]


def file_bytes(dataset: Dataset) -> bytes:
    """Return the DICOM file of an object."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
