"""A member of a tar file is read where the listing found it, and by its name where that does not hold."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from pneumo_ray.data import containers
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.score.listing import list_images

NAMES = ["a.jpg", "b/c.jpg", "ü/肺.jpg", f"{'long' * 40}/{'name' * 30}.jpg", "a.jpg"]
"""With a long name, one that is not ASCII, and two members of one name."""


def write_tar(path: Path, names: list[str], contents: list[bytes], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as tar:
        for name, content in zip(names, contents, strict=True):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # a time with a fraction needs an extended header in pax
            tar.addfile(info, io.BytesIO(content))
    return path


def contents_of(names: list[str]) -> list[bytes]:
    return [f"\xff\xd8\xff {number} {name}".encode() * (number + 1) for number, name in enumerate(names)]


@pytest.fixture
def not_gone_through(monkeypatch):
    """Fails whoever goes through a tar file for one of its members."""

    def refuse(uri: str) -> dict:
        raise AssertionError(f"{uri} is gone through")

    return lambda: monkeypatch.setattr(containers, "_index", refuse)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_listed_members_are_read_directly(form, tmp_path, not_gone_through):
    names = [name for name in NAMES if form != tarfile.USTAR_FORMAT or len(name) < 100]
    contents = contents_of(names)
    one = write_tar(tmp_path / "one.tar", names, contents, format=form)
    behind = write_tar(tmp_path / "two.tar", ["z.jpg"], [b"\xff\xd8\xff last"], format=form)
    one.write_bytes(one.read_bytes() + behind.read_bytes())
    entries = list(list_archives([str(one)]))
    not_gone_through()
    found = [read_image(entry.uri, entry.member, entry.span) for entry in reversed(entries)]
    assert found == [b"\xff\xd8\xff last", *reversed(contents)]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "link"])
def test_members_without_a_place_need_their_name(kind, tmp_path):
    path, contents = tmp_path / f"x.tar{'' if kind == 'link' else f'.{kind}'}", contents_of(["a.jpg"])
    write_tar(path, ["a.jpg"], contents, mode="w" if kind == "link" else f"w:{kind}")
    if kind == "link":
        with tarfile.open(path, "a") as tar:
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
            tar.addfile(link)
    *_, entry = list_archives([str(path)])
    assert entry.span is None
    assert read_image(entry.uri, entry.member, entry.span) == contents[0]


@pytest.mark.parametrize("now", [["b.jpg", "a.jpg"], ["longer.jpg", "b.jpg", "a.jpg"], ["a.jpg"]])
def test_a_changed_file_is_read_by_name(now, tmp_path):
    """Of the same sizes in another order, with one more in front, with less behind it."""
    path = write_tar(tmp_path / "x.tar", ["a.jpg", "b.jpg"], [b"\xff\xd8\xff of a", b"\xff\xd8\xff of b"])
    first, _ = list_archives([str(path)])
    content = {name: b"\xff\xd8\xff no " + name[:1].encode() for name in now}
    write_tar(path, now, list(content.values()))
    containers._opened.cache_clear()
    containers._index.cache_clear()
    assert read_image(first.uri, first.member, first.span) == content["a.jpg"]


def test_the_list_of_a_job_has_the_places(tmp_path, not_gone_through):
    names = [f"{i}.jpg" for i in range(5)]
    path = write_tar(tmp_path / "x.tar", names, contents_of(names))
    source = list_images([str(path)], str(tmp_path / "list.parquet"), 64)
    rows = source.read(0)
    assert rows["span"].type == pa.list_(pa.int64(), 2)
    not_gone_through()
    read = [read_image(row["uri"], row["member"], containers.Span(*row["span"])) for row in rows.to_pylist()]
    assert read == contents_of(names)
