"""Three kinds of tables of boxes, and everything that can be wrong with them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.boxes import read_boxes

MANIFEST = pa.table(
    {
        "image_id": ["test/a.jpg", "test/b.jpg", "test/c.jpg", "x/same.jpg", "y/same.jpg"],
        "width": pa.array([200, 400, 100, 100, None], pa.int32()),
        "height": pa.array([100, 400, 100, 100, None], pa.int32()),
    }
)
EXPECTED = {
    "test/a.jpg": ((0.05, 0.2, 0.25, 0.6), (0.5, 0.5, 1.0, 1.0)),
    "test/b.jpg": ((0.25, 0.25, 0.5, 0.75),),
}
OWN = "image_id,x0,y0,x1,y1,width,height\na.jpg,10,20,50,60,200,100\na.jpg,100,50,200,100,200,100\nb.jpg,100,100,200,300,400,400\n"
RSNA = "patientId,x,y,width,height,Target\na,10,20,40,40,1\na,100,50,100,50,1\nb,100,100,100,200,1\nc,,,,,0\n"
COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100},
        {"id": 8, "file_name": "test/b.jpg", "width": 400, "height": 400},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 40, 40]},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [100, 50, 100, 50]},
        {"id": 3, "image_id": 8, "category_id": 1, "bbox": [100, 100, 100, 200]},
    ],
}


def written(folder: Path, content: str | dict) -> str:
    path = folder / ("boxes.json" if isinstance(content, dict) else "boxes.csv")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize("content", [OWN, RSNA, COCO, RSNA.replace("patientId", "image_id").replace(",", ";")])
def test_every_format_gives_the_same_boxes(tmp_path, content):
    assert read_boxes(written(tmp_path, content), MANIFEST) == EXPECTED


def test_a_parquet_table_gives_them_too(tmp_path):
    names, *rows = (line.split(",") for line in OWN.splitlines())
    columns = {name: [row[k] if k == 0 else float(row[k]) for row in rows] for k, name in enumerate(names)}
    pq.write_table(pa.table(columns), tmp_path / "boxes.parquet")
    assert read_boxes(str(tmp_path / "boxes.parquet"), MANIFEST) == EXPECTED


def test_the_tables_size_precedes_the_files(tmp_path):
    """A file that was resized: boxes of the original, whose size the table has."""
    twice = "image_id,x,y,width,height,image_width,image_height\na,20,40,80,80,400,200\n"
    assert read_boxes(written(tmp_path, twice), MANIFEST) == {"test/a.jpg": EXPECTED["test/a.jpg"][:1]}


def test_boxes_of_other_images_are_counted(tmp_path, capsys):
    found = read_boxes(written(tmp_path, OWN + "other.jpg,0,0,1,1,2,2\n"), MANIFEST)
    assert found == EXPECTED
    assert "1 of 4 boxes are of other images" in capsys.readouterr().out


def test_boxes_over_the_edge_are_cut(tmp_path):
    found = read_boxes(written(tmp_path, "image_id,x0,y0,x1,y1\na.jpg,-1,0,201,50\n"), MANIFEST)
    assert found == {"test/a.jpg": ((0.0, 0.0, 1.0, 0.5),)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image_id,left,top\na,1,2\n", "lacks columns"),
        ("x0,y0,x1,y1\n1,2,3,4\n", "lacks columns"),
        ("image_id,x0,y0,x1,y1\nq.jpg,1,2,3,4\n", "none of its 1 boxes"),
        ("image_id,x0,y0,x1,y1\nsame.jpg,1,2,3,4\n", "could be several"),
        ("image_id,x0,y0,x1,y1\na.jpg,150,0,260,50\n", "row 2 leaves its image of 200 x 100"),
        ("image_id,x0,y0,x1,y1\na.jpg,-9,0,50,50\n", "leaves its image"),
        ("image_id,x0,y0,x1,y1\na.jpg,50,0,50,50\n", "no area"),
        ("image_id,x0,y0,x1,y1\na.jpg,5,,50,50\n", "lacks its image or a side"),
        ("image_id,x0,y0,x1,y1\na.jpg,secret,2,3,4\n", "no number in row 2 of its column 'x0'"),
        ("image_id,x0,y0,x1,y1\ny/same.jpg,1,2,3,4\n", "has the size of the image"),
        ("image_id,x0,y0,x1,y1\n", "has no box"),
        ("patientId,x,y,width,height,Target\na,,,,,0\n", "has no box"),
        ({"images": []}, "not COCO's JSON"),
        ([1], "not COCO's JSON"),
        ({"images": [], "annotations": [{"image_id": 3, "bbox": [1, 2, 3, 4]}]}, "list of images lacks"),
        (COCO | {"annotations": [{"image_id": 7, "bbox": [1, 2, 3]}]}, "not four numbers"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, content, words):
    if not isinstance(content, str):
        (tmp_path / "boxes.json").write_text(json.dumps(content))
    uri = written(tmp_path, content) if isinstance(content, str) else str(tmp_path / "boxes.json")
    with pytest.raises(ManifestError, match=words) as caught:
        read_boxes(uri, MANIFEST)
    assert str(caught.value).startswith("--boxes")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.csv", "gone.json"])
def test_a_missing_table_is_named(tmp_path, name):
    with pytest.raises(ManifestError, match="does not exist"):
        read_boxes(str(tmp_path / name), MANIFEST)


def test_something_else_with_the_name_is_refused(tmp_path):
    (tmp_path / "boxes.json").write_text("image_id,x0")
    with pytest.raises(ManifestError, match="not JSON"):
        read_boxes(str(tmp_path / "boxes.json"), MANIFEST)
