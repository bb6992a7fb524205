"""The private index: whole, for its owner alone, and found by row or by name."""

import os
import stat

import pytest

from pneumo_ray.dicomweb.index import IndexGoneError, find_instance, is_index, written
from pneumo_ray.dicomweb.listing import Instance
from pneumo_ray.dicomweb.server import Server
from pneumo_ray.errors import ArchiveError

SERVER = Server("https://pacs.example/dicom-web", verify_tls=False)


def instance(number: int) -> Instance:
    return Instance(f"1.2.{number // 2}", f"1.2.{number // 2}.1", f"1.2.{number}.9")


def write(path: str, count: int, first: int = 0) -> None:
    with written(path, SERVER) as add:
        for number in range(first, first + count):
            assert add(f"i{number}", instance(number)) == number - first


@pytest.fixture
def uri(tmp_path) -> str:
    return str(tmp_path / "_pacs" / "a.pacs")


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 2500])
def test_images_are_found_by_row_and_name(uri, count):
    write(uri, count)
    for number in {0, count // 2, count - 1}:
        assert find_instance(uri, f"i{number}", number) == (SERVER, instance(number))
        assert find_instance(uri, f"i{number}") == (SERVER, instance(number))
        assert find_instance(uri, f"i{number}", (number + 7) % 3000) == (SERVER, instance(number)), "by name"


def test_only_its_owner_may_read_it(uri):
    write(uri, 3)
    assert stat.S_IMODE(os.stat(uri).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(uri)).st_mode) == 0o700


def test_half_an_index_is_never_there(uri):
    with pytest.raises(ZeroDivisionError), written(uri, SERVER) as add:
        add(f"i{1 // 0}", instance(0))
    assert os.listdir(os.path.dirname(uri)) == []


def test_an_index_written_anew_is_read_anew(uri):
    write(uri, 3)
    assert find_instance(uri, "i1", 1)[1] == instance(1)
    write(uri, 3, first=5)
    assert find_instance(uri, "i6", 1)[1] == instance(6)
    with pytest.raises(ArchiveError, match="no image i1"):
        find_instance(uri, "i1", 1)


@pytest.mark.parametrize("content", [None, b"", b"ARROW1", b"x" * 500])
def test_an_index_that_is_gone_ends_the_job(uri, content):
    if content is not None:
        os.makedirs(os.path.dirname(uri))
        with open(uri, "wb") as file:
            file.write(content)
    with pytest.raises(IndexGoneError, match="where in the PACS"):
        find_instance(uri, "i0", 0)


def test_an_index_may_lie_in_a_bucket(bucket):
    from pneumo_ray import storage

    uri = storage.join(bucket, "_pacs", "a.pacs")
    assert is_index(uri)
    write(uri, 1500)
    assert find_instance(uri, "i1400", 1400) == (SERVER, instance(1400))
    assert find_instance(uri, "i1400") == (SERVER, instance(1400))
