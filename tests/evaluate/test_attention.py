from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.attention import map_similarity, pointing
from pneumo_ray.evaluate.scores import Scores, read_scores
from pneumo_ray.evaluate.uncertainty import flagged_shares
from pneumo_ray.explain import ZONES
from pneumo_ray.score.schema import ScoreFacts


def scores(maps: np.ndarray, explained: str = "pneumonia", **columns) -> Scores:
    n = len(maps)
    flat = pa.FixedSizeListArray.from_arrays(
        pa.array(maps.reshape(-1).astype(np.float32)), maps.shape[1] * maps.shape[2]
    )
    base = {
        "image_id": [f"{i}" for i in range(n)],
        "status": ["ok"] * n,
        "cam_mean": flat,
        "predicted": pa.array([1] * n, pa.int8()),
        "target": pa.array([1] * n, pa.int8()),
    }
    return Scores(pa.table(base | columns), maps.shape[1:], ZONES, 0.5, explained)


def corner(row: int, column: int) -> np.ndarray:
    made = np.zeros((7, 7))
    made[row, column] = 1
    return made


BOXES = pa.table(
    {
        "image_id": ["0", "1", "2"],
        "x0": [0, 0, 0],
        "y0": [0, 0, 0],
        "x1": [100, 100, 100],
        "y1": [50, 50, 50],
        "width": [200] * 3,
        "height": [100] * 3,
    }
)


def test_only_true_positives_whose_pneumonia_is_explained_play():
    maps = np.stack([corner(1, 1), corner(5, 5), corner(1, 1), corner(1, 1)])
    found = scores(maps, predicted=pa.array([1, 1, 1, 0], pa.int8()))
    result = pointing(found, np.array([1, 1, 0, 1]), BOXES, 224, 224)
    assert (result.hits, result.total) == (1, 2)
    assert result.area == pytest.approx(0.25)
    assert result.energy == pytest.approx(0.5, abs=0.02)


def test_the_threshold_of_flags_comes_from_validation_and_is_applied_to_the_test():
    n = 300
    value = np.concatenate([np.arange(100), np.arange(100) + 0.5, np.full(100, 1000.0)])
    label = np.array([1] * 200 + [0] * 100)
    split = ["val"] * 100 + ["test"] * 200
    found = flagged_shares(
        scores(np.ones((n, 1, 1)), mutual_information=value, label=pa.array(label, pa.int8()), split=split),
        "mutual_information",
    )
    assert found.threshold == pytest.approx(87.12)
    assert found.true_positives == pytest.approx(0.13)
    assert found.false_positives == 1.0
    assert (found.num_true_positives, found.num_false_positives) == (100, 100)


def test_maps_are_compared_image_by_image():
    rng = np.random.default_rng(0)
    maps = rng.random((20, 7, 7))
    a = scores(maps)
    assert map_similarity(a, replace(a, table=a.table.take(list(range(20))[::-1]))) == pytest.approx(1.0)
    assert abs(map_similarity(a, scores(rng.random((20, 7, 7))))) < 0.15


def test_maps_of_different_classes_are_not_compared():
    maps = np.random.default_rng(0).random((4, 7, 7))
    flipped = scores(np.concatenate([1 - maps[:2], maps[2:]]), target=pa.array([0, 0, 1, 1], pa.int8()))
    assert map_similarity(scores(maps), flipped) == pytest.approx(1.0)


def test_scores_are_read_back_and_joined(tmp_path):
    facts = ScoreFacts((2, 2), "m", "c", 0.5, 1.0, {"target": "pneumonia"})
    for part in range(2):
        names = [f"{part}{i}" for i in range(3)]
        pq.write_table(facts.table(names, [("read", "x: y")] * 3, {}), tmp_path / f"part-{part}.parquet")
    with pytest.raises(ManifestError, match="not finished"):
        read_scores(str(tmp_path))
    (tmp_path / "_run.json").write_text("{}")
    found = read_scores(str(tmp_path))
    assert np.isnan(found.maps("cam_mean")).all()
    assert len(found.table) == 6
    assert len(found.ok().table) == 0
    manifest = pa.table(
        {
            "image_id": ["11", "00"],
            "label": [1, 0],
            "split": ["val", "test"],
            "subtype": ["a", "b"],
            "patient_id": ["p", "q"],
        }
    )
    joined = found.joined(manifest)
    assert joined.table["label"].to_pylist() == [0, None, None, None, 1, None]
    assert joined.of_split("val").table["image_id"].to_pylist() == ["11"]


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(ManifestError, match="no Parquet"):
        read_scores(str(tmp_path))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ManifestError, match="not hold scores"):
        read_scores(str(tmp_path))
