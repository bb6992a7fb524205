import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from pneumo_ray.anatomy.lungs import lungs_of
from pneumo_ray.explain.case import Case
from pneumo_ray.explain.render import (
    MEAN_COLOURS,
    OPAQUE,
    SPREAD_COLOURS,
    draw_case,
    draw_panels,
    draw_sheet,
    draw_side_by_side,
    opacity,
    zone_texts,
)
from pneumo_ray.images.framing import over_image


def case(**changes) -> Case:
    rng = np.random.default_rng(0)
    cam = np.zeros((7, 7), np.float32)
    cam[1, 5] = 1.0
    base = Case(
        title="a.jpg",
        image=rng.integers(0, 256, (112, 112)).astype(np.uint8),
        cam=cam,
        cam_mean=cam,
        cam_std=cam * 0.2,
        zone_mean=np.arange(6, dtype=np.float32),
        target=1,
        prob_mean=0.8,
        prob_low=0.6,
        prob_high=0.9,
        mutual_information=0.1,
        threshold=0.5,
        label=1,
        boxes=((70, 8, 100, 40),),
    )
    return replace(base, **changes)


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", [MEAN_COLOURS, SPREAD_COLOURS])
def test_colours_get_lighter_with_the_value(name):
    luma = colormaps[name](np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma) > 0).all()


def test_the_map_is_painted_where_its_peak_is():
    """Against the same case with the peak in the opposite corner, the second panel differs in just these two corners."""
    opposite = np.zeros((7, 7), np.float32)
    opposite[5, 1] = 1.0
    first, second = (opened(draw_case(case(cam=cam, boxes=()))) for cam in (case().cam, opposite))
    width = first.shape[1]
    different = (np.abs(first - second).max(2) > 40)[:, int(0.22 * width) : int(0.42 * width)]
    rows, columns = np.nonzero(different)
    upper = rows < (rows.min() + rows.max()) / 2
    assert upper.any()
    assert not upper.all()
    assert columns[upper].min() > columns[~upper].max()


@pytest.mark.parametrize(
    "changes",
    [
        {
            "cam": np.zeros((7, 7), np.float32),
            "cam_mean": np.zeros((7, 7), np.float32),
            "cam_std": np.zeros((7, 7), np.float32),
        },
        {"zone_mean": np.full(6, np.nan, np.float32)},
        {"title": "line\nbreak $\\alpha 肺 \udcff" + "x" * 300},
        {"label": None, "target": 0, "boxes": ()},
    ],
)
def test_any_case_can_be_drawn(changes):
    assert opened(draw_case(case(**changes))).shape[2] == 3


@pytest.mark.parametrize("shape", [(1, 336), (336, 1), (1, 1)])
def test_strips_of_one_pixel_can_be_drawn(shape):
    mask = np.zeros((128, 128), bool)
    mask[32:96, 16:48] = mask[32:96, 80:112] = True
    strip = case(image=np.full(shape, 90, np.uint8), lungs=lungs_of(mask), lung_zones=True, boxes=())
    for drawn in (draw_case(strip), draw_sheet([strip], "sheet"), draw_panels([strip], "panels")):
        assert opened(drawn).std() > 0


@pytest.mark.parametrize("number", [1, 5, 7])
def test_a_sheet_holds_any_number_of_cases(number):
    assert opened(draw_sheet([case()] * number, "sheet")).std() > 0


@pytest.mark.parametrize(
    "window", [(0.25, 0.25, 0.75, 1.0), (-0.25, 0.0, 1.25, 1.0), (0.0, 0.0, 1.0, 1.0), (0.5, -0.5, 1.5, 0.5)]
)
def test_a_map_lies_at_its_window(window):
    """Of 64 rows and 80 columns: column j of the image is column j - 80 x0 of the upsampled map."""
    cam = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    shown = case(image=np.zeros((64, 80), np.uint8), window=window)
    over = over_image(cam, shown.input_box, shown.image.shape)
    left, top, right, bottom = (round(edge * side) for edge, side in zip(window, (80, 64, 80, 64), strict=True))
    fine = cv2.resize(cam, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    for row in range(0, 64, 3):
        for column in range(0, 80, 3):
            inside = top <= row < bottom and left <= column < right
            expected = fine[row - top, column - left] if inside else np.nan
            assert over[row, column] == pytest.approx(expected, nan_ok=True)


def test_windows_beyond_the_image_can_be_drawn():
    mask = np.zeros((128, 128), bool)
    mask[32:96, 16:48] = mask[32:96, 80:112] = True
    for lungs in (lungs_of(mask), lungs_of(np.zeros((128, 128), bool)), None):
        shown = case(window=(-0.2, 0.1, 1.1, 0.9), lungs=lungs, lung_zones=lungs is not None)
        assert opened(draw_case(shown)).shape[2] == 3
        assert opened(draw_panels([shown], "panels")).std() > 0


def test_lungs_and_input_frame_are_drawn():
    mask = np.zeros((128, 128), bool)
    mask[32:96, 16:48] = mask[32:96, 80:112] = True
    grey = np.full((112, 112), 90, np.uint8)
    blank = np.zeros((7, 7), np.float32)
    plain = case(image=grey, cam=blank, cam_mean=blank, cam_std=blank, boxes=())
    first = opened(draw_case(plain))
    for changes in ({"lungs": lungs_of(mask)}, {"window": (0.2, 0.2, 0.8, 0.8)}):
        assert np.abs(opened(draw_case(replace(plain, **changes))) - first).max() > 60


def test_weak_evidence_fades_without_an_edge():
    """A step of a hundredth of the highest value is never more than a fiftieth of the opacity, and never less than none."""
    steps = np.diff(opacity(np.linspace(0, 1, 101, dtype=np.float32))) / OPAQUE
    assert opacity(np.zeros(1, np.float32)) == 0
    assert opacity(np.ones(1, np.float32)) == np.float32(OPAQUE)
    assert steps.min() > 0
    assert steps.max() < 0.0201


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.44, 0.163, 0.0043, 1e-10, 0.0, np.nan], ["0.44", "0.16", "0", "0", "0", "-"]),
        ([0.0039, 0.0025, 9.8e-5, 2e-7], ["0.0039", "0.0025", "0.0001", "0"]),
        ([12.34, 0.4, -3.0], ["12", "0", "-3"]),
        ([0.0, 0.0], ["0", "0"]),
        ([np.nan, np.nan], ["-", "-"]),
    ],
)
def test_zones_of_a_case_share_their_decimals(values, texts):
    assert zone_texts(np.array(values, np.float32)) == texts


def test_posteriors_of_an_image_share_a_scale():
    """A second posterior with twice the map changes how the first one is painted, and nothing in the plain image."""
    single, double = case(boxes=()), case(boxes=(), cam_mean=2 * case().cam_mean)
    same, other = (opened(draw_side_by_side([[single, two]], ("first", "second"), "t")) for two in (single, double))
    height, width = same.shape[:2]
    different = (np.abs(same - other).max(2) > 40)[int(0.1 * height) : int(0.5 * height)]
    assert not different[:, : int(0.3 * width)].any()
    assert different[:, int(0.3 * width) : int(0.6 * width)].any()
