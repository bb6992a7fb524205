"""One archive as a folder, a zip file, a tar file and a bucket; and the rule on names behind it."""

import gzip
import io
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumo_ray import storage
from pneumo_ray.data.archive import ListingCount, list_archives
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.names import REASONS, Found, PassedOver, Sieve, judge, judge_bytes, slashed
from pneumo_ray.data.prepare import PrepareConfig, prepare

PREAMBLE = bytes(128) + b"DICM"


def encoded(seed: int, kind: str = "PNG", **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def pages_with_thumbnail() -> bytes:
    page = Image.open(io.BytesIO(encoded(90)))
    stream = io.BytesIO()
    page.save(stream, "TIFF", save_all=True, append_images=[Image.open(io.BytesIO(encoded(91))), page.reduce(2)])
    return stream.getvalue()


@pytest.fixture(scope="module")
def nasty_tree() -> tuple[dict[str, bytes], dict[str, int]]:
    """Path -> content, in which all images differ but two; and how many are passed over, by reason."""
    import pydicom
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.Modality, dataset.PatientID = "CR", "child 7"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    stream = io.BytesIO()
    dataset.save_as(stream)
    dicom = stream.getvalue()
    tree = {f"train/NORMAL/IM-{k:04d}-0001.jpeg": encoded(k, "JPEG") for k in range(1, 13)}
    tree |= {f"train/PNEUMONIA/person{k}_virus_{k}.png": encoded(20 + k) for k in range(1, 13)}
    tree |= {f"test/NORMAL/IM-{k:04d}-0001.jpeg": encoded(40 + k, "JPEG") for k in range(40, 44)}
    tree |= {f"test/PNEUMONIA/person{k}_bacteria_1.png": encoded(60 + k) for k in range(60, 64)}
    tree |= {
        "train/NORMAL/with space & 'quotes\".jpg": encoded(70, "JPEG"),
        "train/NORMAL/ümläut 肺.webp": encoded(71, "WEBP"),
        unicodedata.normalize("NFD", "train/NORMAL/é.png"): encoded(72),
        "train\\PNEUMONIA\\person99_bacteria_1.jpeg": encoded(73, "JPEG"),
        "train/PNEUMONIA\\person98_bacteria_1.jpeg": encoded(74, "JPEG"),
        "train/NORMAL/copy.jpeg": encoded(1, "JPEG"),
        "train/NORMAL/cut.png": encoded(75)[:200],
        "train/NORMAL/empty.png": b"",
        "train/NORMAL/pages.tiff": pages_with_thumbnail(),
        "train/NORMAL/phone.jfif": encoded(76, "JPEG"),
        "train/NORMAL/IM_0001.v2": dicom[:132] + dicom[132:],
        "train/NORMAL/a.dcm.gz": gzip.compress(dicom),
        "train/NORMAL/1.2.840.113619.2.5": dicom,
        "train/NORMAL/CR.1.2.840.10008.1.abc": dicom,
        "train/NORMAL/scan.img": dicom,
        "train/NORMAL/noextension": dicom,
        ".hidden.png": encoded(80),
        ".git/x/c.png": encoded(81),
        ".git/x/d.png": encoded(81),
        "train/.Trashes/501/b.png": encoded(82),
        "train\\NORMAL\\.ipynb_checkpoints\\a.png": encoded(83),
        "__MACOSX/train/NORMAL/._IM-0001-0001.jpeg": b"\0\5\x16\7",
        "train/NORMAL/.DS_Store": b"\0\0\0\1Bud1",
        "train/NORMAL/Thumbs.db": b"\xd0\xcf\x11\xe0",
        "train/NORMAL/@eaDir/IM-0001-0001.jpeg/SYNOPHOTO_THUMB_M.jpg": encoded(84, "JPEG"),
        "train/NORMAL/.thumbnails/1.png": encoded(85),
        "DICOMDIR": PREAMBLE,
        "notes.txt": b"hello",
        "README": b"hello",
        "train/NORMAL/labels.CSV": b"a,b\n",
        "train/NORMAL/1.xmp": b"<x:xmpmeta/>",
        "train/NORMAL/1.dcm.gz.gz": gzip.compress(b"no image"),
        "more.7z": b"7z\xbc\xaf\x27\x1c",
    }
    counts = {"hidden": 5, "system": 2, "thumbnail": 3, "other_type": 3, "not_an_image": 2, "nested_archive": 1}
    return tree, counts


def write_folder(root: Path, tree: dict[str, bytes]) -> str:
    for name, data in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def write_zip(path: Path, tree: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as pack:
        pack.writestr("train/", b"")
        for name, data in tree.items():
            pack.writestr(name, data, zipfile.ZIP_DEFLATED)
    return str(path)


def write_tar(path: Path, tree: dict[str, bytes], before: str = "") -> str:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as pack:
        folder = tarfile.TarInfo("./train/.Trashes/")
        folder.type = tarfile.DIRTYPE
        pack.addfile(folder)
        for name, data in tree.items():
            info = tarfile.TarInfo(before + name)
            info.size = len(data)
            pack.addfile(info, io.BytesIO(data))
    return str(path)


def write_bucket(place: str, tree: dict[str, bytes]) -> str:
    """Write with Amazon's own client, which can make the empty objects that stand for folders, as consoles do."""
    import boto3

    address, query = storage.split_query(place)
    name, _, folder = address.removeprefix("s3://").partition("/")
    port = query.partition("127.0.0.1:")[2].partition("&")[0]
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
    for key, data in {**tree, "train/": b"", "train/empty folder/": b""}.items():
        client.put_object(Bucket=name, Key=f"{folder}/{key}", Body=data)
    return place


def test_an_archive_is_the_same_in_every_form(nasty_tree, tmp_path, bucket, ray_cluster):
    tree, counts = nasty_tree
    places = {
        "folder": write_folder(tmp_path / "d", tree),
        "zip": write_zip(tmp_path / "d.zip", tree),
        "tar": write_tar(tmp_path / "d.tar", tree),
        "tgz": write_tar(tmp_path / "d.tgz", tree, before="./"),
        "bucket": write_bucket(bucket, tree),
    }
    manifests, audits = {}, {}
    for form, place in places.items():
        out = str(tmp_path / f"run-{form}")
        prepare(PrepareConfig(archive=(place,), out=out, keep_identifiers=True))
        table = storage.read_table(f"{out}/manifest.parquet").sort_by("image_id")
        table = table.select([name for name in table.column_names if name not in ("uri", "member", "member_span")])
        manifests[form] = table.replace_schema_metadata().to_pylist()
        audits[form] = {k: v for k, v in storage_json(f"{out}/audit.json").items() if k not in ("archive", "shortcut")}
    for form in places:
        assert manifests[form] == manifests["folder"], form
        assert audits[form] == audits["folder"], form
    rows = {row["image_id"]: row for row in manifests["folder"]}
    listed = {slashed(name) for name in tree} - {slashed(n) for n in list(tree)[-sum(counts.values()) - 1 :]}
    assert {name.partition("#")[0] for name in rows} == listed
    assert [name for name in rows if "#" in name] == ["train/NORMAL/pages.tiff#0", "train/NORMAL/pages.tiff#1"]
    assert audits["folder"]["passed_over"] == counts
    assert audits["folder"]["ignored_files"] == sum(counts.values())
    assert rows["train/PNEUMONIA/person99_bacteria_1.jpeg"]["patient_id"] == "person99"
    assert {name for name, row in rows.items() if row["status"] != "ok"} == {
        "train/NORMAL/cut.png",
        "train/NORMAL/empty.png",
    }
    dicoms = [row for row in rows.values() if row["patient_id"] == "child 7"]
    assert len(dicoms) == 6
    assert {row["split"] for row in rows.values() if row["status"] == "ok"} == {"train", "val", "test"}


def storage_json(path: str) -> dict:
    import json

    return json.loads(storage.read_bytes(path))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *(
            (name, Found.IMAGE)
            for name in ("a.jpg", "a.JFIF", "a.pjpeg", "a.dic", "a.DC3", "a.dicm", "a.tif", "IM0001")
        ),
        *((name, Found.IMAGE) for name in ("1.2.840.10008.1", "a b", "a.jpg_large", "a.heic", "lost+found")),
        *((name, Found.UNSURE) for name in ("a.img", "a.dcm.gz", "IM_0001.v2", "a.dcm.bak", "CR.1.2.abc", "a.x")),
        *((name, Found.CONTAINER) for name in ("a.zip", "a.TAR", "a.tar.gz", "a.tgz", "a.txz", "a.tar.bz2")),
        *((name, "hidden") for name in (".a.png", "._a.png", ".DS_Store", ".git", ".a.zip")),
        *(
            (name, "thumbnail")
            for name in ("Thumbs.db", "thumbs.DB", "@eaDir", ".thumbnails", "ehthumbs.db", ".@__thumb")
        ),
        *((name, "system") for name in ("__MACOSX", "desktop.ini", "DICOMDIR", "$RECYCLE.BIN", "#recycle")),
        *((name, "other_type") for name in ("a.txt", "a.CSV", "a.json", "README", "a.pdf", "a.xml", "a.md", "a.py")),
        *((name, "nested_archive") for name in ("a.7z", "a.rar", "a.tar.zst")),
    ],
)
def test_a_name_is_judged(name, found):
    assert judge(name) == found
    assert isinstance(found, Found) or found in REASONS


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (PREAMBLE, None),
        (b"\xff\xd8\xff\xe0", None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"II*\0", None),
        (b"RIFF\0\0\0\0WEBP", None),
        (b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", None),
        (gzip.compress(PREAMBLE, mtime=0), None),
        (gzip.compress(PREAMBLE + np.random.default_rng(0).bytes(5000), mtime=0)[:1024], None),
        (b"hello", "not_an_image"),
        (b"", "not_an_image"),
        (gzip.compress(b"hello", mtime=0), "not_an_image"),
        (b"\x1f\x8bno gzip", "not_an_image"),
        (b"PK\3\4", "nested_archive"),
        (gzip.compress(bytes(257) + b"ustar", mtime=0), "nested_archive"),
    ],
)
def test_first_bytes_are_judged(head, reason):
    assert judge_bytes(head) == reason


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b.png", "a/b.png"),
        ("a\\b.png", "a/b.png"),
        ("./a/b.png", "a/b.png"),
        (".\\a\\.\\b.png", "a/b.png"),
        ("/a//b.png", "a/b.png"),
        ("../../b.png", "../../b.png"),
        ("..\\b.png", "../b.png"),
        ("C:\\a\\b.png", "C:/a/b.png"),
        (".hidden/b.png", ".hidden/b.png"),
    ],
)
def test_paths_have_forward_slashes(name, path):
    assert slashed(name) == path


