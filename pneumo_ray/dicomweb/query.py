"""What an address asks a PACS for: the query behind its `?`.

It stands in the list of processes of the machine and in the records of a job. So it may say what kind of image is
wanted and from when, and never whose: who is wanted is named in a file.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from pneumo_ray.config import require
from pneumo_ray.dicomweb.server import Server, is_dicomweb, server_of
from pneumo_ray.errors import ConfigError

SEVERAL = {"Modality": "00080060", "BodyPartExamined": "00180015", "ViewPosition": "00185101"}
"""Keys that take several values with commas between them, and their tags: an answer that contradicts them is left out."""
KEYS = (
    *SEVERAL,
    "ModalitiesInStudy",
    "StudyDate",
    "StudyTime",
    "SeriesDate",
    "PerformedProcedureStepStartDate",
    "AcquisitionDate",
    "ContentDate",
    "SOPClassUID",
    "Manufacturer",
    "ManufacturerModelName",
    "StationName",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "PatientSex",
    "PatientAge",
)
"""Attributes that a query may name, by their keywords (PS3.6); none of them names a patient."""


@dataclass(frozen=True)
class Query:
    """Conditions on instances, all of which hold."""

    conditions: tuple[tuple[str, tuple[str, ...]], ...]
    """Keyword of an attribute, and the values of which it has one."""

    def or_of(self, name: str, values: tuple[str, ...]) -> "Query":
        """Return the query with a condition on one attribute, unless it has one."""
        if name in dict(self.conditions):
            return self
        return Query(((name, values), *self.conditions))

    def searches(self) -> Iterator[list[tuple[str, str]]]:
        """Yield the searches that answer it: a search takes one value of each attribute (PS3.18 8.3.4)."""
        names = [name for name, _ in self.conditions]
        for values in itertools.product(*(values for _, values in self.conditions)):
            yield list(zip(names, values, strict=True))

    def words(self) -> str:
        """Return the conditions as text for a message."""
        return " and ".join(f"{name} {' or '.join(values)}" for name, values in self.conditions)


def query_of(text: str) -> Query:
    """Return the query of an address.

    Args:
        text: what stands behind the question mark, `Modality=CR,DX&StudyDate=20260101-20260131`.

    Raises:
        ConfigError: for an attribute that it may not name.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name not in KEYS:
            meant = next((f" (did you mean {key}?)" for key in KEYS if key.lower() == name.lower()), "")
            raise ConfigError(
                f"a DICOMweb address may not ask for {name}{meant}; its query is visible to every user of this machine, so name "
                f"patients' studies by their UIDs in a file with --uids. It may ask for {', '.join(KEYS)}"
            )
        values = tuple(filter(None, value.split(","))) if name in SEVERAL else (value,)
        if not value or not values or name in found:
            raise ConfigError(f"a DICOMweb address asks for {name} {'twice' if name in found else 'without a value'}")
        found[name] = values
    return Query(tuple(found.items()))


def asked(address: str) -> tuple[Server, Query]:
    """Return the server and the query of an address.

    Raises:
        ConfigError: if it is none that can be asked.
    """
    server, text = server_of(address)
    return server, query_of(text)


def check_archives(archives: Sequence[str], uids: str | None) -> None:
    """Refuse addresses that cannot be asked, and a list of UIDs for what is no PACS.

    Raises:
        ConfigError: if there is one.
    """
    for archive in filter(is_dicomweb, archives):
        asked(archive)
    require(
        uids is None or (len(archives) == 1 and is_dicomweb(archives[0])),
        "--uids needs one --archive, which is a DICOMweb address (dicomweb+https://host/dicom-web)",
    )
