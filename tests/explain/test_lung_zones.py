"""The lung zones' operator against upsampling and averaging in the open."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lung_shapes import LEFT, LUNGS, rectangle

from pneumo_ray.anatomy.frames import cell_means
from pneumo_ray.anatomy.lungs import lungs_of, zone_masks
from pneumo_ray.explain.lung_zones import lung_share_operator, lung_zone_operator, peak_in_lungs

WINDOWS = [(0.0, 0.0, 1.0, 1.0), (0.0625, 0.0625, 0.9375, 0.9375), (0.1, -0.2, 0.9, 1.1)]


def upsampled(maps, size):
    return F.interpolate(maps[:, None].double(), size=size, mode="bilinear", align_corners=False)[:, 0]


def random_maps(map_size):
    return torch.rand(3, *map_size, generator=torch.Generator().manual_seed(0)) + 0.01


@pytest.mark.parametrize("map_size", [(4, 4), (7, 7), (14, 9)])
@pytest.mark.parametrize("window", WINDOWS)
def test_operator_equals_upsampling_then_averaging(map_size, window):
    maps, zones = random_maps(map_size), zone_masks(lungs_of(LUNGS))
    fine = upsampled(maps, (112, 112))
    weights = [torch.from_numpy(cell_means(zone, (112, 112), window)).double() for zone in zones]
    expected = torch.stack([(fine * weight).sum((1, 2)) / weight.sum() for weight in weights], 1)
    actual = maps.flatten(1) @ lung_zone_operator(zones, map_size, (112, 112), window).mT
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-6)


def test_zones_on_pixels_equal_means_of_pixels():
    """Where the input has the mask's own pixels, nothing is resampled: the mean of the upsampled map where the mask is."""
    maps, zones = random_maps((7, 7)), zone_masks(lungs_of(LUNGS))
    fine = upsampled(maps, (128, 128))
    expected = torch.stack([fine[:, torch.from_numpy(zone)].mean(1) for zone in zones], 1)
    actual = maps.flatten(1) @ lung_zone_operator(zones, (7, 7), (128, 128)).mT
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-7)


def test_missing_zones_are_nan_and_others_whole():
    operator = lung_zone_operator(zone_masks(lungs_of(LEFT)), (7, 7), (112, 112))
    assert operator[::2].isnan().all()
    torch.testing.assert_close(operator[1::2].sum(1), torch.ones(3))
    outside = lung_zone_operator([rectangle(0, 0, 10, 128)], (7, 7), (112, 112), (0.5, 0.0, 1.0, 1.0))
    assert outside.isnan().all()


def test_share_of_a_flat_map_is_the_area():
    inside, whole = (lung_share_operator(LUNGS, (7, 7), (112, 112)) @ torch.ones(49)).tolist()
    assert inside / whole == pytest.approx(LUNGS.mean(), abs=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_share_equals_sums_of_the_upsampled_map(window):
    maps = random_maps((7, 7))
    fine, mask = upsampled(maps, (112, 112)), torch.from_numpy(cell_means(LUNGS, (112, 112), window)).double()
    expected = (fine * mask).sum((1, 2)) / fine.sum((1, 2))
    inside, whole = (maps.flatten(1) @ lung_share_operator(LUNGS, (7, 7), (112, 112), window).mT).double().unbind(1)
    torch.testing.assert_close(inside / whole, expected, rtol=1e-4, atol=1e-6)


def test_peak_is_looked_up_in_the_mask():
    cam = np.zeros((4, 4), np.float32)
    assert peak_in_lungs(cam, LUNGS) is None
    cam[2, 1] = 1  # centre at (0.375, 0.625): column 48, row 80, in the right lung
    assert peak_in_lungs(cam, LUNGS) is True
    cam[0, 3] = 2  # centre at (0.875, 0.125)
    assert peak_in_lungs(cam, LUNGS) is False
    cam = np.zeros((5, 5), np.float32)
    cam[3, 2] = 1  # centre at (0.5, 0.7): on the spine, beside the left lung
    assert peak_in_lungs(cam, LUNGS) is False
    assert peak_in_lungs(cam, np.ones((128, 128), bool), (0.0, -1.0, 1.0, 0.0)) is False
