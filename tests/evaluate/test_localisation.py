import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch.nn.functional import interpolate

from pneumo_ray.evaluate.localisation import (
    LEVELS,
    average_precision,
    boxes_on_grid,
    energy_in_box,
    overlap,
    pixel_counts,
    pointing_game,
    tune_overlap_threshold,
    upsampled,
    visible_share,
)

SIZE = (28, 28)


def peak(row: int, column: int) -> np.ndarray:
    """A 7 x 7 map with all of its mass in one cell."""
    made = np.zeros((1, 7, 7), np.float32)
    made[0, row, column] = 1
    return made


def test_the_peak_hits_its_own_box_only():
    at = peak(1, 5)  # upsampled, its centre is at row 5.5, column 21.5
    assert pointing_game(at, [[(20, 4, 24, 8)]], SIZE).tolist() == [True]
    assert pointing_game(at, [[(4, 20, 8, 24)]], SIZE).tolist() == [False]  # rows and columns exchanged
    assert pointing_game(at, [[(0, 0, 3, 3), (20, 4, 24, 8)]], SIZE).tolist() == [True]


@st.composite
def maps_with_boxes(draw) -> tuple[np.ndarray, list[tuple[int, int, int, int]], tuple[int, int]]:
    """A map with many ties, up to three boxes whose edges often meet centres of cells, and the size of the image."""
    rows, columns, scale = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    image = rows * scale + draw(st.integers(0, 3)), columns * scale + draw(st.integers(0, 3))
    cells = draw(st.lists(st.integers(0, 2), min_size=rows * columns, max_size=rows * columns))
    boxes = []
    for _ in range(draw(st.integers(0, 3))):
        x0, y0 = draw(st.integers(0, image[1])), draw(st.integers(0, image[0]))
        boxes.append((x0, y0, draw(st.integers(x0, image[1])), draw(st.integers(y0, image[0]))))
    return np.array(cells, np.float32).reshape(rows, columns), boxes, image


@settings(deadline=None, max_examples=300)
@given(drawn=maps_with_boxes())
def test_mirroring_or_transposing_changes_no_verdict(drawn):
    cells, boxes, (height, width) = drawn
    verdict = pointing_game(cells[None], [boxes], (height, width)).tolist()
    left_right = [(width - x1, y0, width - x0, y1) for x0, y0, x1, y1 in boxes]
    upside_down = [(x0, height - y1, x1, height - y0) for x0, y0, x1, y1 in boxes]
    transposed = [(y0, x0, y1, x1) for x0, y0, x1, y1 in boxes]
    assert pointing_game(cells[None, :, ::-1], [left_right], (height, width)).tolist() == verdict
    assert pointing_game(cells[None, ::-1], [upside_down], (height, width)).tolist() == verdict
    assert pointing_game(cells.T[None], [transposed], (width, height)).tolist() == verdict


@pytest.mark.parametrize("row", [0, 3, 6])
@pytest.mark.parametrize("column", [0, 3, 6])
def test_a_cell_points_at_its_own_centre(row, column):
    """Cells are 4 pixels wide, so the centre of cell c is the edge between pixels 4 c + 1 and 4 c + 2."""
    x, y = 4 * column + 2, 4 * row + 2
    around = (x - 1, y - 1, x + 1, y + 1)
    aside = (x + 1, y - 1, x + 3, y + 1)
    assert pointing_game(peak(row, column), [[around]], SIZE).tolist() == [True]
    assert pointing_game(peak(row, column), [[aside]], SIZE).tolist() == [False]


def test_a_flat_map_points_nowhere():
    flat = np.ones((1, 7, 7), np.float32)
    assert pointing_game(flat, [[(0, 0, 14, 28)]], SIZE).tolist() == [False]
    assert pointing_game(flat, [[(0, 0, 14, 28), (14, 0, 28, 28)]], SIZE).tolist() == [True]


