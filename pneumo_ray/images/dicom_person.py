"""Facts about a radiograph from its DICOM header that name nobody: age, sex, view, manufacturer.

No name, identifier or date is read, and ages above 89 are 90, as HIPAA's safe harbour has it (45 CFR 164.514). Values
that the standard does not know are left out, because a free text may hold anything.
"""

import re
from typing import NamedTuple

from pydicom.dataset import Dataset

from pneumo_ray.images.dicom_elements import read_text

OLDEST = 90.0
"""Years; every age above 89 counts as this."""
KEYWORDS = ("PatientAge", "PatientSex", "ViewPosition", "Manufacturer")
SEXES = ("F", "M", "O")
VIEWS = ("AP", "PA", "LL", "RL", "LATERAL", "RLD", "LLD", "RLO", "LLO", "LAO", "RAO", "LPO", "RPO")
_IN_A_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
_MAKERS = (
    *("AGFA", "ARGUS", "CANON", "CARESTREAM", "DETECTION TECHNOLOGY", "DRTECH", "EIZO", "FUJI", "GENERAL ELECTRIC"),
    *("GE HEALTHCARE", "GE MEDICAL", "HITACHI", "HOLOGIC", "IMAGING DYNAMICS", "KODAK", "KONICA", "LODOX", "LUMISYS"),
    *(
        "MINDRAY",
        "PHILIPS",
        "RAYENCE",
        "SAMSUNG",
        "SHIMADZU",
        "SIEMENS",
        "STERNE",
        "SWISSRAY",
        "TOSHIBA",
        "UNITED IMAGING",
    ),
    *("VAREX", "VARIAN", "VIDAR", "VIEWORKS"),
)
"""Beginnings of the names of manufacturers; the name of another is a hospital's text and becomes `other`."""


class Person(NamedTuple):
    """What is known of a patient and a view; None where nothing is."""

    age_years: float | None = None
    """Completed years or a part of one, at most `OLDEST`."""
    sex: str | None = None
    """F, M or O."""
    view_position: str | None = None
    """AP, PA, LL and so on."""
    manufacturer: str | None = None
    """In upper case, one of those that are known, or OTHER."""


NOBODY = Person()


def read_person(dataset: Dataset) -> Person:
    """Return age, sex, view and manufacturer from a header."""
    texts = (read_text(dataset, keyword) for keyword in KEYWORDS)
    age, sex, view, maker = (values[0] if values else None for values in texts)
    return Person(age_in_years(age), sex_of(sex), view_of(view), _maker_of(maker))


def age_in_years(text: str | None) -> float | None:
    """Return an age string (`006Y`, `011M`, `003W`, `020D`; PS3.5 6.2, AS) in years; None where it is none."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", text or "")
    return None if match is None else capped_age(int(match[1]) / _IN_A_YEAR[match[2]])


def capped_age(years: float) -> float | None:
    """Return years, 90 for every age above 89; None for what is no age."""
    if not 0 <= years < 150:
        return None
    return OLDEST if years > OLDEST - 1 else float(years)


def sex_of(text: str | None) -> str | None:
    """Return F, M or O; None for anything else."""
    first = (text or "").strip().upper()
    return {"FEMALE": "F", "MALE": "M", "OTHER": "O"}.get(first, first if first in SEXES else None)


def view_of(text: str | None) -> str | None:
    """Return a view position of the standard, in upper case; None for anything else."""
    word = (text or "").strip().upper()
    return word if word in VIEWS else None


def _maker_of(text: str | None) -> str | None:
    if text is None:
        return None
    return next((maker for maker in _MAKERS if text.startswith(maker)), "OTHER")
