"""A member of a tar file is read where the listing found it, and by its name where that does not hold."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.data import containers
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.dataset import load_squares
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.inspect import INSPECTED_SCHEMA, InspectConfig, inspect_entries
from pneumo_ray.data.manifest import read_manifest, write_manifest
from pneumo_ray.errors import ManifestError
from pneumo_ray.model import Preprocessing
from pneumo_ray.score.decode import load_images
from pneumo_ray.score.listing import list_images, manifest_images

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


@pytest.mark.parametrize(("kind", "end"), [("gz", "tar.gz"), ("gz", "tgz"), ("bz2", "tar.bz2"), ("xz", "tar.xz")])
def test_members_of_a_compressed_tar_file_have_places(kind, end, tmp_path, not_gone_through):
    """In the unpacked file; two compressed files one behind the other are one unpacked file."""
    contents = contents_of(NAMES)
    one = write_tar(tmp_path / f"one.{end}", NAMES, contents, mode=f"w:{kind}")
    behind = write_tar(tmp_path / f"two.{end}", ["z.jpg"], [b"\xff\xd8\xff last"], mode=f"w:{kind}")
    one.write_bytes(one.read_bytes() + behind.read_bytes())
    entries = list(list_archives([str(one)]))
    not_gone_through()
    found = [read_image(entry.uri, entry.member, entry.span) for entry in entries + entries[::-1]]
    expected = [*contents, b"\xff\xd8\xff last"]
    assert found == expected + expected[::-1]


def test_a_misnamed_compressed_file_is_read_by_name(tmp_path):
    path = write_tar(tmp_path / "x.tar", ["a.jpg", "b.jpg"], contents_of(["a.jpg", "b.jpg"]), mode="w:gz")
    entries = list(list_archives([str(path)]))
    assert [read_image(e.uri, e.member, e.span) for e in entries] == contents_of(["a.jpg", "b.jpg"])


def test_a_link_is_read_by_its_name(tmp_path):
    path, contents = tmp_path / "x.tar", contents_of(["a.jpg"])
    write_tar(path, ["a.jpg"], contents)
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


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "by another program"])
def test_a_manifest_has_the_places(rewritten, tmp_path, not_gone_through):
    """Training reads rows of the manifest, scoring the list that is made of it; neither searches the tar file."""
    names = [f"{i}.png" for i in range(4)]
    pixels = [np.full((80, 80), 60 * i, np.uint8) for i in range(4)]
    contents = [cv2.imencode(".png", values)[1].tobytes() for values in pixels]
    path = write_tar(tmp_path / "x.tgz", names, contents, mode="w:gz")
    rows = inspect_entries(list(list_archives([str(path)])), InspectConfig())
    if rewritten:
        places = pa.array(rows["member_span"].to_pylist(), pa.list_(pa.int64()))
        rows = rows.set_column(rows.column_names.index("member_span"), "member_span", places)
    manifest = str(tmp_path / "manifest.parquet")
    write_manifest(rows, manifest)
    not_gone_through()
    squares = load_squares(read_manifest(manifest), 64)
    assert squares[:, 0, 0].tolist() == [0, 60, 120, 180]
    listed = manifest_images(manifest, Preprocessing(64, 73), boxes=False)
    loaded = load_images(listed.to_pylist(), Preprocessing(64, 73), find=False)
    assert [type(image).__name__ for image in loaded] == ["Framed"] * 4


def test_another_column_of_that_name_is_refused(tmp_path):
    table = pa.Table.from_pylist([{"image_id": "a"}], schema=INSPECTED_SCHEMA)
    table = table.set_column(table.column_names.index("member_span"), "member_span", pa.array(["here"]))
    with pytest.raises(ManifestError, match="member_span"):
        write_manifest(table, str(tmp_path / "manifest.parquet"))
