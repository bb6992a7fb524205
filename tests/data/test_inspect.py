import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from dicom_builders import radiograph, ramp, to_bytes

from pneumo_ray.data.archive import Entry, list_archives
from pneumo_ray.data.cache import cache_folder, read_cached, scan_cache
from pneumo_ray.data.cluster_tasks import inspect_archive
from pneumo_ray.data.inspect import InspectConfig, inspect_entries, pseudonym
from pneumo_ray.errors import StorageError
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.images.decode import decode_image, decode_with_note


def jpeg(seed: int = 0, size: int = 300) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (20, 20)).astype(np.uint8)
    return cv2.imencode(".jpg", cv2.resize(image, (size, size)))[1].tobytes()


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive" / "train" / "PNEUMONIA"
    folder.mkdir(parents=True)
    good = jpeg()
    files = {
        "person1_bacteria_1.jpeg": good,
        "person1_bacteria_2.jpeg": good,
        "person2_virus_1.jpeg": jpeg(1),
        "person3_virus_1.jpeg": b"",
        "person4_virus_1.jpeg": jpeg(2)[:3000],
        "person5_virus_1.jpeg": b"this is text",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return tmp_path / "archive"


def inspected(archive, config) -> list[dict]:
    return inspect_entries(list(list_archives([str(archive)])), config).to_pylist()


def test_every_entry_is_a_row_with_its_reason(archive):
    rows = inspected(archive, InspectConfig())
    assert [r["status"] for r in rows] == ["ok", "ok", "ok", "failed", "failed", "failed"]
    assert [r["error"].split(":")[0] for r in rows[3:]] == ["empty", "truncated", "not_an_image"]
    first = rows[0]
    assert (first["label"], first["subtype"], first["patient_id"], first["split"]) == (
        1,
        "bacteria",
        "person1",
        "train",
    )
    assert (first["width"], first["height"], first["mode"], first["num_bytes"]) == (300, 300, "L", len(jpeg()))
    assert first["content_sha256"] == hashlib.sha256(jpeg()).hexdigest()


def test_a_file_that_vanished_is_a_failed_row(tmp_path):
    (row,) = inspect_entries([Entry("a.jpg", str(tmp_path / "a.jpg"), None, "x/a.jpg")], InspectConfig()).to_pylist()
    assert row["status"] == "failed"
    assert row["error"] == "unreadable: No such file or directory"


def test_equal_files_are_cached_once(archive, tmp_path):
    config = InspectConfig(size=64, cache_folder=cache_folder(str(tmp_path / "run"), 64))
    rows = inspected(archive, config)
    ok = [r for r in rows if r["status"] == "ok"]
    assert (ok[0]["cache_file"], ok[0]["cache_row"]) == (ok[1]["cache_file"], ok[1]["cache_row"])
    assert len(scan_cache(config.cache_folder, 64)) == 2
    read = read_cached(config.cache_folder, 64, [r["cache_file"] for r in ok], [r["cache_row"] for r in ok])
    expected = [resize_grey(decode_image(data, min_size=64), 64) for data in (jpeg(), jpeg(), jpeg(1))]
    assert np.array_equal(read, np.stack(expected))


def test_only_changed_files_are_decoded_again(archive, tmp_path, monkeypatch):
    config = InspectConfig(size=64, cache_folder=cache_folder(str(tmp_path / "run"), 64))
    first = inspected(archive, config)
    (archive / "train/PNEUMONIA/person2_virus_1.jpeg").write_bytes(jpeg(9))
    decoded = []
    monkeypatch.setattr(
        "pneumo_ray.data.inspect.decode_with_note",
        lambda data, **kwargs: decoded.append(data) or decode_with_note(data, **kwargs),
    )
    second = inspected(archive, replace(config, cached=scan_cache(config.cache_folder, 64)))
    assert jpeg() not in decoded
    assert jpeg(9) in decoded
    assert first[0] == second[0]
    assert (second[2]["cache_file"], second[2]["cache_row"]) != (first[2]["cache_file"], first[2]["cache_row"])


def test_dicom_patients_are_hashed_with_the_salt():
    assert pseudonym("Doe^Jane", b"salt") == pseudonym("Doe^Jane", b"salt") != pseudonym("Doe^Jane", b"other")
    assert "Doe" not in pseudonym("Doe^Jane", b"salt")
    assert pseudonym("Doe^Jane", None) == "Doe^Jane"


def test_an_unwritable_cache_is_one_sentence(ray_cluster, archive, tmp_path):
    (tmp_path / "full").write_bytes(b"a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot write .*full"):
        list(inspect_archive(list_archives([str(archive)]), InspectConfig(cache_folder=str(tmp_path / "full"))))


def test_cached_rows_keep_their_decode_note(tmp_path):
    beside = radiograph(ramp(), BitsStored=12, WindowCenter="40000", WindowWidth="100")
    (tmp_path / "beside.dcm").write_bytes(to_bytes(beside))
    (tmp_path / "good.dcm").write_bytes(to_bytes(radiograph(ramp(), BitsStored=12)))
    config = InspectConfig(size=64, cache_folder=str(tmp_path / "cache"))
    for _ in range(2):
        found = inspected(tmp_path, replace(config, cached=scan_cache(config.cache_folder, 64)))
        rows = {row["image_id"]: row for row in found}
        assert rows["beside.dcm"]["decode_note"] == "window_left_one_grey"
        assert rows["good.dcm"]["decode_note"] is None
        assert all(row["status"] == "ok" and row["cache_file"] for row in rows.values())
