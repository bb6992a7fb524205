"""Readings onto a manifest: the labels that follow are counted by hand."""

import pyarrow as pa
import pytest

from pneumo_ray.data.manifest import SCHEMA, validate
from pneumo_ray.errors import ManifestError
from pneumo_ray.readers.merge import READINGS_FILE, read_opinions
from pneumo_ray.readers.readings import read_readings

ROWS = """image_id,reader,label,confidence,at
a.png,x,1,0.5,2026-01-01T10:00:00Z
a.png,y,1,1,
a.png,z,0,,
b.png,x,0,,
b.png,y,1,,
c.png,x,,0.1,
d.png,x,0,,2026-01-01T10:00:00Z
d.png,x,1,0.25,2026-01-02T10:00:00Z
"""


def manifest(labels=(0, 1, 1, None, 0)) -> pa.Table:
    rows = [
        {"image_id": f"{name}.png", "status": "ok", "label": label, "subtype": "virus" if label else "normal"}
        for name, label in zip("abcde", labels, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def merged(folder, how="majority", text=ROWS) -> pa.Table:
    (folder / "r.csv").write_text(text)
    table = read_opinions([str(folder / "r.csv")], how)(manifest(), str(folder))
    validate(table, "m")
    return table


def test_the_labels_are_those_of_the_readers(tmp_path):
    table = merged(tmp_path)
    assert table["label"].to_pylist() == [1, 1, 1, 1, 0]  # b is a tie, c cannot be said, e was not read
    assert table["label_soft"].to_pylist() == [1, 0.5, 1, 1, 0]
    assert table["label_weight"].to_pylist() == [0.75, 1, 1, 0.25, 1]
    assert table["num_readers"].to_pylist() == [3, 2, 0, 1, 0]
    assert table["subtype"].to_pylist() == [None, "virus", "virus", "normal", "normal"]
    kept = read_readings([str(tmp_path / READINGS_FILE)])
    assert kept == read_readings([str(tmp_path / "r.csv")])
    assert len(kept) == 8


def test_the_mean_keeps_the_doubt(tmp_path):
    table = merged(tmp_path, "mean")
    assert table["label_soft"].to_pylist() == pytest.approx([2 / 3, 0.5, 1, 1, 0])
    assert table["label"].to_pylist() == [1, 1, 1, 1, 0]


def test_a_tie_without_a_label_stays_unknown(tmp_path):
    table = merged(tmp_path, text="image_id,reader,label\nd.png,x,1\nd.png,y,0\n")
    assert table["label"].to_pylist() == [0, 1, 1, None, 0]
    assert table["label_soft"].to_pylist() == [0, 1, 1, 0.5, 0]


def test_unknown_images_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="not in the manifest"):
        merged(tmp_path, text="image_id,reader,label\nq.png,x,1\n")
    assert not (tmp_path / READINGS_FILE).exists()


def test_the_summary_counts_what_changed(tmp_path, capsys):
    merged(tmp_path)
    line = capsys.readouterr().out
    assert "8 answers of 3 reader(s) about 4 images" in line
    assert "changes 1 labels and gives 1 images their first; 1 are undecided" in line