def test_blank_maps_and_missing_boxes_are_misses():
    blank = np.zeros((1, 7, 7), np.float32)
    everything = [[(0, 0, 28, 28)]]
    assert pointing_game(blank, everything, SIZE).tolist() == [False]
    assert pointing_game(peak(3, 3), [[]], SIZE).tolist() == [False]
    assert np.isnan(energy_in_box(blank, everything, SIZE)).all()
    assert overlap(blank, everything, SIZE, 0.0)[0].tolist() == [0.0]


def test_flat_maps_have_energy_of_their_area():
    flat = np.ones((1, 7, 7), np.float32)
    assert energy_in_box(flat, [[(0, 0, 14, 7)]], SIZE) == pytest.approx([14 * 7 / 28**2])
    assert energy_in_box(flat, [[(0, 0, 14, 7), (0, 0, 14, 7)]], SIZE) == pytest.approx([14 * 7 / 28**2])  # a union


def test_overlap_of_two_rectangles_by_hand():
    flat = np.ones((1, 7, 7), np.float32)  # marks all of the 28 x 28 pixels
    iou, dice = overlap(flat, [[(0, 0, 14, 14)]], SIZE, 0.5)
    assert iou == pytest.approx([0.25])
    assert dice == pytest.approx([2 * 196 / (196 + 784)])


def test_the_tuned_threshold_is_the_best():
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


def test_pixel_precision_equals_scikit_learn():
    """Of values in steps of a thousandth of the maximum; pooled, over the pixels of all images."""
    maps = np.random.default_rng(1).random((3, 4, 5)).astype(np.float32)
    boxes = [[(3, 2, 15, 20)], [(0, 0, 9, 9), (5, 5, 20, 28)], [(20, 1, 28, 8)]]
    counts = pixel_counts(maps, boxes, SIZE)
    levels, truth = [], []
    for fine, true in zip(upsampled(maps, SIZE), boxes, strict=True):
        levels.append(np.floor(LEVELS * (fine.astype(np.float64) / fine.max())).ravel())
        inside = np.zeros(SIZE, bool)
        for x0, y0, x1, y1 in true:
            inside[y0:y1, x0:x1] = True
        truth.append(inside.ravel())
    expected = [average_precision_score(t, v) for t, v in zip(truth, levels, strict=True)]
    assert average_precision(counts) == pytest.approx(expected)
    together = average_precision_score(np.concatenate(truth), np.concatenate(levels))
    assert float(average_precision(counts.sum(0))) == pytest.approx(together)


def test_pixels_of_blank_maps_and_empty_boxes():
    blank = pixel_counts(np.zeros((1, 7, 7), np.float32), [[(0, 0, 14, 14)]], SIZE)
    assert average_precision(blank) == pytest.approx([0.25])  # as of a flat map
    assert np.isnan(average_precision(pixel_counts(peak(1, 1), [[]], SIZE))).all()


def test_boxes_are_brought_to_a_window_by_hand():
    """The window is the middle half, 100 pixels wide, so that a hundredth of the image is two pixels."""
    window = (0.25, 0.25, 0.75, 0.75)
    boxes = [(0.30, 0.40, 0.50, 0.60), (0.0, 0.0, 0.35, 1.0), (0.8, 0.8, 0.9, 0.9)]
    assert boxes_on_grid(boxes, window, 100) == [(10, 30, 50, 70), (0, 0, 20, 100), (100, 100, 100, 100)]
    assert visible_share(boxes[:1], window) == pytest.approx(1)
    assert visible_share(boxes[1:2], window) == pytest.approx(0.1 * 0.5 / 0.35)
    assert visible_share(boxes[2:], window) == 0
    wider = (-0.5, 0.0, 1.5, 1.0)  # the image is its middle half
    assert boxes_on_grid([(0.0, 0.0, 1.0, 1.0)], wider, 100) == [(25, 0, 75, 100)]
