"""What follows from a mask: sides, boxes, zones by arithmetic, and which masks are no lungs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lung_shapes import LEFT, LUNGS, RIGHT, SIZE, lung, rectangle

from pneumo_ray.anatomy.lungs import QUALITIES, Lungs, box_of, lung_quality, lungs_of, zone_masks


def test_patients_right_lung_is_on_the_left():
    lungs = lungs_of(LUNGS)
    assert (lungs.quality, lungs.view) == ("plausible", "frontal")
    np.testing.assert_array_equal(lungs.right, RIGHT)
    np.testing.assert_array_equal(lungs.left, LEFT)


def test_boxes_and_area_follow_from_pixels():
    right, left = rectangle(20, 16, 52, 96), rectangle(76, 24, 108, 104)
    lungs = lungs_of(right | left)
    assert lungs.right_box == (20 / 128, 16 / 128, 52 / 128, 96 / 128)
    assert lungs.left_box == (76 / 128, 24 / 128, 108 / 128, 104 / 128)
    assert lungs.box == (20 / 128, 16 / 128, 108 / 128, 104 / 128)
    assert lungs.area == 2 * 32 * 80 / 128**2


def test_crumbs_and_holes_do_not_count():
    mask = LUNGS.copy()
    mask[60:64, 40:44] = False
    mask[2:6, 2:6] = True  # 16 pixels, a thousandth of the image
    np.testing.assert_array_equal(lungs_of(mask).mask, LUNGS)


def test_lungs_that_touch_are_told_apart():
    mask = LUNGS.copy()
    mask[50:54, 54:75] = True
    lungs = lungs_of(mask)
    assert lungs.quality == "plausible"
    assert not (lungs.right & lungs.left).any()
    assert lungs.right_box[2] <= lungs.left_box[0]
    assert abs(int(lungs.right.sum()) - int(RIGHT.sum())) <= 4 * 21


@pytest.mark.parametrize(
    ("quality", "mask"),
    [
        ("no_lungs", np.zeros((SIZE, SIZE), bool)),
        ("no_lungs", rectangle(20, 20, 30, 30)),
        ("one_lung", RIGHT),
        ("one_lung", rectangle(40, 16, 90, 110)),  # a lateral: one field of lung in the middle
        ("too_large", np.ones((SIZE, SIZE), bool)),
        ("not_beside", rectangle(20, 4, 60, 40) | rectangle(70, 80, 110, 124)),
        ("not_beside", rectangle(40, 4, 90, 50) | rectangle(40, 70, 90, 120)),
        ("not_alike", rectangle(8, 10, 60, 110) | rectangle(90, 60, 102, 110)),
        ("many_parts", LUNGS | rectangle(10, 112, 118, 124)),
        ("not_upright", LUNGS[::-1]),
        ("not_upright", rectangle(4, 50, 60, 70) | rectangle(68, 50, 124, 70)),
    ],
)
def test_masks_that_are_no_lungs_are_named(quality, mask):
    lungs = lungs_of(np.ascontiguousarray(mask))
    assert lungs.quality == quality
    assert lungs.view == "doubtful"
    if quality != "one_lung":
        assert (lungs.right, lungs.left, lungs.box, lungs.area) == (None,) * 4


def test_one_lung_keeps_its_side():
    right, left = lungs_of(RIGHT), lungs_of(LEFT)
    assert right.left is None
    assert left.right is None
    np.testing.assert_array_equal(right.mask, RIGHT)
    np.testing.assert_array_equal(left.mask, LEFT)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), blobs=st.integers(0, 12))
def test_every_mask_has_a_known_quality(seed, blobs):
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIZE, SIZE), bool)
    for _ in range(blobs):
        x, y = rng.integers(0, SIZE, 2)
        width, height = rng.integers(1, SIZE, 2)
        mask[y : y + height, x : x + width] ^= True
    lungs = lungs_of(mask)
    assert lungs.quality in QUALITIES
    assert (lungs.right is None or lungs.left is None) == (lungs.quality != "plausible")
    if lungs.right is not None and lungs.left is not None:
        assert not (lungs.right & lungs.left).any()


def test_lung_quality_refuses_other_arrays():
    with pytest.raises(ValueError, match="bool"):
        lung_quality(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="empty"):
        box_of(np.zeros((4, 4), bool))


def test_zones_are_thirds_of_each_lung():
    right, left = rectangle(20, 10, 52, 100), rectangle(76, 20, 108, 80)
    zones = zone_masks(Lungs(right, left, "plausible"))
    expected = [
        rectangle(20, 10, 52, 40),
        rectangle(76, 20, 108, 40),
        rectangle(20, 40, 52, 70),
        rectangle(76, 40, 108, 60),
        rectangle(20, 70, 52, 100),
        rectangle(76, 60, 108, 80),
    ]
    for zone, wanted in zip(zones, expected, strict=True):
        np.testing.assert_array_equal(zone, wanted)


def test_zones_of_a_missing_lung_are_missing():
    zones = zone_masks(lungs_of(LEFT))
    assert [zone is None for zone in zones] == [True, False] * 3
    assert zone_masks(lungs_of(np.zeros((SIZE, SIZE), bool))) == [None] * 6


def test_zones_add_up_to_their_lung():
    lungs = lungs_of(lung(10, 50, 11, 98) | lung(118, 70, 7, 103))
    zones = zone_masks(lungs)
    np.testing.assert_array_equal(np.sum(zones[::2], axis=0), lungs.right)
    np.testing.assert_array_equal(np.sum(zones[1::2], axis=0), lungs.left)
