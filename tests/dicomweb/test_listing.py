"""Searches of a PACS, page by page, with servers that do less than the standard asks of them."""

from collections import Counter

import pytest
from dicomweb_server import DicomwebServer

from pneumo_ray.dicomweb import listing
from pneumo_ray.dicomweb.listing import Instance, Missing, find, find_uids
from pneumo_ray.dicomweb.query import query_of
from pneumo_ray.dicomweb.web import ServerError
from pneumo_ray.errors import ArchiveError

CT = "1.2.840.10008.5.1.4.1.1.2"
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"


def names(found) -> list[int]:
    """The numbers of `make_radiograph`, which end its UIDs."""
    return [int(item.instance.rpartition(".")[2]) for item in found]


def listed(web, text: str = "", passed_over: Counter | None = None) -> list[int]:
    return names(find(web, query_of(text), Counter() if passed_over is None else passed_over))


@pytest.mark.parametrize("page", [1, 2, 4, 6, 7])
def test_all_pages_are_read_whatever_their_size(pacs, quick_web, page):
    """A server may give fewer answers than it is asked for (PS3.18 8.3.4.4): only an empty page is the last."""
    pacs.page = page
    assert listed(quick_web(pacs)) == list(range(6))


def test_offset_and_limit_stand_in_each_request(pacs, quick_web, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 4)
    listed(quick_web(pacs), "Modality=CR")
    assert [path.partition("?")[2] for path in pacs.seen] == [
        f"Modality=CR&limit=4&offset={offset}" for offset in (0, 4, 6)
    ]


def test_a_server_without_offset_is_listed_once(pacs, quick_web, monkeypatch):
    pacs.knows -= {"offset"}
    assert listed(quick_web(pacs)) == list(range(6))
    monkeypatch.setattr(listing, "PAGE", 4)
    with pytest.raises(ServerError, match="same 4 instances to every offset"):
        listed(quick_web(pacs))


def test_radiography_modalities_are_queried_by_default(pacs, quick_web):
    listed(quick_web(pacs))
    assert {path.split("Modality=")[1][:2] for path in pacs.seen} == {"CR", "DX", "RG"}


def test_answers_that_contradict_the_query_are_left_out(pacs, quick_web):
    """A server may leave out conditions that it does not know (PS3.18 8.3.4.1), and does so here with the view."""
    passed_over: Counter[str] = Counter()
    assert listed(quick_web(pacs), "Modality=CR&ViewPosition=AP", passed_over) == [0, 2, 4]
    assert passed_over == {"other_header": 3}


def test_what_is_no_radiograph_is_left_unread(quick_web, make_radiograph):
    files = [
        make_radiograph(0),
        make_radiograph(1, SOPClassUID=CT, Modality="CT"),
        make_radiograph(2, SOPClassUID=REPORT),
        make_radiograph(3, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT"),
    ]
    passed_over: Counter[str] = Counter()
    with DicomwebServer(files) as server:
        server.knows -= {"Modality"}
        assert listed(quick_web(server), "Modality=*", passed_over) == [0, 3]
        assert not any("/studies/" in path for path in server.seen)
    assert passed_over == {"no_radiograph": 2}


def test_frames_are_known_before_pixels_are_moved(quick_web, make_radiograph):
    """A search need not tell the number of frames; the header does."""
    import numpy as np

    many = np.zeros((3, 8, 8), np.uint16)
    files = [make_radiograph(0), make_radiograph(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.3", pixels=many)]
    with DicomwebServer(files) as server:
        found = list(find(quick_web(server), query_of("Modality=CR"), Counter()))
        assert [item.frames for item in found] == [1, 3]
        assert [path.rpartition("/")[2] for path in server.seen if "/studies/" in path] == ["metadata"]


@pytest.mark.parametrize("at_once", [1, 4])
def test_uids_of_all_levels_match_once_in_order(pacs, quick_web, at_once):
    study, series, instance = (pacs.files[5][0][tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
    first = pacs.files[0][0]["00080018"]["Value"][0]
    uids = ["1.2.3", instance, first, series, study]
    found = list(find_uids(quick_web(pacs, at_once=at_once), query_of(""), uids, Counter()))
    assert isinstance(found[0], Missing)
    assert found[0].uid == "1.2.3"
    assert names(found[1:]) == [5, 0, 4]


def test_a_study_without_a_radiograph_is_missing(quick_web, make_radiograph):
    with DicomwebServer([make_radiograph(0, Modality="CT", SOPClassUID=CT)]) as server:
        study = server.files[0][0]["0020000D"]["Value"][0]
        (found,) = find_uids(quick_web(server), query_of(""), [study], Counter())
    assert isinstance(found, Missing)
    assert found.reason == "the PACS has nothing under this UID with Modality CR or DX or RG"


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("html", ServerError, "answers a search with text/html; the path is often /dicom-web"),
        (404, ServerError, "no search for instances at this path"),
        (400, ArchiveError, "does not grant the search"),
        (403, ArchiveError, "access is forbidden"),
        (401, ServerError, "asks for credentials"),
        (302, ServerError, "redirection"),
    ],
)
def test_what_is_no_dicomweb_server_is_named(pacs, quick_web, fault, error, words):
    pacs.faults = [fault]
    with pytest.raises(error, match=words):
        listed(quick_web(pacs))


def test_a_server_that_answers_other_json_is_named(quick_web):
    class Other(DicomwebServer):
        def search(self, query):
            return {"status": "ok"}

    with Other() as server, pytest.raises(ServerError, match="no DICOMweb server"):
        listed(quick_web(server))


def test_a_listing_survives_faults_half_way(pacs, quick_web):
    pacs.page = 2
    pacs.faults = [None, 503, "drop", None, "half", 503]
    assert listed(quick_web(pacs), "Modality=CR") == list(range(6))


def test_uids_stand_escaped_in_a_path():
    """A hostile server could otherwise choose the path that is asked for next."""
    assert Instance("1/../2", "a?b", "c#d").path == "/studies/1%2F..%2F2/series/a%3Fb/instances/c%23d"
