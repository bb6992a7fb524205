"""Who is on a radiograph, as the header says it: PS3.5 6.2 for ages, PS3.3 C.8.7 for views, HIPAA for old ages."""

import io

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from pneumo_ray.images.decode import inspect_image
from pneumo_ray.images.dicom_person import Person, age_in_years, capped_age, read_person, sex_of, view_of


@pytest.mark.parametrize(
    ("text", "years"),
    [("006Y", 6), ("011M", 11 / 12), ("003W", 21 / 365.25), ("020D", 20 / 365.25), ("089Y", 89), ("090Y", 90), ("103Y", 90),
     ("6Y", 6), ("", None), ("Y", None), ("-06Y", None), ("6 YEARS", None), ("SMITH", None), ("200Y", None), (None, None)],
)  # fmt: skip
def test_ages_are_years(text, years):
    assert age_in_years(text) == (None if years is None else pytest.approx(years))


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_age_above_89_is_told_from_90(years):
    age = capped_age(years)
    assert age is None or 0 <= age <= 89 or age == 90


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@settings(max_examples=50)
@given(st.text(max_size=30))
def test_free_text_never_becomes_a_value(text):
    dataset = Dataset()
    dataset.PatientSex = dataset.ViewPosition = dataset.Manufacturer = text
    found = read_person(dataset)
    assert found.sex in (None, "F", "M", "O")
    assert found.view_position is None or found.view_position == text.strip(" \t\r\n\0").upper().split("\\")[0].strip()
    assert found.manufacturer is None or found.manufacturer.isascii()


def test_a_name_in_another_element_is_dropped():
    dataset = Dataset()
    dataset.PatientSex, dataset.ViewPosition, dataset.Manufacturer = "ZELDA", "WINTERBOTTOM", "St Aldhelm Hospital"
    assert read_person(dataset) == Person(None, None, None, "OTHER")


def test_words_of_tables_are_understood():
    assert [sex_of(word) for word in ("female", "M", "o", "x", None)] == ["F", "M", "O", None, None]
    assert [view_of(word) for word in ("ap", "PA", "frontal")] == ["AP", "PA", None]


def test_a_header_is_read_without_its_pixels():
    path = pydicom.data.get_testdata_file("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    dataset.Modality, dataset.SOPClassUID = "CR", "1.2.840.10008.5.1.4.1.1.1"
    dataset.PatientAge, dataset.PatientSex, dataset.ViewPosition, dataset.Manufacturer = "004Y", "F", "AP", "SIEMENS AG"
    dataset.PixelData = np.zeros((dataset.Rows, dataset.Columns), np.uint16).tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream)
    assert inspect_image(stream.getvalue()).person == Person(4.0, "F", "AP", "SIEMENS")