def test_a_folder_that_is_passed_over_counts_once():
    count = PassedOver()
    sieve = Sieve(count)
    for path in ("a/.git/x/1.png", "a/.git/x/y/2.png", "a/.git", "b/.git/1.png", "a/@eaDir/.hidden/1.png", "a/1.png"):
        sieve.judge(path)
    assert sieve.judge("a/1.png") is Found.IMAGE
    assert count == {"hidden": 3, "thumbnail": 1}
    assert count.sentence().startswith("passed over 4: 3 hidden")


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_names_that_become_one_are_two_images(tmp_path: Path, write: Callable[[Path, dict[str, bytes]], str]):
    suffix = {"write_folder": "d", "write_zip": "d.zip", "write_tar": "d.tar"}[write.__name__]
    place = write(tmp_path / suffix, {"a\\1.png": b"one", "a/1.png": b"two"})
    entries = list(list_archives([place]))
    assert {entry.image_id.rstrip("~") for entry in entries} == {"a/1.png"}
    assert len({entry.image_id for entry in entries}) == 2
    assert sorted(read_image(entry.uri, entry.member) for entry in entries) == [b"one", b"two"]


def test_unsure_objects_are_opened_in_order(bucket):
    tree = {f"{k:03d}.v{k}": (PREAMBLE if k % 3 else b"text") for k in range(40)}
    count = ListingCount()
    found = [entry.image_id for entry in list_archives([write_bucket(bucket, tree)], count)]
    assert found == [f"{k:03d}.v{k}" for k in range(40) if k % 3]
    assert count.passed_over == {"not_an_image": 14}
