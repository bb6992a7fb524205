"""What a manifest knows of lungs, and which window of an image follows from it."""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.data.lungs import (
    has_lungs,
    lung_boxes,
    lung_fingerprint,
    lung_masks,
    shapes,
    windows,
)
from pneumo_ray.errors import ManifestError
from pneumo_ray.images.framing import Shape

BOX = [0.2, 0.1, 0.8, 0.9]
PNG = cv2.imencode(".png", np.pad(np.full((64, 64), 255, np.uint8), 32), [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()


def table(n: int = 1, **columns) -> pa.Table:
    known = {"image_id": [f"{i}.png" for i in range(n)], "width": [300] * n, "height": [200] * n}
    known |= columns
    return pa.table(known)


def with_lungs(**columns) -> pa.Table:
    values = {"lung_box": [BOX], "lung_quality": ["plausible"], "lung_mask": [PNG]} | columns
    return table(**values)


def test_a_manifest_without_lungs_knows_none():
    rows = table(2)
    assert has_lungs(rows).tolist() == [False, False]
    assert lung_boxes(rows) == lung_masks(rows) == [None, None]
    assert lung_fingerprint(rows) is None


@pytest.mark.parametrize("quality", ["one_lung", "not_upright", "", None])
def test_implausible_lungs_are_not_used(quality):
    rows = with_lungs(lung_quality=pa.array([quality], pa.string()))
    assert not has_lungs(rows).any()
    assert lung_boxes(rows) == lung_masks(rows) == [None]
    assert windows(rows, "lungs") == windows(rows, "pad")


def test_null_masks_are_no_lungs():
    assert not has_lungs(with_lungs(lung_mask=pa.array([None], pa.binary()))).any()


def test_masks_are_black_and_white():
    (mask,) = lung_masks(with_lungs())
    np.testing.assert_array_equal(mask, np.pad(np.full((64, 64), 255, np.uint8), 32))


@pytest.mark.parametrize("damaged", [b"", b"no image", PNG[:40]])
def test_a_damaged_mask_names_its_image(damaged):
    with pytest.raises(ManifestError, match=r"lung_mask of 0\.png is damaged"):
        lung_masks(with_lungs(lung_mask=[damaged]))


@pytest.mark.parametrize(
    "box",
    [
        None,
        [0.2, 0.1],
        [0.8, 0.1, 0.2, 0.9],
        [float("nan"), 0.0, 1.0, 1.0],
        [0.5, 0.5, 0.51, 0.51],
        [0.0, 0.0, 3.0, 1.0],
    ],
)
def test_a_box_that_cannot_be_lungs_is_none(box):
    assert lung_boxes(with_lungs(lung_box=pa.array([box], pa.list_(pa.float32())))) == [None]


def test_boxes_may_be_lists_of_a_fixed_size():
    (box,) = lung_boxes(with_lungs(lung_box=pa.array([BOX], pa.list_(pa.float32(), 4))))
    assert box == pytest.approx(BOX)


def test_the_true_shape_precedes_the_file_shape():
    true = {"shape_width": pa.array([1500.0, None, 0.0]), "shape_height": pa.array([1000.0, None, 5.0])}
    assert shapes(table(3, **true)) == [Shape(1500, 1000), Shape(300, 200), Shape(300, 200)]
    unknown = pa.table(
        {"image_id": ["a"], "width": pa.array([None], pa.int32()), "height": pa.array([None], pa.int32())}
    )
    assert shapes(unknown) == [Shape(1, 1)]


def test_windows_are_square_and_hold_the_lungs():
    """Box of 0.6 x 300 = 180 by 0.8 x 200 = 160 true pixels: with 10 % on each side, 216 pixels about (150, 100)."""
    (window,) = windows(with_lungs(), "lungs", 0.1)
    assert window == pytest.approx(((150 - 108) / 300, (100 - 108) / 200, (150 + 108) / 300, (100 + 108) / 200))
    assert windows(with_lungs(), "pad") == [pytest.approx((0, (100 - 150) / 200, 1, (100 + 150) / 200))]
    assert windows(with_lungs(), "squash") == [None]


def test_the_fingerprint_covers_all_that_frames():
    same = lung_fingerprint(with_lungs())
    assert lung_fingerprint(with_lungs()) == same
    others = [
        with_lungs(lung_quality=["one_lung"]),
        with_lungs(lung_box=[[0.2, 0.1, 0.8, 0.8]]),
        with_lungs(lung_mask=[PNG + b"\0"]),
        with_lungs(shape_width=[1.0]),
    ]
    assert len({same, *map(lung_fingerprint, others)}) == 5
