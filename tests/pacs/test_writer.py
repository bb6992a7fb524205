"""The writer of objects against pydicom, byte for byte."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pneumo_ray.pacs.objects import file_bytes
from pneumo_ray.pacs.writer import file_of


def item(**elements: object) -> Dataset:
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def read_again(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(stream.getvalue()))


def an_object(**elements: object) -> Dataset:
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "SOPInstanceUID": "1.2.3", "PatientName": "A^B", "StudyDate": "",
        "PatientSize": 1.75, "SoftwareVersions": ["one", "two"], "FrameIncrementPointer": 0x00181063,
        "RescaleSlope": "1.50", "InstanceNumber": 7, "TextValue": "odd", "Rows": 3, "EncapsulatedDocument": b"\1\2\3\4",
        "ContentSequence": [item(ValueType="NUM", FloatingPointValue=0.1), item(ContentSequence=[item(UID="1.2.34")])],
        "ProcedureCodeSequence": [],
    }  # fmt: skip
    return item(**(values | elements))


def test_what_nobody_looked_at_is_copied():
    read = read_again(an_object())
    assert file_of(read) == file_bytes(read_again(an_object()))


CHANGES = {
    "PatientName": "Müller^Zoë=山田^太郎",
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    "SoftwareVersions": "three",
    "StudyDate": "20260102",
    "InstanceNumber": None,
    "PatientSize": 0.1 + 0.2,
    "RescaleSlope": pydicom.valuerep.DSfloat(1 / 3, auto_format=True),
    "TextValue": "",
    "Rows": 4,
    "PatientComments": "x\r\n€",
    "SpacingBetweenSlices": [1, 2],
    "DoubleFloatRealWorldValueFirstValueMapped": 1e-300,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_elements_equal_those_of_pydicom(name):
    charset = {} if name == "SpecificCharacterSet" else {"SpecificCharacterSet": "ISO_IR 192"}
    one, two = read_again(an_object(**charset)), read_again(an_object(**charset))
    for dataset in (one, two):
        setattr(dataset, name, CHANGES[name])
        assert dataset.ContentSequence[1].ContentSequence[0].UID == "1.2.34"
        dataset.ContentSequence[0].FloatingPointValue = 1 / 3
        dataset.ContentSequence[1].ContentSequence[0].UID = "1.2.345"
    assert file_of(one) == file_bytes(two)


def test_items_of_other_encodings_are_encoded_anew():
    """A sequence that is copied from a source in Implicit VR, whose elements pydicom has not decoded."""
    source = item(
        SOPClassUID="1.2.3", SOPInstanceUID="1.2", OtherPatientIDsSequence=[item(PatientID="X1", TypeOfPatientID="TEXT")]
    )  # fmt: skip
    files = []
    for write in (file_of, file_bytes):
        target = read_again(an_object())
        target.add(read_again(source, ImplicitVRLittleEndian)["OtherPatientIDsSequence"])
        files.append(write(target))
    assert files[0] == files[1]
    assert pydicom.dcmread(io.BytesIO(files[0])).OtherPatientIDsSequence[0].PatientID == "X1"


def test_random_values_equal_those_of_pydicom():
    rng = np.random.default_rng(0)
    for value in rng.normal(size=50) * 10.0 ** rng.integers(-12, 12, 50):
        one, two = read_again(an_object()), read_again(an_object())
        for dataset in (one, two):
            dataset.RescaleSlope = pydicom.valuerep.DS(value, auto_format=True)
            dataset.ContentSequence[0].FloatingPointValue = value
        assert file_of(one) == file_bytes(two)
