"""The zone operator against upsampling and averaging in the open."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pneumo_ray.explain.zones import ALIASES, ZONES, Box, outside_operator, outside_share, zone_operator

MAP_SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
IMAGE_SIZES = st.tuples(st.integers(9, 64), st.integers(9, 64))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    """An image and a box inside it, at least 3 rows by 2 columns."""
    height, width = draw(IMAGE_SIZES)
    y0, x0 = draw(st.integers(0, height - 3)), draw(st.integers(0, width - 2))
    return (height, width), (x0, y0, draw(st.integers(x0 + 2, width)), draw(st.integers(y0 + 3, height)))


def upsampled(maps: Tensor, image_size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None].double(), size=image_size, mode="bilinear", align_corners=False)[:, 0]


def random_maps(map_size: tuple[int, int]) -> Tensor:
    return torch.rand(3, *map_size, generator=torch.Generator().manual_seed(0)) + 0.01


def zone_means(image: Tensor, box: Box) -> Tensor:
    """Mean of [N, H, W] over thirds by halves of the box, by masks of pixels: a pixel's zone from its own place."""
    x0, y0, x1, y1 = box
    rows, columns = torch.arange(image.shape[1]), torch.arange(image.shape[2])
    third_starts = torch.tensor([y0 + math.floor(i * (y1 - y0) / 3 + 0.5) for i in range(4)])
    half_starts = torch.tensor([x0, x0 + math.floor((x1 - x0) / 2 + 0.5), x1])
    row_band = torch.bucketize(rows, third_starts, right=True) - 1
    column_side = torch.bucketize(columns, half_starts, right=True) - 1
    means = [
        image[:, row_band == band][:, :, column_side == side].mean((1, 2)) for band in range(3) for side in range(2)
    ]
    return torch.stack(means, 1)


@settings(deadline=None, max_examples=60)
@given(map_size=MAP_SIZES, image_size=IMAGE_SIZES)
def test_operator_equals_upsampling_then_averaging(map_size: tuple[int, int], image_size: tuple[int, int]) -> None:
    maps = random_maps(map_size)
    expected = zone_means(upsampled(maps, image_size), (0, 0, image_size[1], image_size[0]))
    actual = maps.flatten(1) @ zone_operator(map_size, image_size).mT
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(map_size=MAP_SIZES, image=boxes())
def test_operator_in_a_box_equals_upsampling_then_averaging(
    map_size: tuple[int, int], image: tuple[tuple[int, int], Box]
) -> None:
    image_size, box = image
    maps = random_maps(map_size)
    operator = zone_operator(map_size, image_size, box=box)
    torch.testing.assert_close(operator.sum(1), torch.ones(6))
    expected = zone_means(upsampled(maps, image_size), box)
    torch.testing.assert_close((maps.flatten(1) @ operator.mT).double(), expected, rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(map_size=MAP_SIZES, image=boxes())
def test_outside_share_equals_the_upsampled_share(
    map_size: tuple[int, int], image: tuple[tuple[int, int], Box]
) -> None:
    image_size, (x0, y0, x1, y1) = image
    maps = random_maps(map_size)
    fine = upsampled(maps, image_size)
    expected = 1 - fine[:, y0:y1, x0:x1].sum((1, 2)) / fine.sum((1, 2))
    torch.testing.assert_close(
        outside_share(maps, image_size, (x0, y0, x1, y1)).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_names_stand_for_the_patients_side() -> None:
    """A map lit at the top left of the image lies in the patient's right upper zone: the paper's Upper West."""
    lit = torch.zeros(6, 4)
    lit[0, 0] = 1
    means = zone_operator((6, 4), (60, 40)) @ lit.flatten()
    assert ZONES[int(means.argmax())] == "right_upper" == ALIASES["Upper West"]
    lit = torch.zeros(6, 4)
    lit[5, 3] = 1
    means = zone_operator((6, 4), (60, 40)) @ lit.flatten()
    assert ZONES[int(means.argmax())] == "left_lower" == ALIASES["Lower East"]
    assert sorted(ALIASES.values()) == sorted(ZONES)


def test_zone_rows_that_do_not_divide_by_three() -> None:
    """11 rows: bands of 4, 3 and 4, since 11/3 rounds to 4 and 22/3 to 7; 5 columns: 3 and 2."""
    operator = zone_operator((11, 5), (11, 5)).unflatten(1, (11, 5))
    covered = [(int((zone > 0).any(1).sum()), int((zone > 0).any(0).sum())) for zone in operator]
    assert covered == [(4, 3), (4, 2), (3, 3), (3, 2), (4, 3), (4, 2)]


def test_whole_boxes_have_0_blank_maps_none() -> None:
    maps = torch.stack([torch.ones(7, 7), torch.zeros(7, 7)])
    share = outside_share(maps, (224, 200), (0, 0, 200, 224))
    assert share[0] == 0
    assert share[1].isnan()
    half = outside_share(maps, (224, 200), (0, 0, 100, 224))
    assert half[0] == pytest.approx(0.5)


@pytest.mark.parametrize("box", [(0, 0, 41, 60), (-1, 0, 40, 60), (5, 5, 5, 30), (0, 30, 40, 20)])
def test_a_box_outside_the_image_is_refused(box: Box) -> None:
    with pytest.raises(ValueError, match="leaves the image"):
        zone_operator((7, 7), (60, 40), box=box)
    with pytest.raises(ValueError, match="leaves the image"):
        outside_operator((7, 7), (60, 40), box)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="too small for six zones"):
        zone_operator((7, 7), (60, 40), box=(0, 0, 10, 2))
    with pytest.raises(ValueError, match="smaller than map_size"):
        zone_operator((7, 7), (60, 6))
