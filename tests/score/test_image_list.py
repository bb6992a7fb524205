import io
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumo_ray.data.manifest import SCHEMA as MANIFEST_SCHEMA
from pneumo_ray.data.manifest import write_manifest
from pneumo_ray.errors import ArchiveError, ManifestError, StorageError
from pneumo_ray.model import Preprocessing
from pneumo_ray.score import image_list as source
from pneumo_ray.score.image_list import ROW_GROUP, Source, list_fingerprint, open_source, shard_length, write_list
from pneumo_ray.score.listing import LUNG_COLUMNS, list_images, manifest_images


def manifest(n: int, **columns) -> pa.Table:
    rows = [
        {"image_id": f"{i}.jpg", "uri": f"/x/{i}.jpg", "status": "ok", "width": 200, "height": 100} for i in range(n)
    ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.float64()))
    return table


@given(st.integers(1, 30_000_000), st.sampled_from([32, 224, 1024, 2048]))
def test_shards_fit_memory_row_groups_and_the_list(n, size):
    length = shard_length(n, size)
    assert ROW_GROUP % length == 0
    assert length * size**2 <= 2**26
    found = Source("x", n, size)
    assert (found.num_shards - 1) * length < n <= found.num_shards * length
    assert found.length(0) == min(length, n)
    assert 0 < found.length(found.num_shards - 1) <= length


def test_every_shard_reads_its_own_rows(tmp_path):
    n = 2 * ROW_GROUP + 77
    write_manifest(manifest(n), str(tmp_path / "m.parquet"))
    listed = manifest_images(str(tmp_path / "m.parquet"), Preprocessing(), boxes=False)
    made = write_list(listed, str(tmp_path / "list.parquet"), 224)
    assert open_source(made.uri, 224) == made
    names = [name for shard in range(made.num_shards) for name in made.read(shard)["image_id"].to_pylist()]
    assert names == [f"{i}.jpg" for i in range(n)]


def test_a_process_reads_the_list_footer_once(tmp_path):
    """It grows with the list: read for each shard it would cost the square of the archive. Here it is gone after the first."""
    write_manifest(manifest(3 * ROW_GROUP), str(tmp_path / "m.parquet"))
    listed = manifest_images(str(tmp_path / "m.parquet"), Preprocessing(), boxes=False)
    made = write_list(listed, str(tmp_path / "list.parquet"), 224)
    shipped = pickle.loads(pickle.dumps(made))
    assert shipped.read(0)["image_id"][0].as_py() == "0.jpg"
    with open(tmp_path / "list.parquet", "r+b") as file:
        file.seek(-8, 2)
        file.write(bytes(8))
    last = shipped.read(shipped.num_shards - 1)["image_id"].to_pylist()
    assert last[-1] == f"{3 * ROW_GROUP - 1}.jpg"
    with pytest.raises(StorageError):
        open_source(made.uri, 224)
    assert pickle.loads(pickle.dumps(shipped)) == made


@pytest.mark.parametrize("lost", [None, 0, 1, 2, 3])
def test_only_known_lung_boxes_become_crop_boxes(tmp_path, lost):
    """An image of 200 x 100 becomes 256 x 256, and the crop of 224 begins at 16."""
    corners = [[50, 25, 100, 75], [50, 25, 100, 75], [0, 0, 2, 2]]
    if lost is not None:
        corners[1][lost] = None
    boxes = dict(zip(LUNG_COLUMNS, zip(*corners, strict=True), strict=True))
    write_manifest(manifest(3, **boxes), str(tmp_path / "m.parquet"))
    listed = manifest_images(str(tmp_path / "m.parquet"), Preprocessing(224, 256), boxes=True)
    expected = [48, 48, 112, 176]
    assert listed["box"].to_pylist() == [expected, expected if lost is None else None, None]


def test_list_fingerprints_cover_places_and_boxes_not_labels():
    before = pa.Table.from_pylist([{"image_id": "a", "uri": "/x", "box": [0, 0, 9, 9]}], schema=source.SCHEMA)
    moved = pa.Table.from_pylist([{"image_id": "a", "uri": "/y", "box": [0, 0, 9, 9]}], schema=source.SCHEMA)
    other = pa.Table.from_pylist([{"image_id": "a", "uri": "/x", "box": [0, 0, 9, 8]}], schema=source.SCHEMA)
    assert len({list_fingerprint(table) for table in (before, moved, other)}) == 3
    assert list_fingerprint(before) == list_fingerprint(pa.concat_tables([before.slice(0, 0), before]))


def test_an_empty_manifest_is_named(tmp_path):
    write_manifest(manifest(0), str(tmp_path / "m.parquet"))
    with pytest.raises(ManifestError, match="no images"):
        manifest_images(str(tmp_path / "m.parquet"), Preprocessing(), boxes=False)


def test_repeated_names_are_refused_and_leave_no_file(ray_cluster, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        tar.addfile(info, io.BytesIO(b""))
    monkeypatch.setattr(source, "name_hash", lambda name: 7)
    (tmp_path / "2.jpg").write_bytes(b"x")
    with pytest.raises(ArchiveError, match="1 image"):
        list_images([str(tmp_path)], str(tmp_path / "out" / "list.parquet"), 224)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_list_counts_files_passed_over(ray_cluster, tmp_path, capsys):
    for name in ("1.jpg", ".2.jpg", "Thumbs.db", "notes.txt", "3.xmp", "4.xmp"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    listed = list_images([str(tmp_path / "in")], str(tmp_path / "list.parquet"), 224)
    counts = {"hidden": 1, "thumbnail": 1, "other_type": 1, "not_an_image": 2}
    assert listed.passed_over == counts
    assert open_source(listed.uri, 224) == listed
    assert "passed over 5: 1 hidden" in capsys.readouterr().out
    (tmp_path / "in" / "1.jpg").unlink()
    with pytest.raises(ArchiveError, match="no images in it; passed over 5"):
        list_images([str(tmp_path / "in")], str(tmp_path / "list.parquet"), 224)


def test_older_lists_count_no_files_passed_over(tmp_path):
    write_list(source.SCHEMA.empty_table(), str(tmp_path / "new.parquet"), 224)
    pq.write_table(source.SCHEMA.empty_table(), tmp_path / "old.parquet")
    assert open_source(str(tmp_path / "old.parquet"), 224).passed_over == {}


def test_the_name_hash_finds_repeated_names():
    names = [f"{i}" for i in range(10_000)]
    assert len(np.unique([source.name_hash(name) for name in [*names, "7"]])) == len(names)
