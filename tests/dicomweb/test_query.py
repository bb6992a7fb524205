"""Addresses of a PACS: what they may ask for, and what must not stand in them."""

import pytest

from pneumo_ray.dicomweb.listing import read_uids
from pneumo_ray.dicomweb.query import asked, check_archives
from pneumo_ray.dicomweb.server import Server
from pneumo_ray.errors import ConfigError


def test_an_address_names_server_and_conditions():
    server, query = asked("dicomweb+http://host:8042/dicom-web/?Modality=CR,DX&StudyDate=20260101-20260131")
    assert server == Server("http://host:8042/dicom-web")
    assert list(query.searches()) == [
        [("Modality", "CR"), ("StudyDate", "20260101-20260131")],
        [("Modality", "DX"), ("StudyDate", "20260101-20260131")],
    ]


def test_tls_is_switched_off_in_so_many_words():
    assert asked("dicomweb+https://h/d?tls=do-not-verify")[0] == Server("https://h/d", verify_tls=False)
    for word in ("off", "", "no"):
        with pytest.raises(ConfigError, match="do-not-verify"):
            asked(f"dicomweb+https://h/d?tls={word}")


@pytest.mark.parametrize(
    "address",
    [
        "dicomweb+ftp://host/x",
        "dicomweb+http://",
        "dicomweb+http:///dicom-web",
        "dicomweb+http://host:port/dicom-web",
        "dicomweb+https://host/dicom-web?Modality",
        "dicomweb+https://host/dicom-web?Modality=CR&Modality=DX",
        "dicomweb+https://host/dicom-web?modality=CR",
        "dicomweb+https://host/dicom-web#CR",
    ],
)
def test_what_cannot_be_asked_is_refused(address):
    with pytest.raises(ConfigError):
        check_archives((address,), None)


@pytest.mark.parametrize(
    "key", ["PatientID", "PatientName", "AccessionNumber", "StudyInstanceUID", "00100020", "StudyID"]
)
def test_a_query_names_no_patient(key):
    """Every user of a machine reads the command lines of its processes."""
    with pytest.raises(ConfigError, match="--uids") as caught:
        check_archives((f"dicomweb+https://host/dicom-web?{key}=5550173",), None)
    assert "5550173" not in str(caught.value)


def test_address_credentials_are_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="DICOMWEB_PASSWORD") as caught:
        check_archives(("dicomweb+https://zelda:secret@host/dicom-web",), None)
    assert "secret" not in str(caught.value)
    assert "zelda" not in str(caught.value)


@pytest.mark.parametrize("archives", [("folder",), (), ("dicomweb+http://h/d", "dicomweb+http://i/d")])
def test_uids_need_one_pacs(archives):
    with pytest.raises(ConfigError, match="--uids needs one --archive"):
        check_archives(archives, "uids.txt")


def test_uids_are_read_once_each_in_order(tmp_path):
    (tmp_path / "uids.txt").write_text("\ufeff# of January\n1.2.3\n\n 1.2.1 # second\n1.2.3\r\n")
    assert read_uids(str(tmp_path / "uids.txt")) == ("1.2.3", "1.2.1")


@pytest.mark.parametrize("content", [b"1.2.3\nACC-8642097\n", b"# nothing\n", b"\xff\xfe1\x00", None])
def test_a_bad_list_is_refused_without_quoting_it(tmp_path, content):
    path = tmp_path / "uids.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="--uids") as caught:
        read_uids(str(path))
    assert "8642097" not in str(caught.value)
