"""Tasks of Label Studio and sheets, there and back; an export is written here as Label Studio documents its format."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from pneumo_ray.config import parse
from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.readers.config import ExchangeConfig
from pneumo_ray.readers.exchange import exchange, hashed_name, read_answers
from pneumo_ray.readers.readings import read_readings

READINGS = """image_id,reader,label,confidence,seconds,blinded,at
0.jpg,ann@clinic.example,1,0.6666666666666666,4.5,true,2026-01-31T12:00:00.250Z
0.jpg,bo@clinic.example,0,1,3,true,2026-01-31T12:01:00Z
1.jpg,ann@clinic.example,,,2,true,
"""

EXPORT = [
    {
        "id": 1,
        "data": {"image": "/data/local-files/?d=0.jpg", "image_id": "0.jpg"},
        "annotations": [
            {
                "id": 1001,
                "result": [
                    {"id": "Dx_aB91ISN", "from_name": "label", "to_name": "image", "type": "choices",
                     "value": {"choices": ["pneumonia"]}},
                    {"id": "Dx_aB91ISO", "from_name": "confidence", "to_name": "image", "type": "rating",
                     "value": {"rating": 2}},
                ],
                "was_cancelled": False,
                "created_at": "2026-03-09T22:16:08.728353Z",
                "lead_time": 4.288,
                "completed_by": 10,
            },
            {
                "id": 1002,
                "result": [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cannot say"]}}],
                "completed_by": {"id": 11, "email": "bo@clinic.example"},
            },
            {"id": 1003, "result": [], "was_cancelled": True, "completed_by": 12},
        ],
        "predictions": [],
    },
    {"id": 2, "data": {"image": "x", "image_id": "1.jpg"}, "annotations": [], "predictions": []},
]  # fmt: skip


def made(folder: Path, **options) -> ExchangeConfig:
    (folder / "q.csv").write_text("image_id,reason,position\n1.jpg,random,2\n0.jpg,random,1\n0.jpg,repeat,3\n")
    (folder / "r.csv").write_text(READINGS)
    return ExchangeConfig(**{"out": str(folder / "t.json"), "queue": str(folder / "q.csv")} | options)


def exported(folder: Path, tasks: object) -> str:
    (folder / "e.json").write_text(json.dumps(tasks))
    return str(folder / "e.json")


def test_an_export_becomes_readings(tmp_path):
    found = read_answers([exported(tmp_path, EXPORT)], None).table.to_pylist()
    first, second = found
    assert (first["image_id"], first["reader"], first["label"], first["blinded"]) == ("0.jpg", "10", 1, True)
    assert (first["confidence"], first["seconds"]) == (pytest.approx(2 / 3), 4.288)
    assert first["at"].isoformat() == "2026-03-09T22:16:08.728000+00:00"
    assert (second["reader"], second["label"], second["confidence"]) == ("bo@clinic.example", None, None)


def test_tasks_and_readings_survive_the_way_back(tmp_path):
    exchange(made(tmp_path, readings=(str(tmp_path / "r.csv"),), images="/data/local-files/?d="))
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert [task["data"]["image_id"] for task in tasks] == ["0.jpg", "1.jpg", "0.jpg"]
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=0.jpg"
    assert [len(task.get("annotations", [])) for task in tasks] == [2, 1, 0]
    assert "predictions" not in tasks[0]
    assert "reason" not in json.dumps(tasks)
    exchange(ExchangeConfig(out=str(tmp_path / "back.csv"), read=(str(tmp_path / "t.json"),)))
    assert read_readings([str(tmp_path / "back.csv")]) == read_readings([str(tmp_path / "r.csv")])
    names = {control["from_name"] for a in tasks[0]["annotations"] for control in a["result"]}
    interface = (tmp_path / "t.xml").read_text()
    assert all(f'name="{name}"' in interface for name in names)


def test_predictions_unblind(tmp_path, write_scores):
    write_scores(tmp_path / "s", np.array([4.0, -4.0]))
    exchange(made(tmp_path, scores=str(tmp_path / "s"), readings=(str(tmp_path / "r.csv"),)))
    first, second, _ = json.loads((tmp_path / "t.json").read_text())
    (prediction,) = first["predictions"]
    assert prediction["score"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert prediction["result"][0]["value"] == {"choices": ["pneumonia"]}
    assert second["predictions"][0]["result"][0]["value"] == {"choices": ["normal"]}
    assert not any(read_answers([str(tmp_path / "t.json")], None).table["blinded"].to_pylist())


def test_hashed_names_hide_and_come_back(tmp_path, write_truth):
    manifest = str(write_truth(tmp_path / "m.parquet", np.array([1, 0]), n=2, images=tmp_path / "images"))
    exchange(made(tmp_path, png=str(tmp_path / "png"), manifest=manifest, images="reading/"))
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert ".jpg" not in json.dumps(tasks)
    name = tasks[0]["data"]["image"].removeprefix("reading/")
    own = cv2.imread(str(tmp_path / "images" / "0.png"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(cv2.imread(str(tmp_path / "png" / name), cv2.IMREAD_GRAYSCALE), own)
    tasks[0]["annotations"] = EXPORT[0]["annotations"]
    found = read_answers([exported(tmp_path, tasks)], manifest)
    assert found.image_ids == ("0.jpg",)
    (tmp_path / "sheet.csv").write_text(f"image_id,reader,label\n{hashed_name('1.jpg')},ann,0\n")
    assert read_answers([str(tmp_path / "sheet.csv")], manifest).image_ids == ("1.jpg",)


def test_a_sheet_is_filled_in_and_read(tmp_path):
    exchange(made(tmp_path, out=str(tmp_path / "sheet.csv"), images="img/"))
    lines = (tmp_path / "sheet.csv").read_text().splitlines()
    assert lines[0].replace('"', "") == "image_id,image,reader,label,confidence,seconds,blinded,at"
    assert len(lines) == 4
    filled = [lines[0], lines[1].replace(",,", ",Ann,1", 1), *lines[2:]]
    (tmp_path / "sheet.csv").write_text("\n".join(filled) + "\n")
    found = read_answers([str(tmp_path / "sheet.csv")], None).table.to_pylist()
    assert [(row["image_id"], row["reader"], row["label"]) for row in found] == [("0.jpg", "Ann", 1)]


def changed(**values) -> list:
    task = json.loads(json.dumps(EXPORT[0]))
    task["annotations"][0] |= values
    return [task]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({}, "must hold a list"),
        ([{"image": "x", "label": "pneumonia"}], "JSON-MIN"),
        ([{"data": {"image": "x"}}], "no image_id"),
        ([{"data": {"image_id": "x"}, "annotations": "none"}], "annotations that are none"),
        (EXPORT[1:], "no annotations"),
        (changed(result=[]), "none of normal, pneumonia"),
        (changed(result=[{"value": {"choices": ["pneumonia", "normal"]}}]), "none of normal, pneumonia"),
        (changed(result=[{"value": {"choices": ["normal"]}}, {"value": {"rating": 5}}]), "1 to 3 stars"),
        (changed(result=["x"]), "a result that is none"),
        (changed(completed_by=None), "who made it"),
        (changed(created_at="yesterday"), "no time"),
    ],
)
def test_another_export_is_refused(tmp_path, tasks, words):
    with pytest.raises(ManifestError, match=words):
        read_answers([exported(tmp_path, tasks)], None)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "e.json").write_text("no")
    with pytest.raises(ConfigError, match="not a readable JSON"):
        read_answers([str(tmp_path / "e.json")], None)
    with pytest.raises(ConfigError, match="does not exist"):
        read_answers([str(tmp_path / "f.json")], None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "t.json"], "give --queue to write tasks"),
        (["--out", "t.json", "--queue", "q", "--read", "e"], "give --queue to write tasks"),
        (["--out", "t.json", "--read", "e"], "must end in .csv or .parquet"),
        (["--out", "t.txt", "--queue", "q"], "must end in .json or .csv"),
        (["--out", "t.json", "--queue", "q", "--png", "p"], "needs --manifest"),
    ],
)
def test_options_that_cannot_work_are_named(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse(ExchangeConfig, words)


def test_unknown_images_are_not_written(tmp_path, write_truth):
    manifest = str(write_truth(tmp_path / "m.parquet", np.array([1]), n=1, images=tmp_path / "images"))
    with pytest.raises(ManifestError, match="1 images that the manifest does not have"):
        exchange(made(tmp_path, png=str(tmp_path / "png"), manifest=manifest))
    assert not (tmp_path / "t.json").exists()
