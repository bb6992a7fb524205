"""Folds of drawn manifests: patients stay whole, classes are even, and the order of the rows does not matter."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.data.folds import assign_folds, without_fold
from pneumo_ray.data.manifest import SCHEMA, usable
from pneumo_ray.errors import ConfigError


def manifest(patients: list[tuple[int, int]], others: int = 3) -> pa.Table:
    """Return a manifest of patients by their class and number of training images, and some images of other splits."""
    rows = [
        {"image_id": f"{number}-{k}", "patient_id": f"p{number}", "label": label, "split": "train", "status": "ok"}
        for number, (label, images) in enumerate(patients)
        for k in range(images)
    ]
    for split in ("val", "test", None):
        rows += [{"image_id": f"{split}-{k}", "label": k % 2, "split": split, "status": "ok"} for k in range(others)]
    rows.append({"image_id": "bad", "label": 1, "split": "train", "status": "failed"})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


ENOUGH = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5)), min_size=4, max_size=40).map(
    lambda drawn: [(c, 1) for c in (0, 1) for _ in range(4)] + drawn
)


@given(ENOUGH, st.integers(2, 4), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_every_training_image_is_left_out_once(patients, folds, seed):
    table = manifest(patients)
    fold = assign_folds(table, folds, seed)
    trains = np.array([row["split"] == "train" and row["status"] == "ok" for row in table.to_pylist()])
    assert (fold[~trains] == -1).all()
    assert set(fold[trains]) == set(range(folds))
    names = np.array([row["patient_id"] or "" for row in table.to_pylist()])
    assert all(len(set(fold[trains & (names == name)])) == 1 for name in set(names[trains]))
    left = [set(usable(without_fold(table, fold, k), "train")["image_id"].to_pylist()) for k in range(folds)]
    everything = set(usable(table, "train")["image_id"].to_pylist())
    assert set.intersection(*left) == set()
    assert all(sum(name in part for part in left) == folds - 1 for name in everything)


def test_folds_ignore_the_order_of_rows():
    table = manifest([(k % 2, 1 + k % 3) for k in range(40)])
    order = np.random.default_rng(0).permutation(len(table))
    fold = assign_folds(table, 5, 1)
    np.testing.assert_array_equal(assign_folds(table.take(order), 5, 1), fold[order])
    assert (assign_folds(table, 5, 2) != fold).any()


def test_classes_are_spread_evenly():
    table = manifest([(int(k < 25), 1) for k in range(100)])
    fold, label = assign_folds(table, 5, 0), np.array(table["label"].to_pylist())
    assert [int((label[fold == k] == 1).sum()) for k in range(5)] == [5] * 5


def test_the_same_bytes_share_a_fold():
    table = manifest([(k % 2, 1) for k in range(40)])
    same = ["x" if k in (3, 17, 30) else None for k in range(len(table))]
    table = table.set_column(table.column_names.index("content_sha256"), "content_sha256", pa.array(same, pa.string()))
    assert len(set(assign_folds(table, 5, 0)[[3, 17, 30]])) == 1


def test_a_fold_leaves_other_splits_alone():
    table = manifest([(k % 2, 1) for k in range(20)])
    found = without_fold(table, assign_folds(table, 2, 0), 0)
    for split in ("val", "test"):
        assert usable(found, split)["image_id"].to_pylist() == usable(table, split)["image_id"].to_pylist()
    again = without_fold(found, assign_folds(table, 2, 0), 1)
    assert again.column_names.count("fold") == 1


def test_too_few_patients_for_the_folds_are_refused():
    with pytest.raises(ConfigError, match="one class has 3; give fewer --folds"):
        assign_folds(manifest([(1, 9)] * 3 + [(0, 1)] * 20), 5, 0)
