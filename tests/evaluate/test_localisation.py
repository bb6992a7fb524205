import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from pneumo_ray.evaluate.localisation import (
    energy_in_box,
    overlap,
    pointing_game,
    tune_overlap_threshold,
    upsampled,
)

SIZE = (28, 28)


def peak(row: int, column: int) -> np.ndarray:
    """A 7 x 7 map with all of its mass in one cell."""
    made = np.zeros((1, 7, 7), np.float32)
    made[0, row, column] = 1
    return made


def test_the_peak_is_in_the_box_where_it_lies_and_nowhere_else():
    at = peak(1, 5)  # upsampled, its centre is at row 5.5, column 21.5
    assert pointing_game(at, [[(20, 4, 24, 8)]], SIZE).tolist() == [True]
    assert pointing_game(at, [[(4, 20, 8, 24)]], SIZE).tolist() == [False]  # rows and columns exchanged
    assert pointing_game(at, [[(0, 0, 3, 3), (20, 4, 24, 8)]], SIZE).tolist() == [True]


def test_a_blank_map_and_a_picture_without_a_box_are_misses():
    blank = np.zeros((1, 7, 7), np.float32)
    everything = [[(0, 0, 28, 28)]]
    assert pointing_game(blank, everything, SIZE).tolist() == [False]
    assert pointing_game(peak(3, 3), [[]], SIZE).tolist() == [False]
    assert np.isnan(energy_in_box(blank, everything, SIZE)).all()
    assert overlap(blank, everything, SIZE, 0.0)[0].tolist() == [0.0]


def test_the_energy_of_a_flat_map_is_the_share_of_the_area():
    flat = np.ones((1, 7, 7), np.float32)
    assert energy_in_box(flat, [[(0, 0, 14, 7)]], SIZE) == pytest.approx([14 * 7 / 28**2])
    assert energy_in_box(flat, [[(0, 0, 14, 7), (0, 0, 14, 7)]], SIZE) == pytest.approx([14 * 7 / 28**2])  # a union


def test_overlap_of_two_rectangles_by_hand():
    flat = np.ones((1, 7, 7), np.float32)  # marks all of the 28 x 28 pixels
    iou, dice = overlap(flat, [[(0, 0, 14, 14)]], SIZE, 0.5)
    assert iou == pytest.approx([0.25])
    assert dice == pytest.approx([2 * 196 / (196 + 784)])


def test_the_threshold_that_is_tuned_is_the_best_of_its_grid():
    maps = np.random.default_rng(0).random((6, 7, 7)).astype(np.float32) ** 3
    boxes = [[(4 * i, 2, 4 * i + 8, 16)] for i in range(6)]
    best = tune_overlap_threshold(maps, boxes, SIZE)
    achieved = overlap(maps, boxes, SIZE, best)[0].mean()
    assert all(achieved >= overlap(maps, boxes, SIZE, step / 20)[0].mean() for step in range(1, 20))


@pytest.mark.parametrize("size", [(28, 28), (7, 9), (50, 31)])
def test_upsampling_is_that_of_torch(size):
    maps = np.random.default_rng(0).random((3, 7, 5)).astype(np.float32)
    expected = interpolate(torch.from_numpy(maps)[:, None], size=size, mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(np.stack(list(upsampled(maps, size))), expected, atol=1e-6)
