"""An archive in a PACS as other archives are: listed, and read byte for byte."""

import threading
from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pytest
from dicom_builders import by_dcmtk
from dicomweb_server import DicomwebServer

from pneumo_ray.data.archive import Entry, ListingCount, list_archives
from pneumo_ray.data.dataset import load_squares
from pneumo_ray.data.image_bytes import read_images
from pneumo_ray.data.inspect import InspectConfig, inspect_entries
from pneumo_ray.dicomweb.images import AT_ONCE, name_of, private_of
from pneumo_ray.dicomweb.web import ResourceError, ServerError
from pneumo_ray.errors import ArchiveError

HMAC_OF_1_2_3 = "c28d8a4cae631dbd3cdd0baae16853b2b2023dd700637208effdb677db988957"

pytestmark = pytest.mark.usefixtures("quick")


def listed(address: str, folder, uids=None, count=None) -> list[Entry]:
    private = private_of([address], str(folder), None if uids is None else str(uids))
    return list(list_archives([address], count, private))


def read(entries: list[Entry]) -> list:
    return list(read_images([(entry.uri, entry.member, entry.span) for entry in entries]))


def test_files_come_from_orthanc_as_they_were_stored(orthanc, make_radiograph, tmp_path):
    """A JPEG 2000 or RLE file must not be transcoded on its way: not its pixels, and not its hash."""
    files = [make_radiograph(number) for number in range(5)]
    files.append(by_dcmtk(pydicom.dcmread(BytesIO(make_radiograph(7))), "dcmcrle"))
    orthanc.store(files)
    entries = listed(f"{orthanc.address}?Modality=CR", tmp_path)
    assert sorted(read(entries)) == sorted(files)
    assert read([replace(entry, span=None) for entry in entries]) == read(entries), "a manifest does not know the row"


def test_orthanc_is_listed_in_pages(orthanc, make_radiograph, tmp_path, monkeypatch):
    from pneumo_ray.dicomweb import listing

    monkeypatch.setattr(listing, "PAGE", 2)
    orthanc.store(make_radiograph(number) for number in range(5))
    assert len({entry.image_id for entry in listed(orthanc.address, tmp_path)}) == 5
    assert len(listed(f"{orthanc.address}?ViewPosition=PA", tmp_path)) == 2
    assert len(listed(f"{orthanc.address}?StudyDate=20260101-20260131&Modality=CR", tmp_path)) == 5
    with pytest.raises(ArchiveError, match="no radiograph that --archive asks for"):
        listed(f"{orthanc.address}?StudyDate=20270101-", tmp_path)


def test_image_names_are_stable_in_one_folder_only(pacs, tmp_path):
    first, again, elsewhere = (
        [entry.image_id for entry in listed(pacs.address, tmp_path / name)] for name in ("a", "a", "b")
    )
    assert first == again
    assert not {*first} & {*elsewhere}, "without the salt the hash of a UID could be found by trial"


def test_a_name_is_a_keyed_hash():
    """The vector is of another implementation: printf 1.2.3 | openssl dgst -sha256 -hmac salt."""
    assert name_of("1.2.3", b"salt") == "i" + HMAC_OF_1_2_3[:24]
    assert name_of("1.2.3", None) == "1.2.3"


def test_images_of_a_manifest_are_read_by_name(pacs, folder_of, tmp_path):
    """A manifest holds neither the row in the index nor the server, and training reads its images all the same."""
    private = private_of([pacs.address], str(tmp_path), keep_identifiers=True)
    entries = list(list_archives([pacs.address], None, private))
    assert [entry.image_id for entry in entries] == [item["00080018"]["Value"][0] for item, _ in pacs.files]
    there, here = (
        inspect_entries(found, InspectConfig(size=64))
        for found in (entries, list(list_archives([str(folder_of([data for _, data in pacs.files]))])))
    )
    assert there["content_sha256"].to_pylist() == here["content_sha256"].to_pylist()
    assert (load_squares(there, 64) == load_squares(here, 64)).all()


