"""What lies outside the lungs is replaced, and by whom."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.outside import ROOM, blurred, dilated, draw_outside, with_outside

SWAP = AugmentConfig(outside="swap", outside_probability=0.3)


def test_inside_is_one_image_and_outside_the_other():
    rng = np.random.default_rng(0)
    image, other = rng.integers(0, 256, (2, 32, 32), dtype=np.uint8)
    share = rng.choice([0, 255], (32, 32)).astype(np.uint8)
    np.testing.assert_array_equal(with_outside(image, share, other), np.where(share == 255, image, other))


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_border_pixels_are_weighted_means(a, m, b):
    one = np.ones((1, 1), np.uint8)
    mixed = with_outside((a * one).astype(np.uint8), (m * one).astype(np.uint8), (b * one).astype(np.uint8))
    assert abs(int(mixed[0, 0]) - (m * a + (255 - m) * b) / 255) <= 0.5


def test_a_pixel_becomes_a_disc_of_the_room():
    mask = np.zeros((129, 129), np.uint8)
    mask[64, 64] = 255
    rows, columns = np.nonzero(dilated(mask))
    radius = round(ROOM * 129)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64 - radius, 64 + radius) * 2
    assert np.hypot(rows - 64, columns - 64).max() < radius + 1


def test_the_blur_leaves_no_detail_and_the_mean():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 128), dtype=np.uint8)
    assert blurred(image).std() < 0.1 * image.std()
    assert abs(blurred(image).mean() - image.mean()) < 2


def test_partners_are_others_of_the_batch():
    slots = np.arange(640, dtype=np.uint64)
    places = np.tile(np.arange(64), 10)
    draws = draw_outside(SWAP, 0, slots, places, 64)
    assert set(draws.partner) <= set(range(64))
    assert not np.any(draws.partner == places)
    assert len(set((draws.partner - places) % 64)) > 50
    assert abs(draws.happens.mean() - 0.3) < 5 * (0.3 * 0.7 / 640) ** 0.5


def test_draws_follow_the_slot_and_not_the_worker():
    slots, places = np.arange(100, 164, dtype=np.uint64), np.arange(64)
    whole = draw_outside(SWAP, 0, slots, places, 64)
    part = draw_outside(SWAP, 0, slots[20:30], places[20:30], 64)
    np.testing.assert_array_equal(part.happens, whole.happens[20:30])
    np.testing.assert_array_equal(part.partner, whole.partner[20:30])


def test_one_image_alone_has_no_other_partner():
    assert draw_outside(SWAP, 0, np.zeros(1, np.uint64), np.zeros(1, np.int64), 1).partner.tolist() == [0]


def test_none_changes_no_image():
    assert not draw_outside(AugmentConfig(), 0, np.arange(9, dtype=np.uint64), np.arange(9), 9).happens.any()
