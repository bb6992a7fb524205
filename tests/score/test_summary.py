"""The count of a folder of scores, from its files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pneumo_ray.errors import StorageError
from pneumo_ray.score.image_list import Source, part_name
from pneumo_ray.score.schema import ScoreFacts
from pneumo_ray.score.summary import ScoreSummary, read_summary, summarise

FACTS = ScoreFacts((2, 2), "m", "c", 0.5, 1.0, {"target": "pneumonia"})
SOURCE = Source("list.parquet", 6, 4096)
"""Six images: at this size a shard has four, the last one two."""
NOTES = ["window_left_one_grey,overlays_left_out", "window_left_one_grey", None, None, "overlays_left_out", None]


@pytest.fixture
def folder(tmp_path) -> Path:
    for shard, rows in enumerate((range(4), range(4, 6))):
        failures = [("decode", "truncated: half a file") if row in (2, 5) else None for row in rows]
        prob = np.full(failures.count(None), 0.5, np.float32)
        notes = [NOTES[row] for row in rows]
        table = FACTS.table([f"{row}.dcm" for row in rows], failures, {"prob_mean": prob}, notes=notes)
        pq.write_table(table, tmp_path / part_name(shard))
    return tmp_path


def test_rows_failures_and_notes_are_summed_over_shards(folder):
    found = summarise(str(folder), SOURCE, "m", "c")
    assert (found.num_rows, found.num_failed, found.failures) == (6, 2, {"decode: truncated": 2})
    assert found.decode_notes == {"window_left_one_grey": 2, "overlays_left_out": 2}


def test_shards_of_a_version_without_notes_count(folder):
    first = pq.read_table(folder / part_name(0))
    pq.write_table(first.drop_columns(["decode_note"]), folder / part_name(0))
    assert summarise(str(folder), SOURCE, "m", "c").decode_notes == {"overlays_left_out": 1}


def test_a_shard_of_another_model_is_refused(folder):
    with pytest.raises(StorageError, match=r"part-000000\.parquet .* belongs to another job"):
        summarise(str(folder), SOURCE, "other", "c")
    (folder / part_name(1)).write_bytes(b"half")
    with pytest.raises(StorageError, match=r"part-000001\.parquet .* is damaged"):
        summarise(str(folder), SOURCE, "m", "c")


def test_finished_jobs_of_older_versions_have_no_notes(tmp_path):
    facts = {"rows": 3, "failed": 1, "failures": {"read: empty": 1}}
    (tmp_path / "_run.json").write_text(json.dumps(facts))
    assert read_summary(str(tmp_path)) == ScoreSummary(str(tmp_path), 3, 1, {"read: empty": 1}, {})
    (tmp_path / "_run.json").write_text(json.dumps(facts | {"decode_notes": {"overlays_left_out": 2}}))
    assert read_summary(str(tmp_path)).decode_notes == {"overlays_left_out": 2}
