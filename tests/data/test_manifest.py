import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.data.manifest import (
    SCHEMA,
    fingerprint,
    read_manifest,
    refuse_leakage,
    usable,
    write_manifest,
)
from pneumo_ray.errors import LeakageError, ManifestError


def table(**columns) -> pa.Table:
    n = len(next(iter(columns.values()))) if columns else 3
    base = {"image_id": [f"a/{i}.jpg" for i in range(n)], "status": ["ok"] * n} | columns
    return pa.Table.from_pylist(
        [dict(zip(base, row, strict=True)) for row in zip(*base.values(), strict=True)], schema=SCHEMA
    )


def test_what_is_written_is_read(tmp_path):
    original = table(label=[0, 1, None], split=["train", "test", None]).append_column("age", pa.array([1, 2, 3]))
    write_manifest(original, str(tmp_path / "m.parquet"))
    assert read_manifest(str(tmp_path / "m.parquet")).equals(original)
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (table().drop_columns(["split"]), "lacks the column.*split"),
        (table(image_id=["a", "b", "a"]), "more than once, such as 'a'"),
        (table(label=[0, 1, 3]), "label 3"),
        (table(split=["train", "dev", None]), "split 'dev'"),
        (table().set_column(4, "label", pa.array(["0", "1", "0"])), "wrong type: label"),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_named(tmp_path, broken, message):
    pq.write_table(broken, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=message):
        read_manifest(str(tmp_path / "m.parquet"))
    with pytest.raises(ManifestError, match=message):
        write_manifest(broken, str(tmp_path / "n.parquet"))
    assert not (tmp_path / "n.parquet").exists()


def test_a_file_that_is_no_manifest_is_named(tmp_path):
    (tmp_path / "m.parquet").write_text("hello")
    with pytest.raises(ManifestError, match="not a readable Parquet"):
        read_manifest(str(tmp_path / "m.parquet"))
    with pytest.raises(ManifestError, match="does not exist"):
        read_manifest(str(tmp_path / "none.parquet"))


def test_leakage_is_refused_for_patients_and_for_duplicates():
    sides = {"label": [0, 1, 1], "split": ["train", "val", "test"]}
    refuse_leakage(table(**sides, patient_id=["p", "q", "r"], content_sha256=["a", "b", "c"]))
    with pytest.raises(LeakageError, match="1 patient"):
        refuse_leakage(table(**sides, patient_id=["p", "q", "p"], content_sha256=["a", "b", "c"]))
    with pytest.raises(LeakageError, match="1 exact duplicate"):
        refuse_leakage(table(**sides, patient_id=["p", "q", "r"], content_sha256=["a", "b", "a"]))


def test_usable_rows_are_readable_and_labelled():
    rows = table(label=[0, None, 1], split=["train", "train", "train"]).set_column(
        SCHEMA.names.index("status"), "status", pa.array(["ok", "ok", "failed"])
    )
    assert usable(rows)["image_id"].to_pylist() == ["a/0.jpg"]
    assert len(usable(rows, "val")) == 0


def test_the_fingerprint_sees_what_training_sees():
    before = table(label=[0, 1, 1], split=["train", "train", "val"])
    assert fingerprint(before) == fingerprint(
        table(label=[0, 1, 1], split=["train", "train", "val"], uri=["x", "y", "z"])
    )
    assert fingerprint(before) != fingerprint(table(label=[1, 1, 1], split=["train", "train", "val"]))
    assert fingerprint(before) != fingerprint(table(label=[0, 1, 1], split=["val", "train", "train"]))
