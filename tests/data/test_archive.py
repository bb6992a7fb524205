import gzip
import io
import os
import tarfile
import zipfile

import pytest
from pyarrow import fs

from pneumo_ray.data import containers
from pneumo_ray.data.archive import ListingCount, list_archives
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.errors import ArchiveError, StorageError
from pneumo_ray.images.decode import EmptyFileError, ImageTooLargeError, TruncatedImageError


def ids(*archives) -> list[str]:
    return [entry.image_id for entry in list_archives([str(a) for a in archives])]


def write_tar(path, members: dict[str, bytes], mode="w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_folder_lists_images_and_counts_the_rest(tmp_path):
    for name in (
        "b/2.jpg",
        "b/1.JPEG",
        "a.png",
        "notes.csv",
        ".hidden.jpg",
        "__MACOSX/b/._1.jpg",
        "1.2.840.10008.1",
        "IM0001",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    count = ListingCount()
    found = [entry.image_id for entry in list_archives([str(tmp_path)], count)]
    assert found == ["1.2.840.10008.1", "IM0001", "a.png", "b/1.JPEG", "b/2.jpg"]
    assert count.ignored == 3


@pytest.mark.parametrize("name", ["with space.jpg", "ümläut 肺.jpg", "new\nline.jpg", "quote'\".jpg"])
def test_any_name_is_listed_once_and_readable(tmp_path, name):
    (tmp_path / name).write_bytes(b"content")
    (entry,) = list_archives([str(tmp_path)])
    assert entry.image_id == name
    assert read_image(entry.uri, entry.member) == b"content"


def test_a_name_outside_utf8_is_listed_and_readable(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.jpg", "wb") as file:
        file.write(b"content")
    (entry,) = list_archives([str(tmp_path)])
    entry.image_id.encode("utf-8")
    assert read_image(entry.uri, entry.member) == b"content"


def test_links_list_an_image_once_even_in_loops(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert ids(tmp_path) == ["a/1.jpg", "loop.jpg"]
    loop = next(entry for entry in list_archives([str(tmp_path)]) if entry.image_id == "loop.jpg")
    with pytest.raises(OSError, match="symbolic links"):
        read_image(loop.uri, None)


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar.xz", "w:xz")]
)
def test_tar_members_are_read_in_place(tmp_path, name, mode):
    write_tar(tmp_path / name, {"train/NORMAL/1.jpg": b"one", "../../evil.jpg": b"two", "readme.txt": b"no"}, mode)
    entries = list(list_archives([str(tmp_path / name)]))
    assert [entry.image_id for entry in entries] == ["train/NORMAL/1.jpg", "../../evil.jpg"]
    assert [read_image(e.uri, e.member) for e in reversed(entries)] == [b"two", b"one"]
    assert sorted(os.listdir(tmp_path)) == [name]
    assert not (tmp_path.parent.parent / "evil.jpg").exists()


def test_members_of_a_zip_file_inside_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as pack:
        pack.writestr("a/1.jpg", b"one")
        pack.writestr("__MACOSX/a/._1.jpg", b"no")
    (entry,) = list_archives([str(tmp_path)])
    assert entry.image_id == "x.zip/a/1.jpg"
    assert read_image(entry.uri, entry.member) == b"one"


def test_two_members_of_one_name_are_two_images(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for data in (b"first", b"second"):
            info = tarfile.TarInfo("1.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    entries = list(list_archives([str(tmp_path / "x.tar")]))
    assert len({entry.image_id for entry in entries}) == 2
    assert [read_image(e.uri, e.member) for e in entries] == [b"first", b"second"]


def test_a_broken_archive_keeps_its_good_members(tmp_path):
    write_tar(tmp_path / "x.tar", {f"{i}.jpg": bytes(2000) for i in range(4)})
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:6000])
    (tmp_path / "y.zip").write_bytes(b"not a zip file")
    entries = list(list_archives([str(tmp_path)]))
    assert [e.image_id for e in entries if e.error is None][:2] == ["x.tar/0.jpg", "x.tar/1.jpg"]
    assert {e.image_id for e in entries if e.error is not None} == {"x.tar", "y.zip"}


def test_several_archives_keep_their_names_apart(tmp_path):
    for folder in ("p/train", "q/train"):
        (tmp_path / folder / "NORMAL").mkdir(parents=True)
        (tmp_path / folder / "NORMAL" / "1.jpg").write_bytes(b"x")
    assert ids(tmp_path / "p/train", tmp_path / "q/train") == ["train/NORMAL/1.jpg", "train~2/NORMAL/1.jpg"]


def test_missing_and_empty_archives_are_named(tmp_path):
    with pytest.raises(ArchiveError, match="does not exist"):
        ids(tmp_path / "nothing")
    (tmp_path / "0.jpg").write_bytes(b"")
    (entry,) = list_archives([str(tmp_path)])
    with pytest.raises(EmptyFileError):
        read_image(entry.uri, entry.member)


def test_tar_links_stay_inside_or_fail(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"of the host")
    write_tar(tmp_path / "a.tar", {"real.jpg": b"content"})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind, target in (
            ("hard.jpg", tarfile.LNKTYPE, "real.jpg"),
            ("soft.jpg", tarfile.SYMTYPE, "real.jpg"),
            ("out.jpg", tarfile.SYMTYPE, "../../../etc/passwd"),
            ("near.jpg", tarfile.SYMTYPE, "secret.jpg"),
            ("far.jpg", tarfile.SYMTYPE, str(tmp_path / "secret.jpg")),
            ("near-hard.jpg", tarfile.LNKTYPE, "secret.jpg"),
            ("far-hard.jpg", tarfile.LNKTYPE, str(tmp_path / "secret.jpg")),
            ("loop.jpg", tarfile.SYMTYPE, "loop.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    entries = {entry.image_id: entry for entry in list_archives([str(tmp_path / "a.tar")])}
    for name in ("real.jpg", "hard.jpg", "soft.jpg"):
        assert read_image(entries[name].uri, name) == b"content"
    for name in set(entries) - {"real.jpg", "hard.jpg", "soft.jpg"}:
        with pytest.raises(ArchiveError):
            read_image(entries[name].uri, name)
    assert len(entries) == 9
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "secret.jpg"]


@pytest.mark.parametrize("name", ["../../evil.jpg", "/evil.jpg", "C:\\evil.jpg"])
def test_a_climbing_zip_member_is_read_in_place(tmp_path, name):
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "x.zip", "w") as pack:
        pack.writestr(name, b"content")
    (entry,) = list_archives([str(tmp_path / "in" / "x.zip")])
    assert read_image(entry.uri, entry.member) == b"content"
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["in", "x.zip"]


def test_an_unreadable_zip_is_one_failed_entry(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as pack:
        pack.writestr("1.jpg", b"one")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 200  # the version needed, in tenths
    (tmp_path / "x.zip").write_bytes(data)
    (entry,) = list_archives([str(tmp_path)])
    assert (entry.image_id, entry.error) == ("x.zip", "not a readable tar or zip file: zip file version 20.0")


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
def test_a_member_above_the_limit_is_refused(tmp_path, monkeypatch, name):
    limit = 3 << 20
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", limit)
    members = {"fits.jpg": b"a" * limit, "bomb.jpg": b"b" * (limit + 1)}
    if name == "x.zip":
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as pack:
            for member, data in members.items():
                pack.writestr(member, data)
    else:
        write_tar(tmp_path / name, members, "w:gz")
    assert read_image(str(tmp_path / name), "fits.jpg") == members["fits.jpg"]
    with pytest.raises(ImageTooLargeError, match="3 MiB"):
        read_image(str(tmp_path / name), "bomb.jpg")


def test_a_nameless_member_is_an_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as pack:
        pack.writestr("n", b"one")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    for magic, place in (
        (b"PK\x01\x02", 28),
        (b"PK\x03\x04", 26),
    ):  # the length of the name, which becomes an extra field
        start = data.index(magic)
        data[start + place], data[start + place + 2] = 0, 1
    (tmp_path / "x.zip").write_bytes(data)
    (entry,) = list_archives([str(tmp_path / "x.zip")])
    assert entry.image_id == "unnamed"
    assert read_image(entry.uri, entry.member) == b"one"


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz"])
def test_an_absurd_header_ends_the_archive(tmp_path, name):
    """GNU's long names are read in one piece of the size that their header claims."""
    info = tarfile.TarInfo("@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 61
    with tarfile.open(tmp_path / name, "w:" + name.removeprefix("x.tar").removeprefix(".")) as tar:
        member = tarfile.TarInfo("1.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"one"))
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
    good, bad = list_archives([str(tmp_path / name)])
    assert read_image(good.uri, good.member) == b"one"
    assert bad.error.startswith("the archive ends early: ")
    assert not bad.error.endswith(": ")


@pytest.mark.timeout(60)
def test_equal_member_names_take_linear_time(tmp_path):
    """A tar file of 30,000 such members is 80 kB; with a search for each name the listing takes minutes."""
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tar:
        for _ in range(30_000):
            tar.addfile(tarfile.TarInfo("1.jpg"))
    found = ids(tmp_path / "x.tgz")
    assert len(set(found)) == 30_000
    assert found[:3] == ["1.jpg", "1.jpg#2", "1.jpg#3"]


def test_archives_that_overlap_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "ab").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    (tmp_path / "ab" / "1.jpg").write_bytes(b"x")
    assert len(ids(tmp_path / "a", tmp_path / "ab")) == 2
    for other in (tmp_path, tmp_path / "a", tmp_path / "a" / "1.jpg"):
        with pytest.raises(ArchiveError, match="overlap"):
            ids(tmp_path / "a", other)


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")])
@pytest.mark.parametrize("padding", [0, 512, 10240, 1 << 20])
def test_concatenated_tar_files_are_read_to_the_end(tmp_path, suffix, mode, padding):
    """`cat a.tar b.tar c.tar`, which GNU tar reads with --ignore-zeros."""
    parts = [{"a/1.png": b"one", "a/2.png": b"two"}, {"b/1.png": b"three", "a/1.png": b"four"}, {"c.png": b"five"}]
    zeros = bytes(padding) if suffix == "tar" else b""
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(zeros.join(tar_of(part, mode) for part in parts) + zeros)
    entries = list(list_archives([str(path)]))
    assert [entry.image_id for entry in entries] == ["a/1.png", "a/2.png", "b/1.png", "a/1.png#2", "c.png"]
    contents = [read_image(entry.uri, entry.member) for entry in reversed(entries)]
    assert contents == [b"five", b"four", b"three", b"two", b"one"]


@pytest.mark.parametrize("damage", [b"\xff" * 512, bytes(512)], ids=["noise", "zeros"])
@pytest.mark.parametrize("suffix", ["tar", "tgz"])
def test_a_damaged_header_breaks_the_archive_off_aloud(tmp_path, damage, suffix):
    """Tarfile takes it for the end of the archive and says nothing."""
    whole = bytearray(tar_of({f"{k}.png": b"x" * 700 for k in range(4)}))
    second = 512 + 1024
    whole[second : second + 512] = damage
    (tmp_path / f"x.{suffix}").write_bytes(gzip.compress(whole) if suffix == "tgz" else whole)
    good, bad = list_archives([str(tmp_path / f"x.{suffix}")])
    assert (good.image_id, good.error) == ("0.png", None)
    assert bad.error.startswith("the archive ends early: ")


@pytest.mark.parametrize("tail", [b"", bytes(512), bytes(1 << 20)])
def test_zeros_behind_a_tar_file_are_its_end(tmp_path, tail):
    (tmp_path / "x.tar").write_bytes(tar_of({"1.png": b"one"}) + tail)
    assert ids(tmp_path / "x.tar") == ["1.png"]


def test_a_zip_before_a_zip_is_not_lost(tmp_path):
    parts = []
    for name in ("1.png", "2.png"):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as pack:
            pack.writestr(name, b"content")
        parts.append(stream.getvalue())
    (tmp_path / "x.zip").write_bytes(b"".join(parts))
    (tmp_path / "y.zip").write_bytes(b"#!/bin/sh self-extracting\n" + parts[0])
    entries = {entry.image_id: entry.error for entry in list_archives([str(tmp_path)])}
    assert entries["x.zip/2.png"] is entries["y.zip/1.png"] is None
    assert "stand before the first" in entries["x.zip"]
    assert len(entries) == 3


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (98, "PPMd")])
def test_an_unread_compression_is_named_with_its_remedy(tmp_path, method, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("1.png", b"one" * 99)
        pack.writestr("2.v3", b"one" * 99)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    for magic, place in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        start = -1
        while (start := data.find(magic, start + 1)) >= 0:
            data[start + place] = method
    (tmp_path / "x.zip").write_bytes(data)
    entries = list(list_archives([str(tmp_path / "x.zip")]))
    assert [entry.image_id for entry in entries] == ["1.png", "2.v3"], "one that cannot be looked into is a row too"
    for entry in entries:
        with pytest.raises(ArchiveError, match=rf"{name} \(method {method}.*pack it again"):
            read_image(entry.uri, entry.member)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_read_and_looked_into(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as pack:
        pack.writestr("1.v2", b"\xff\xd8\xff\xe0" + bytes(99))
        pack.writestr("2.v2", b"text")
    (entry,) = list_archives([str(tmp_path / "x.zip")])
    assert read_image(entry.uri, entry.member).startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize("place", ["folder", "zip", "tgz"])
def test_gzip_is_unpacked_up_to_the_limit(tmp_path, monkeypatch, place):
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", 3 << 20)
    content = bytes(128) + b"DICM" + b"a" * 100
    members = {
        "good.dcm.gz": gzip.compress(content),
        "parts.dcm.gz": gzip.compress(content[:50]) + gzip.compress(content[50:]),
        "bomb.dcm.gz": gzip.compress(content + bytes(4 << 20)),
        "cut.dcm.gz": gzip.compress(content + os.urandom(5000))[:3000],
        "text.gz": gzip.compress(b"text"),
    }
    if place == "folder":
        for name, data in members.items():
            (tmp_path / name).write_bytes(data)
        root = tmp_path
    elif place == "zip":
        root = tmp_path / "x.zip"
        with zipfile.ZipFile(root, "w") as pack:
            for name, data in members.items():
                pack.writestr(name, data)
    else:
        root = tmp_path / "x.tgz"
        write_tar(root, members, "w:gz")
    count = ListingCount()
    entries = {entry.image_id: entry for entry in list_archives([str(root)], count)}
    assert sorted(entries) == sorted(set(members) - {"text.gz"})
    assert count.passed_over == {"not_an_image": 1}
    for name in ("good.dcm.gz", "parts.dcm.gz"):
        assert read_image(entries[name].uri, entries[name].member) == content
    for name, error in (("bomb.dcm.gz", ImageTooLargeError), ("cut.dcm.gz", TruncatedImageError)):
        with pytest.raises(error):
            read_image(entries[name].uri, entries[name].member)


@pytest.mark.parametrize("name", ["lost+found", "a/b/closed"])
def test_an_unlistable_folder_is_a_row(tmp_path, monkeypatch, name):
    closed = tmp_path / name
    (closed / "in").mkdir(parents=True)
    for path in (tmp_path / "1.png", closed / "2.png", tmp_path / "z" / "3.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / ".Trashes").mkdir()
    refused = {os.fsencode(closed), os.fsencode(tmp_path / ".Trashes")}
    scandir = os.scandir

    def refuse(path):  # root, who may run the tests, may list every folder
        if path in refused:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    count = ListingCount()
    entries = {entry.image_id: entry.error for entry in list_archives([str(tmp_path)], count)}
    assert entries == {"1.png": None, name: "the folder cannot be listed: Permission denied", "z/3.png": None}
    assert count.passed_over == {"hidden": 1}
    refused.add(os.fsencode(tmp_path))
    with pytest.raises(ArchiveError, match="cannot be listed"):
        ids(tmp_path)


def test_an_unlistable_bucket_folder_is_a_row(tmp_path, monkeypatch):
    (tmp_path / "b" / "closed").mkdir(parents=True)
    (tmp_path / "b" / "1.png").write_bytes(b"x")

    class Refusing:
        """A file system that refuses one folder; pyarrow's S3 gives such an error where a policy denies ListBucket."""

        def get_file_info(self, what: fs.FileSelector | str) -> object:
            if isinstance(what, fs.FileSelector) and what.base_dir in refused:
                raise OSError("When listing objects: AWS Error ACCESS_DENIED during ListObjectsV2 operation")
            return fs.LocalFileSystem().get_file_info(what)

    refused = {str(tmp_path / "b" / "closed")}
    monkeypatch.setattr("pneumo_ray.storage.filesystem", lambda uri: (Refusing(), str(tmp_path / "b")))
    entries = {entry.image_id: entry.error for entry in list_archives(["s3://b"])}
    assert entries.keys() == {"1.png", "closed"}
    assert entries["1.png"] is None
    assert entries["closed"].startswith("the folder cannot be listed: ")
    refused.add(str(tmp_path / "b"))
    with pytest.raises(StorageError, match="permission"):
        ids("s3://b")


def test_a_forbidden_file_is_a_row(tmp_path, monkeypatch):
    (tmp_path / "1.v2").write_bytes(b"x")

    def refuse(uri, limit=-1):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pneumo_ray.storage.read_bytes", refuse)
    assert ids(tmp_path) == ["1.v2"]


@pytest.mark.timeout(30)
def test_pipes_and_devices_are_passed_over_unopened(tmp_path):
    """To open a pipe waits for somebody who writes to it."""
    os.mkfifo(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.v2")
    (tmp_path / "3.png").symlink_to(tmp_path / "1.png")
    (tmp_path / "4.png").symlink_to("/dev/null")
    (tmp_path / "5.png").write_bytes(b"x")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("6.png")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    count = ListingCount()
    assert [entry.image_id for entry in list_archives([str(tmp_path)], count)] == ["5.png"]
    assert count.passed_over == {"not_a_file": 5}


def test_archives_inside_archives_are_counted(tmp_path):
    write_tar(tmp_path / "x.tar", {"in.zip": b"PK\3\4", "in.tar.gz": b"\x1f\x8b", "in.7z": b"7z", "1.png": b"x"})
    count = ListingCount()
    assert [entry.image_id for entry in list_archives([str(tmp_path)], count)] == ["x.tar/1.png"]
    assert count.passed_over == {"nested_archive": 3}
