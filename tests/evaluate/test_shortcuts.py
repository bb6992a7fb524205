"""What metadata alone can tell: everything, nothing, or not defined."""

import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.data.manifest import SCHEMA
from pneumo_ray.evaluate.shortcuts import metadata_baseline

N = 300


def manifest(label: np.ndarray, **changes) -> pa.Table:
    """Images of the splits train, test, train, ..., whose metadata say nothing unless they are changed."""
    n, rng = len(label), np.random.default_rng(1)
    columns = {
        "image_id": [f"{i}.jpg" for i in range(n)],
        "label": list(label),
        "patient_id": [f"p{i // 4}" for i in range(n)],
        "split": ["train", "test"] * (n // 2),
        "width": rng.integers(900, 2000, n).tolist(),
        "height": rng.integers(900, 2000, n).tolist(),
        "num_bytes": rng.integers(10**5, 10**6, n).tolist(),
        "mode": ["L"] * n,
        "status": ["ok"] * n,
    }
    columns |= changes
    return pa.table(
        [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in SCHEMA], schema=SCHEMA
    )


@pytest.fixture
def label() -> np.ndarray:
    return (np.random.default_rng(0).random(N) < 0.6).astype(int)


def test_metadata_that_say_nothing_reach_about_a_half(label):
    """150 images: the standard error of an AUC of 0.5 is 0.05."""
    found = metadata_baseline(manifest(label), "test")
    assert abs(found.auc - 0.5) < 0.15
    assert found.interval[0] < 0.5 < found.interval[1]
    assert (found.fitted_on, found.measured_on, found.left_out, found.reason) == (N // 2, N // 2, 0, None)


def test_a_ratio_can_be_a_shortcut(label):
    """Bytes per pixel is 0.2 or 0.3, while size and bytes vary sevenfold."""
    side = np.random.default_rng(2).integers(800, 2100, N)
    size = (np.where(label == 1, 0.2, 0.3) * side**2).astype(int)
    found = metadata_baseline(
        manifest(label, width=side.tolist(), height=side.tolist(), num_bytes=size.tolist()), "test"
    )
    assert found.auc == 1
    assert 0.85 < found.interval[0] < found.interval[1] == 1  # it is not certain, only never seen otherwise


def test_a_product_can_be_a_shortcut(label):
    """One class has 1.0 and the other 1.2 megapixels, at any width from 200 to 5,000: a line only among logarithms."""
    width = np.exp(np.random.default_rng(2).uniform(np.log(200), np.log(5000), N))
    height = np.where(label == 1, 1.0e6, 1.2e6) / width
    table = manifest(label, width=width.astype(int).tolist(), height=height.astype(int).tolist())
    assert metadata_baseline(table, "test").auc > 0.99


def test_a_mode_can_be_a_shortcut(label):
    modes = np.where(label == 1, "L", "RGB").astype(object)
    modes[1] = "CMYK"  # of the test: never seen in training
    table = manifest(label, mode=modes.tolist())
    assert metadata_baseline(table, "test").auc > 0.98


def test_facts_that_all_images_share_tell_exactly_nothing(label):
    same = {"width": [224] * N, "height": [224] * N, "num_bytes": [9000] * N}
    assert metadata_baseline(manifest(label, **same), "test").auc == 0.5


def test_the_measured_images_are_not_fitted_on(label):
    """Width is the label in train and its opposite in test: a baseline that saw the test would not be at 0."""
    shown = np.where(np.arange(N) % 2 == 0, label, 1 - label)
    table = manifest(label, width=(1000 + 500 * shown).tolist(), height=[1000] * N, num_bytes=[9000] * N)
    assert metadata_baseline(table, "test").auc == 0
    assert metadata_baseline(table, None).auc == 0


@pytest.mark.parametrize(
    ("changes", "split", "reason"),
    [
        ({"num_bytes": [None] * N}, "test", "num_bytes"),
        ({"width": [0] * N}, "test", "sizes"),
        ({"label": [1, 0] * (N // 2)}, "test", "train are all of one class"),
        ({"label": [0, 1, 1, 1] * (N // 4)}, "test", "test are all of one class"),
        ({"label": [None, 1] * (N // 2)}, "test", "no labelled images in the split train"),
        ({}, "val", "no labelled images in the split val"),
        ({}, "train", "fitted on the split train"),
    ],
)
def test_what_is_undefined_is_none_and_says_why(label, changes, split, reason):
    found = metadata_baseline(manifest(**({"label": label} | changes)), split)
    assert found.auc is found.interval is None
    assert reason in found.reason


def test_images_without_facts_are_counted(label):
    size = [None if i < 10 else 9000 + i for i in range(N)]
    found = metadata_baseline(manifest(label, num_bytes=size), "test")
    assert (found.left_out, found.fitted_on, found.measured_on) == (10, N // 2 - 5, N // 2 - 5)
    assert found.auc is not None
