"""Experiments with noisy labels: exactly the planned labels are wrong, and the tables are arithmetic."""

import numpy as np
import pyarrow as pa

from benchmarks.label_noise import flip, shares
from benchmarks.soft_labels import ARMS, answers, table
from pneumo_ray.data.manifest import SCHEMA


def test_a_share_of_the_training_labels_is_flipped():
    rows = [
        {"image_id": f"{i}", "label": i % 2, "split": "train" if i < 200 else "test", "status": "ok"}
        for i in range(260)
    ]
    manifest = pa.Table.from_pylist(rows, schema=SCHEMA)
    noisy, flipped = flip(manifest, 0.05, seed=0)
    differ = {row["image_id"] for row, was in zip(noisy.to_pylist(), rows, strict=True) if row["label"] != was["label"]}
    assert differ == flipped
    assert len(flipped) == 10
    assert all(int(name) < 200 for name in flipped)
    assert flip(manifest, 0.05, seed=1)[1] != flipped


def test_shares_are_those_of_training_images():
    """Twenty training images, two of them flipped: one is first by both rankings, one is second by the margin only."""
    doubtful = pa.table(
        {
            "image_id": [str(i) for i in range(21)],
            "fold": pa.array([*range(20), None], pa.int32()),
            "self_confidence": [0.0, 0.5, 0.1, *[0.9] * 18],
            "adjusted_margin": [0.0, 0.1, 0.5, *[0.9] * 18],
            "doubtful": [True, False, True, *[False] * 18],
        }
    )
    found = shares(doubtful, {"0", "1"})
    assert found == {"self_confidence": 0.5, "adjusted_margin": 1.0, "precision": 0.5, "recall": 0.5}


def test_a_reader_is_wrong_about_a_fifth():
    names = [f"train/{i}" for i in range(50)]
    truth = {name: i % 2 for i, name in enumerate(names)}
    found = [answers(reader, names, truth, 0.2, np.random.default_rng(k)) for k, reader in enumerate(("ann", "bo"))]
    wrong = [
        {row["image_id"] for row in one.table.to_pylist() if row["label"] != truth[row["image_id"]]} for one in found
    ]
    assert [len(one) for one in wrong] == [10, 10]
    assert wrong[0] != wrong[1]


def test_the_recovered_share_is_that_of_the_loss():
    true, noisy, soft = (arm.name for arm in ARMS)
    aucs = {true: [0.9, 1.0], noisy: [0.7, 0.8], soft: [0.8, 1.0]}
    lines = table(dict.fromkeys(aucs, 1.0), aucs)
    assert "recover 75%" in lines[-1]
    assert "| 0.700 | 0.800 | 0.750 |" in lines[3]


def test_without_a_loss_nothing_is_recovered():
    assert not any(
        "recover" in line for line in table({arm.name: 1.0 for arm in ARMS}, {arm.name: [0.9] for arm in ARMS})
    )
