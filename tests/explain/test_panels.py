"""Panels drawn as pixels: colours by the formula of blending, places, and what is not drawn."""

import matplotlib
import numpy as np
import pytest

from pneumo_ray.explain import panels
from pneumo_ray.explain.case import Case
from pneumo_ray.explain.panels import SIDE, draw_pixels
from pneumo_ray.explain.render import OPAQUE

GREY = 90


def case(mean: np.ndarray, std: np.ndarray, **changes: object) -> Case:
    values = {
        "title": "WINTERBOTTOM", "image": np.full((SIDE, SIDE), GREY, np.uint8), "cam": None, "zone_mean": np.full(6, 0.25, np.float32),
        "cam_mean": mean.astype(np.float32), "cam_std": std.astype(np.float32), "target": 1, "prob_mean": 0.5,
        "prob_low": 0.4, "prob_high": 0.6, "mutual_information": 0.1, "threshold": 0.5,
    }  # fmt: skip
    return Case(**(values | changes))


def panel(drawn: np.ndarray, number: int) -> np.ndarray:
    left = 10 + number * (SIDE + 10)
    return drawn[98 : 98 + SIDE, left : left + SIDE]


def test_colours_follow_the_formula_of_blending():
    """A map of one value is opaque by OPAQUE; a quarter of the maximum by `level * (2 - level)` of that, 7 / 16."""
    step = np.ones((7, 7))
    step[:, 4:] = 0.25
    drawn = draw_pixels(case(np.ones((7, 7)), step), "notice", "verdict")
    for number, x, share, colours in ((1, 200, 1.0, "inferno"), (2, 330, 0.25, "viridis")):
        colour = 255 * np.array(matplotlib.colormaps[colours](share)[:3])
        expected = GREY + (colour - GREY) * OPAQUE * share * (2 - share)
        assert np.abs(panel(drawn, number)[170, x] - expected).max() <= 2, number


def test_maps_of_nothing_leave_the_image():
    drawn = draw_pixels(case(np.zeros((7, 7)), np.zeros((7, 7))), "notice", "verdict")
    for number in (1, 2, 3):
        assert (panel(drawn, number) == GREY).all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 5), (6, 3)])
def test_evidence_lies_in_its_cell(row, column):
    mean = np.zeros((7, 7))
    mean[row, column] = 3
    shown = panel(draw_pixels(case(mean, mean / 9), "notice", "verdict"), 1).astype(int)
    y, x = np.nonzero(np.ptp(shown, axis=2) > 60)  # coloured, and not the white line
    assert (y.mean() * 7 // SIDE, x.mean() * 7 // SIDE) == (row, column)


def test_the_map_ends_with_the_window():
    shown = panel(draw_pixels(case(np.ones((7, 7)), np.ones((7, 7)), window=(0.5, 0, 1, 1)), "n", "v"), 1)
    assert (shown[:, : SIDE // 2 - 2] == GREY).all()
    assert (shown[20:-20, SIDE // 2 + 4 : -4] != GREY).any(axis=2).all()


def test_zone_numbers_have_the_decimals_of_the_maximum(monkeypatch):
    said: list[str] = []
    write = panels.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        panels.ImageDraw.ImageDraw, "text", lambda pen, at, text, *a, **k: (said.append(text), write(pen, at, text, *a, **k))
    )  # fmt: skip
    zones = np.array([0.0149, 5.9e-7, np.nan, 0.001, 0, 0.0104], np.float32)
    draw_pixels(case(np.full((7, 7), 0.0149), np.zeros((7, 7)), zone_mean=zones), "n", "v")
    assert said[-6:] == ["0.015", "0", "-", "0.001", "0", "0.010"]


def test_the_title_of_a_case_is_not_drawn():
    """It may be the name of a file, and that the name of a patient."""
    one, two = (
        draw_pixels(case(np.ones((7, 7)), np.ones((7, 7)), title=title), "n", "v") for title in ("WINTERBOTTOM", "x")
    )
    assert (one == two).all()
