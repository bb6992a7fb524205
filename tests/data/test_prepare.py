import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_ray.data.manifest import SCHEMA, read_manifest
from pneumo_ray.data.prepare import load_training_rows


def test_rows_to_train_on_come_in_one_piece_however_the_manifest_was_written(tmp_path):
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
