"""Readings as people export them; what a file means is known because each is written for the test."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.errors import ManifestError
from pneumo_ray.readers.readings import SCHEMA, Readings, read_readings, write_readings

HEADER = "image_id,reader,label,confidence,seconds,blinded,at\n"


def read(folder, *texts: str) -> Readings:
    uris = []
    for number, text in enumerate(texts):
        (folder / f"{number}.csv").write_text(text)
        uris.append(str(folder / f"{number}.csv"))
    return read_readings(uris)


def test_a_reading_has_its_types(tmp_path):
    found = read(tmp_path, HEADER + "a.png,Ann <b>,1,0.5,3.25,true,2026-01-31T12:00:00Z\nb.png,Bo,,,,,\n")
    assert found.table.schema == SCHEMA
    first, second = found.table.to_pylist()
    assert (first["reader"], first["label"], first["confidence"], first["seconds"]) == ("Ann <b>", 1, 0.5, 3.25)
    assert first["blinded"] is True
    assert first["at"].isoformat() == "2026-01-31T12:00:00+00:00"
    assert [second[name] for name in SCHEMA.names[2:]] == [None] * 5
    assert found.readers == ("Ann <b>", "Bo")


def test_parquet_and_words_read_like_csv(tmp_path):
    found = read(tmp_path, "Image_ID;Reader;Label\na;x;Pneumonia\nb;x;normal\nc;x;cannot say\n")
    write_readings(found, str(tmp_path / "r.parquet"))
    assert read_readings([str(tmp_path / "r.parquet")]) == found
    assert found.table["label"].to_pylist() == [1, 0, None]
    floats = pa.table({"image_id": ["a", "b", "c"], "reader": ["x"] * 3, "label": [1.0, 0.0, float("nan")]})
    pq.write_table(floats, tmp_path / "f.parquet")
    assert read_readings([str(tmp_path / "f.parquet")]) == found


def test_a_repeated_export_counts_once(tmp_path):
    row = "a,x,1,,,,2026-01-01T00:00:00Z\n"
    assert len(read(tmp_path, HEADER + row, HEADER + row + "b,x,0,,,,\n")) == 2


def test_first_and_last_follow_the_clock(tmp_path):
    rows = "a,x,1,,,,2026-01-02T00:00:00+00:00\na,x,0,,,,2026-01-02T00:30:00+01:00\na,y,1,,,,\n"
    found = read(tmp_path, HEADER + rows)
    assert found.first().table["label"].to_pylist() == [0, 1]
    assert found.last().table["label"].to_pylist() == [1, 1]
    assert found.last().votes(["b", "a"])[1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (HEADER, "has no readings"),
        ("image_id,label\na,1\n", "no column reader"),
        ("image_id,reader,lable\na,x,1\n", "no column label"),
        ("image_id,reader,label\na,x,2\n", "label in row 2"),
        ("image_id,reader,label\na,x,0.5\n", "label in row 2"),
        ("image_id,reader,label,confidence\na,x,1,1\nb,x,1,3\n", "confidence in row 3"),
        ("image_id,reader,label,seconds\na,x,1,-1\n", "seconds in row 2"),
        ("image_id,reader,label,at\na,x,1,yesterday\n", "at in row 2"),
        ("image_id,reader,label\na,,1\n", "reader in row 2"),
        ("image_id,reader,label\n,x,1\n", "image_id in row 2"),
        ("image_id,reader,label\na,x,1\na,x,0\n", "answers twice"),
        ("image_id,reader,label,label\na,x,1,1\n", "more than one column label"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path, text, words):
    with pytest.raises(ManifestError, match=words):
        read(tmp_path, text)


def test_images_are_named_as_in_the_manifest(tmp_path):
    found = read(tmp_path, "image_id,reader,label\n0.png,x,1\nb/1.png,x,0\n")
    assert found.matched(["a/0.png", "b/1.png"], "--readings").image_ids == ("a/0.png", "b/1.png")
    with pytest.raises(ManifestError, match=r"1 of 2 images .* unknown"):
        found.matched(["b/0.png", "c/1.png"], "--readings")
    with pytest.raises(ManifestError) as refused:
        read(tmp_path, "image_id,reader,label\nJane Doe,x,1\n").matched(["a/0.png"], "--readings")
    assert "Jane" not in str(refused.value)
    with pytest.raises(ManifestError, match="could be several"):
        found.matched(["b/0.png", "c/0.png", "b/1.png"], "--readings")


def test_two_spellings_of_an_image_contradict_too(tmp_path):
    found = read(tmp_path, "image_id,reader,label\n0.png,x,1\na/0.png,x,0\n")
    with pytest.raises(ManifestError, match="answers twice"):
        found.matched(["a/0.png"], "--readings")
