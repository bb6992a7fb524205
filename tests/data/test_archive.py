import io
import os
import tarfile
import zipfile

import pytest

from pneumo_ray.data import containers
from pneumo_ray.data.archive import ListingCount, list_archives, read_picture
from pneumo_ray.data.decode import EmptyFileError, ImageTooLargeError
from pneumo_ray.errors import ArchiveError


def ids(*archives) -> list[str]:
    return [entry.image_id for entry in list_archives([str(a) for a in archives])]


def write_tar(path, members: dict[str, bytes], mode="w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_folder_lists_its_pictures_in_order_and_counts_the_rest(tmp_path):
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
def test_any_name_is_listed_once_and_can_be_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"content")
    (entry,) = list_archives([str(tmp_path)])
    assert entry.image_id == name
    assert read_picture(entry.uri, entry.member) == b"content"


def test_a_name_that_is_not_utf8_is_listed_and_can_be_read(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.jpg", "wb") as file:
        file.write(b"content")
    (entry,) = list_archives([str(tmp_path)])
    entry.image_id.encode("utf-8")
    assert read_picture(entry.uri, entry.member) == b"content"


def test_links_never_list_a_picture_twice_and_a_loop_of_links_is_one_entry(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert ids(tmp_path) == ["a/1.jpg", "loop.jpg"]
    loop = next(entry for entry in list_archives([str(tmp_path)]) if entry.image_id == "loop.jpg")
    with pytest.raises(OSError, match="symbolic links"):
        read_picture(loop.uri, None)


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar.xz", "w:xz")]
)
def test_members_of_a_tar_file_are_read_in_place(tmp_path, name, mode):
    write_tar(tmp_path / name, {"train/NORMAL/1.jpg": b"one", "../../evil.jpg": b"two", "readme.txt": b"no"}, mode)
    entries = list(list_archives([str(tmp_path / name)]))
    assert [entry.image_id for entry in entries] == ["train/NORMAL/1.jpg", "../../evil.jpg"]
    assert [read_picture(e.uri, e.member) for e in reversed(entries)] == [b"two", b"one"]
    assert sorted(os.listdir(tmp_path)) == [name]
    assert not (tmp_path.parent.parent / "evil.jpg").exists()


def test_members_of_a_zip_file_inside_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as pack:
        pack.writestr("a/1.jpg", b"one")
        pack.writestr("__MACOSX/a/._1.jpg", b"no")
    (entry,) = list_archives([str(tmp_path)])
    assert entry.image_id == "x.zip/a/1.jpg"
    assert read_picture(entry.uri, entry.member) == b"one"


def test_two_members_of_one_name_are_two_pictures(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for data in (b"first", b"second"):
            info = tarfile.TarInfo("1.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    entries = list(list_archives([str(tmp_path / "x.tar")]))
    assert len({entry.image_id for entry in entries}) == 2
    assert [read_picture(e.uri, e.member) for e in entries] == [b"first", b"second"]


def test_a_broken_archive_keeps_its_good_members_and_says_that_it_breaks_off(tmp_path):
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


def test_a_missing_archive_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(ArchiveError, match="does not exist"):
        ids(tmp_path / "nothing")
    (tmp_path / "0.jpg").write_bytes(b"")
    (entry,) = list_archives([str(tmp_path)])
    with pytest.raises(EmptyFileError):
        read_picture(entry.uri, entry.member)


def test_links_in_a_tar_file_lead_to_its_own_members_or_fail(tmp_path):
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
        assert read_picture(entries[name].uri, name) == b"content"
    for name in set(entries) - {"real.jpg", "hard.jpg", "soft.jpg"}:
        with pytest.raises(ArchiveError):
            read_picture(entries[name].uri, name)
    assert len(entries) == 9
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "secret.jpg"]


@pytest.mark.parametrize("name", ["../../evil.jpg", "/evil.jpg", "C:\\evil.jpg"])
def test_a_member_of_a_zip_file_that_climbs_is_read_in_place(tmp_path, name):
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "x.zip", "w") as pack:
        pack.writestr(name, b"content")
    (entry,) = list_archives([str(tmp_path / "in" / "x.zip")])
    assert read_picture(entry.uri, entry.member) == b"content"
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["in", "x.zip"]


def test_a_zip_file_beyond_what_python_reads_is_one_entry_that_says_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as pack:
        pack.writestr("1.jpg", b"one")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 200  # the version needed, in tenths
    (tmp_path / "x.zip").write_bytes(data)
    (entry,) = list_archives([str(tmp_path)])
    assert (entry.image_id, entry.error) == ("x.zip", "not a readable tar or zip file: zip file version 20.0")


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
def test_a_member_is_read_up_to_the_limit_and_refused_above(tmp_path, monkeypatch, name):
    limit = 3 << 20
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", limit)
    members = {"fits.jpg": b"a" * limit, "bomb.jpg": b"b" * (limit + 1)}
    if name == "x.zip":
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as pack:
            for member, data in members.items():
                pack.writestr(member, data)
    else:
        write_tar(tmp_path / name, members, "w:gz")
    assert read_picture(str(tmp_path / name), "fits.jpg") == members["fits.jpg"]
    with pytest.raises(ImageTooLargeError, match="3 MiB"):
        read_picture(str(tmp_path / name), "bomb.jpg")


def test_a_member_without_a_name_is_a_picture_all_the_same(tmp_path):
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
    assert read_picture(entry.uri, entry.member) == b"one"


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz"])
def test_a_header_that_claims_more_than_any_memory_breaks_the_archive_off(tmp_path, name):
    """GNU's long names are read in one piece of the size that their header claims."""
    info = tarfile.TarInfo("@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 61
    with tarfile.open(tmp_path / name, "w:" + name.removeprefix("x.tar").removeprefix(".")) as tar:
        member = tarfile.TarInfo("1.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"one"))
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
    good, bad = list_archives([str(tmp_path / name)])
    assert read_picture(good.uri, good.member) == b"one"
    assert bad.error.startswith("the archive breaks off: ")
    assert not bad.error.endswith(": ")


@pytest.mark.timeout(60)
def test_members_that_all_have_one_name_are_listed_in_linear_time(tmp_path):
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
