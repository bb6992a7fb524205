"""A small PACS for tests: radiographs of patients whose names, numbers and UIDs must appear nowhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_builders import radiograph, to_bytes
from dicomweb_server import DicomwebServer
from pydicom.uid import ExplicitVRLittleEndian

from pneumo_ray.dicomweb.server import Server
from pneumo_ray.dicomweb.web import Limits, Web

IDENTIFIERS = {
    "PatientName": "WINTERBOTTOM^ZELDA",
    "PatientID": "MRN-5550173",
    "PatientBirthDate": "20190623",
    "AccessionNumber": "ACC-8642097",
    "ReferringPhysicianName": "PHYSICIAN^QUENTIN",
    "InstitutionName": "St Aldhelm Hospital",
    "StudyID": "STUDY-77213",
}
ROOT = "1.2.826.0.1.3680043.8.498.5550173"
"""Begins the UIDs of all these studies, so that a trace of one is found."""


def make(number: int, **elements: object) -> bytes:
    """A radiograph of its own: two to a study, a study to a patient; `elements` set or, with None, remove."""
    rng = np.random.default_rng(number)
    values = (np.kron(rng.random((10, 9)), np.ones((12, 12))) * 4000).astype(np.uint16)
    study = number // 2
    uids = {
        "StudyInstanceUID": f"{ROOT}.{study}",
        "SeriesInstanceUID": f"{ROOT}.{study}.1",
        "SOPInstanceUID": f"{ROOT}.{study}.1.{number}",
        "PatientID": f"{IDENTIFIERS['PatientID']}-{study}",
    }
    own = {**IDENTIFIERS, **uids, "StudyDate": "20260107", "ViewPosition": "PA" if number % 2 else "AP"}
    wanted = own | elements
    pixels = wanted.pop("pixels", values)
    dataset = radiograph(pixels, ExplicitVRLittleEndian, **wanted)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return to_bytes(dataset)


@pytest.fixture(scope="session")
def make_radiograph() -> Callable[..., bytes]:
    """Make the file of radiograph `number`; further elements by keyword, pixels as `pixels`."""
    return make


@pytest.fixture
def pacs():
    """A server in this process with six radiographs of three patients; it can be made to fail."""
    with DicomwebServer(map(make, range(6))) as server:
        yield server


def web_for(server: DicomwebServer, **limits: float) -> Web:
    """Return a client with short waits."""
    url, verify = server.address.removeprefix("dicomweb+"), True
    quick = {"first_wait": 0.01, "longest_wait": 0.02, "longest_named_wait": 0.02, "silent_seconds": 0.3}
    return Web(Server(url, verify), Limits(**(quick | limits)))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def quick_web() -> Callable[..., Web]:
    """Make a client of a server with short waits; further limits by keyword."""
    return web_for


@pytest.fixture
def quick(monkeypatch) -> None:
    """Let every client of this process wait briefly."""
    from pneumo_ray.dicomweb import images

    made: dict[Server, Web] = {}

    def web_of(server: Server) -> Web:
        limits = Limits(first_wait=0.01, longest_wait=0.02, longest_named_wait=0.02, silent_seconds=0.3)
        return made.setdefault(server, Web(server, limits))

    monkeypatch.setattr(images, "web_of", web_of)


def traces() -> list[str]:
    """Return what of the patients must not be found anywhere."""
    names = [part for value in IDENTIFIERS.values() for part in value.split("^")]
    return [*names, ROOT]


@pytest.fixture(scope="session")
def private_words() -> list[str]:
    """What of the patients must not be found anywhere."""
    return traces()


@pytest.fixture
def folder_of(tmp_path) -> Callable[..., Path]:
    """Write files into a folder, named by a number."""

    def write(files: list[bytes], name: str = "folder") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number, data in enumerate(files):
            (folder / f"{number}.dcm").write_bytes(data)
        return folder

    return write
