import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.explain.faithfulness import (
    energy_in_box,
    insertion_deletion,
    overlap,
    parameter_randomisation,
    pointing_game,
    tune_overlap_threshold,
)
from pneumo_ray.model import ModelConfig, PneumoniaNet

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


def test_insertion_and_deletion_of_a_score_that_reads_one_corner():
    """The score is the contrast of one corner: a map that knows it inserts it first, one that does not, last."""
    x = torch.zeros(1, 3, 32, 32)
    x[:, :, :8:2, :8] = 8.0
    knows = torch.zeros(1, 4, 4)
    knows[0, 0, 0] = 1.0
    blind = 1 - knows

    def score(images: torch.Tensor) -> torch.Tensor:
        return images[:, :, :8, :8].std(dim=(1, 2, 3))

    good = insertion_deletion(score, x, knows, blur_sigma=4.0)
    bad = insertion_deletion(score, x, blind, blur_sigma=4.0)
    assert good[0] > 1.5 * bad[0]
    assert good[1] < 0.7 * bad[1]


def test_the_curves_begin_and_end_at_the_blurred_and_the_whole_picture():
    x, seen = torch.rand(2, 3, 16, 16), []

    def score(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.clone())
        return images.sum((1, 2, 3))

    insertion_deletion(score, x, torch.rand(2, 4, 4), steps=5, blur_sigma=2.0)
    assert torch.equal(seen[1], x)  # deletion begins with the picture
    assert torch.equal(seen[-2], x)  # insertion ends with it
    assert torch.equal(seen[0], seen[-1])  # and both meet the blurred one
    assert not torch.equal(seen[0], x)


def test_randomising_from_the_top_down_takes_the_maps_away_and_leaves_the_network_alone():
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none")).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    stages = parameter_randomisation(net, torch.randn(4, 3, 96, 96), seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    names = [name for name, _ in stages]
    assert names[0] == "nothing"
    assert "classifier" in names[1]
    assert names[-1] == "prefix.conv1"
    assert stages[0][1] == 1.0
    assert all(abs(similarity) < 0.9 for _, similarity in stages[1:])
    assert abs(stages[-1][1]) < 0.6