def test_all_frames_of_an_instance_are_one_retrieval(quick_web, make_radiograph, tmp_path):
    """Frames are rows of their own; the file around them is moved once, and read as often as there are rows."""
    frames = np.arange(3 * 60 * 50, dtype=np.uint16).reshape(3, 60, 50) % 4096
    many = make_radiograph(8, pixels=frames, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.3")
    with DicomwebServer([make_radiograph(0), many, make_radiograph(1)]) as server:
        entries = listed(server.address, tmp_path)
        rows = [entry for entry in entries for _ in range(entry.frames or 1)]
        assert len(rows) == 5
        server.seen.clear()
        assert read(rows) == [server.files[0][1], many, many, many, server.files[2][1]]
        assert sum(map(is_retrieval, server.seen)) == 3


def test_missing_uids_are_entries_with_an_error(pacs, tmp_path):
    study = pacs.files[0][0]["0020000D"]["Value"][0]
    (tmp_path / "uids.txt").write_text(f"{study}\n1.2.3.4\n")
    entries = listed(pacs.address, tmp_path, tmp_path / "uids.txt")
    assert [entry.error is None for entry in entries] == [True, True, False]
    assert "1.2.3.4" not in repr(entries)


@pytest.mark.parametrize("faults", [[503, "drop", "half"], ["hang"]])
def test_an_image_survives_faults(pacs, tmp_path, faults):
    entries = listed(pacs.address, tmp_path)
    pacs.spoils, pacs.faults = is_retrieval, faults
    assert read(entries) == [data for _, data in pacs.files]


@pytest.mark.parametrize("fault", [503, "drop", 404, 403, "html"])
def test_an_unavailable_image_is_one_failure(pacs, tmp_path, private_words, fault):
    entries = listed(pacs.address, tmp_path)
    third = pacs.files[2][0]["00080018"]["Value"][0]
    pacs.spoils, pacs.faults = lambda path: path.endswith(third), [fault] * 99
    contents = read(entries)
    assert [isinstance(content, bytes) for content in contents] == [True, True, False, True, True, True]
    assert isinstance(contents[2], ResourceError)
    assert not any(word in str(contents[2]) for word in private_words)


def test_a_server_in_trouble_ends_the_reading(pacs, tmp_path):
    """It answers searches, and gives no image: rows that all say so would be worth nothing."""
    entries = listed(pacs.address, tmp_path)
    pacs.spoils, pacs.faults = is_retrieval, [503] * 999
    with pytest.raises(ServerError, match="does not answer after 5 tries: it answers 503"):
        read(entries)


def test_a_server_that_vanishes_ends_the_reading(pacs, tmp_path):
    entries = listed(pacs.address, tmp_path)
    contents = read_images([(entry.uri, entry.member, entry.span) for entry in entries])
    assert next(contents) == pacs.files[0][1]
    pacs.spoils, pacs.faults = lambda path: True, ["drop"] * 999
    with pytest.raises(ServerError, match="does not answer"):
        list(contents)


def test_requests_at_once_are_few(pacs, tmp_path):
    entries = listed(pacs.address, tmp_path) * 5
    pacs.delay, pacs.most_at_once = 0.05, 0
    threads = [threading.Thread(target=read, args=(entries,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pacs.most_at_once == AT_ONCE


def test_credentials_that_expire_end_the_reading(pacs, tmp_path):
    entries = listed(pacs.address, tmp_path)
    pacs.authorisation = "Bearer other"
    with pytest.raises(ServerError, match="credentials"):
        read(entries)


def test_listing_takes_no_pixels(pacs, tmp_path):
    count = ListingCount()
    listed(f"{pacs.address}?Modality=CR&ViewPosition=AP", tmp_path, count=count)
    assert not any("/studies/" in path for path in pacs.seen)
    assert count.passed_over.sentence() == "passed over 3: 3 of another modality, body part or view than asked for"


def is_retrieval(path: str) -> bool:
    return "/studies/" in path
