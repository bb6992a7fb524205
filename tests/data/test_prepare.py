import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.data.audit import audit, audit_lines
from pneumo_ray.data.manifest import SCHEMA, read_manifest
from pneumo_ray.data.prepare import load_training_rows
from pneumo_ray.errors import ManifestError


def test_training_rows_are_contiguous(tmp_path):
    """To take 64 rows out of a table of many pieces Arrow copies the table, so an epoch would cost its square."""
    rows = [
        {
            "image_id": f"{i}.jpg",
            "label": i % 2,
            "split": "train" if i % 5 else "val",
            "content_sha256": f"{i:064x}",
            "status": "ok",
        }
        for i in range(1000)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "m.parquet", row_group_size=100)
    manifest, train, val = load_training_rows(str(tmp_path / "m.parquet"))
    assert read_manifest(str(tmp_path / "m.parquet"))["uri"].num_chunks > 1
    assert {column.num_chunks for table in (train, val) for column in table.columns} == {1}
    assert (len(manifest), len(train), len(val)) == (1000, 800, 200)


def training_manifest(path, patients: list, splits: list) -> str:
    rows = [
        {
            "image_id": f"{i}.dcm",
            "label": i % 2,
            "patient_id": patient,
            "split": split,
            "content_sha256": f"{i:064x}",
            "status": "ok",
        }
        for i, (patient, split) in enumerate(zip(patients, splits, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return str(path)


def test_a_single_patient_is_named_before_training(tmp_path):
    path = training_manifest(tmp_path / "m.parquet", ["ANONYMOUS"] * 40, ["train"] * 40)
    with pytest.raises(ManifestError, match=r"in its split val.*all 40 labelled images carry one patient identifier"):
        load_training_rows(path)
    path = training_manifest(tmp_path / "n.parquet", [f"p{i}" for i in range(40)], ["train"] * 40)
    with pytest.raises(ManifestError, match=r"in train and val$"):
        load_training_rows(path)


@pytest.mark.parametrize(
    ("patients", "sentence"),
    [
        (["A"] * 40, "all 40 labelled images carry one patient identifier"),
        (["A"] * 30 + [f"p{i}" for i in range(10)], "30 of 40 labelled images carry one patient identifier"),
        ([None] * 40, "no labelled image names its patient"),
        ([f"p{i}" for i in range(40)], "every labelled image has a patient of its own"),
        ([f"p{i}" for i in range(30)] + [None] * 10, "every labelled image has a patient of its own"),
        ([f"p{i // 2}" for i in range(40)], None),
        (["A"] * 9 + [f"p{i // 2}" for i in range(31)], None),
    ],
)
def test_the_audit_warns_of_patients_that_part_nothing(tmp_path, patients, sentence):
    table = inspected(tmp_path, patients)
    warnings = [line for line in audit_lines(audit(table)) if line.startswith("warning")]
    assert [sentence in line for line in warnings] == [True] if sentence else not warnings


def inspected(tmp_path, patients: list) -> pa.Table:
    """A manifest whose images all have one size, file size and mode."""
    table = read_manifest(training_manifest(tmp_path / "m.parquet", patients, ["train"] * len(patients)))
    for name in ("width", "height", "num_bytes"):
        position = table.column_names.index(name)
        table = table.set_column(
            position, table.schema.field(name), pa.array([9] * len(table), table.schema.field(name).type)
        )
    return table.set_column(table.column_names.index("mode"), "mode", pa.array(["L"] * len(table)))


def test_the_audit_counts_notes_once_per_image(tmp_path):
    table = inspected(tmp_path, [f"p{i // 2}" for i in range(5)])
    assert audit(table)["decode_notes"] == {}
    notes = pa.array(
        ["window_left_one_grey", None, "overlays_left_out,window_left_one_grey", None, "overlays_left_out"]
    )
    unreadable = pa.array(["ok"] * 4 + ["failed"])
    table = table.append_column("decode_note", notes)
    table = table.set_column(table.column_names.index("status"), "status", unreadable)
    assert audit(table)["decode_notes"] == {"window_left_one_grey": 2, "overlays_left_out": 1}
