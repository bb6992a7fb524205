import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from pneumo_ray.explain.render import MEAN_COLOURS, SPREAD_COLOURS, Case, draw_case, draw_sheet


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
def test_the_colours_get_lighter_with_the_value_so_that_greyscale_can_be_read(name):
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


@pytest.mark.parametrize("number", [1, 5, 7])
def test_a_sheet_holds_any_number_of_cases(number):
    assert opened(draw_sheet([case()] * number, "sheet")).std() > 0
