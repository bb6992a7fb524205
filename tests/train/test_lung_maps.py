"""Masks follow their images through frame and augmentation to the cells of the maps; what lies outside can be replaced."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pneumo_ray.data.dataset import load_bases, load_inputs
from pneumo_ray.images.augment import center_crop
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.outside import BLUR
from pneumo_ray.train.batches import PADDING, BatchSource
from pneumo_ray.train.lung_maps import LungMaps

SIZE, CELLS = 56, 7
STRONG = AugmentConfig(
    rotation_degrees=30,
    crop_area=(0.4, 0.8),
    brightness=0,
    contrast=0,
    noise_probability=0,
    affine_shear_degrees=10,
    affine_translate=0.1,
    elastic_alpha=2,
)


def source_of(rows, fit="squash", augment=STRONG, **changes) -> BatchSource:
    maps = LungMaps((CELLS, CELLS), SIZE, fit, target=changes.pop("target", "outside-lungs"))
    base = BatchSource(rows, rows, SIZE, "copies", augment, 5, 4, fit=fit, lung_maps=maps, guided=True)
    return replace(base, **changes)


def tickets(source: BatchSource, world_size: int = 1, epoch: int = 0):
    schedule = source.schedule(world_size)
    first = epoch * schedule.tickets_per_epoch
    for ticket in range(first, first + schedule.tickets_per_epoch):
        yield schedule.position(ticket).phase, source.batch(ticket, schedule)


@pytest.mark.parametrize("fit", ["squash", "pad", "lungs", "lungs-squash"])
def test_lung_masks_follow_the_images_geometry(lung_rows, fit):
    """Each image is its own mask, so the pixels of the augmented image, averaged over cells, are the answer."""
    differences, phases = [], set()
    for phase, batch in tickets(source_of(lung_rows(8), fit)):
        real = batch["row"] != PADDING
        assert batch["has_lungs"][real].all()
        assert not batch["has_lungs"][~real].any()
        for image, cells in zip(batch["pixels"][real], batch["lungs"][real], strict=True):
            expected = image.reshape(CELLS, SIZE // CELLS, CELLS, SIZE // CELLS).mean((1, 3))
            differences.append(np.abs(expected - cells))
            phases.add(phase)
    # The background is up to 7 grey levels, and the mask has half as many pixels as the image.
    assert np.mean(differences) < 8
    assert np.max(differences) < 50
    assert phases == {"train", "val"}


def test_cells_are_their_share_of_lung(lung_rows):
    """Without augmentation the input of squash is the middle 7/8 of the image, whose lungs are ellipses."""
    (cells,) = LungMaps((CELLS, CELLS), SIZE).of_evaluation(lung_rows(1), 1)["lungs"]
    places = 1 / 16 + (np.arange(CELLS * 50) + 0.5) / (CELLS * 50) * 7 / 8
    x, y = places, places[:, None]
    shift = -0.05
    inside = (((x - 0.32 - shift) / 0.13) ** 2 + ((y - 0.5) / 0.28) ** 2 <= 1) | (
        ((x - 0.68 - shift) / 0.13) ** 2 + ((y - 0.55) / 0.28) ** 2 <= 1
    )
    expected = inside.reshape(CELLS, 50, CELLS, 50).mean((1, 3))
    np.testing.assert_allclose(cells / 255, expected, atol=0.06)


def test_the_box_is_the_box_of_the_lungs(lung_rows):
    rows = lung_rows(1)
    (lungs,), (box,) = (
        LungMaps((SIZE, SIZE), SIZE, target=target).of_evaluation(rows, 1)["lungs"]
        for target in ("outside-lungs", "outside-box")
    )
    x, y, width, height = cv2.boundingRect((lungs > 127).astype(np.uint8))
    assert box[y + 1 : y + height - 1, x + 1 : x + width - 1].min() == 255
    box[max(0, y - 1) : y + height + 1, max(0, x - 1) : x + width + 1] = 0
    assert box.max() == 0


def test_lungs_fill_an_input_cropped_to_them(lung_rows):
    """Their longer true side is (0.62 * 320 =) 198 of (1 + 2 * 0.08) 198 pixels."""
    rows = lung_rows(3)
    left, right = extent(load_inputs(rows, 224, fit="lungs")[0], 0)
    assert right - left == pytest.approx(1 / 1.16, abs=0.01)
    assert (left + right) / 2 == pytest.approx(0.5, abs=0.01)
    padded = load_inputs(rows, 224, fit="pad")[0]
    for axis, width in ((0, 0.62), (1, 0.61 * 200 / 320)):
        low, high = extent(padded, axis)
        assert high - low == pytest.approx(width, abs=0.01)


def extent(image: np.ndarray, axis: int) -> tuple[float, float]:
    """Where the white of an image begins and ends along x (0) or y (1), as fractions of its side."""
    found = np.flatnonzero((image > 127).any(axis))
    return found[0] / len(image), (found[-1] + 1) / len(image)


def test_images_with_doubtful_lungs_take_no_part(lung_rows):
    source = source_of(lung_rows(8, doubtful=(0, 3)), "lungs")
    for phase, batch in tickets(source):
        known = ~np.isin(batch["row"], (PADDING, 0, 3))
        assert np.array_equal(batch["has_lungs"], known)
        assert not batch["lungs"][~known].any()
        if phase == "train":
            assert batch["num_lungs"] == known.sum()


def test_workers_know_the_lungs_of_a_step(lung_rows):
    source = source_of(lung_rows(8, doubtful=(0, 3)))
    alone = [int(batch["num_lungs"]) for phase, batch in tickets(source) if phase == "train"]
    shared = [int(batch["num_lungs"]) for phase, batch in tickets(source, 2) if phase == "train"]
    assert shared == [count for count in alone for _ in range(2)]


@pytest.mark.parametrize("kind", ["none", "blur", "black", "swap"])
def test_no_ticket_depends_on_the_number_of_workers(lung_rows, kind):
    augment = replace(STRONG, outside=kind, outside_probability=0.7)
    source = source_of(lung_rows(8, doubtful=(2,), background=90), "lungs", augment)

    def gathered(world_size: int) -> list[np.ndarray]:
        made = [batch for phase, batch in tickets(source, world_size, epoch=1) if phase == "train"]
        return [
            np.concatenate([b[name][b["row"] != PADDING] for b in made]) for name in ("pixels", "lungs", "has_lungs")
        ]

    for alone, shared in zip(gathered(1), gathered(3), strict=True):
        np.testing.assert_array_equal(alone, shared)


def outside_pair(rows, kind: str, fit: str = "squash") -> tuple[dict, dict]:
    """Return a training batch without augmentation as it is, and with its outside replaced."""
    plain, changed = (
        source_of(rows, fit, replace(AugmentConfig.none(), outside=what, outside_probability=1.0), balance="none")
        for what in ("none", kind)
    )
    return tuple(source.batch(0, source.schedule(1)) for source in (plain, changed))


@pytest.mark.parametrize("fit", ["squash", "lungs", "lungs-squash"])
@pytest.mark.parametrize("kind", ["blur", "black", "swap"])
def test_lungs_stay_and_the_rest_is_replaced(lung_rows, kind, fit):
    rows = lung_rows(4, background=60)
    plain, changed = outside_pair(rows, kind, fit)
    inside = plain["pixels"] > 250
    far = np.stack([cv2.dilate(image.astype(np.uint8), np.ones((13, 13))) == 0 for image in inside])
    assert np.abs(plain["pixels"][inside].astype(int) - changed["pixels"][inside]).max() <= 1
    if kind == "black":
        assert changed["pixels"][far].max() == 0
    elif kind == "swap":
        levels = [set(np.unique(image[mask])) for image, mask in zip(changed["pixels"], far, strict=True)]
        for row, found in zip(plain["row"], levels, strict=True):
            others = {60 + other for other in range(4) if other != row}
            assert found & others
            assert 60 + row not in found
    else:
        for row, found, mask in zip(plain["row"], changed["pixels"], far, strict=True):
            base = load_bases(rows.slice(int(row), 1), SIZE, None, fit)[0].astype(float)
            expected = center_crop(gaussian_filter(base, BLUR * len(base), mode="nearest"), SIZE)
            np.testing.assert_allclose(found[mask], expected[mask], atol=2)


def test_the_outside_of_doubtful_lungs_stays(lung_rows):
    plain, changed = outside_pair(lung_rows(4, doubtful=(1,), background=60), "black")
    same = [np.array_equal(a, b) for a, b in zip(plain["pixels"], changed["pixels"], strict=True)]
    assert same == [bool(row == 1) for row in plain["row"]]


def test_without_lungs_tickets_are_as_they_were(lung_rows):
    rows = lung_rows(8)
    bare = rows.drop_columns(["lung_box", "lung_quality", "lung_mask"])
    source = source_of(rows)
    plain = BatchSource(bare, bare, SIZE, "copies", STRONG, 5, 4)
    for (_, with_lungs), (_, without) in zip(tickets(source), tickets(plain), strict=True):
        assert set(without) == {"pixels", "label", "row", "ticket"}
        for name, values in without.items():
            np.testing.assert_array_equal(values, with_lungs[name])


@pytest.mark.parametrize("fit", ["squash", "pad", "lungs", "lungs-squash"])
def test_training_without_augmentation_shows_what_evaluation_shows(lung_rows, fit):
    """Its base is 8/7 as wide as the window, and the middle of it is cropped: edges agree to a pixel or so."""
    rows = lung_rows(4, background=60)
    source = source_of(rows, fit, AugmentConfig.none(), balance="none")
    batch = source.batch(0, source.schedule(1))
    expected = load_inputs(rows, SIZE, None, fit)[batch["row"]]
    for axis in (0, 1):
        for image, seen in zip(batch["pixels"], expected, strict=True):
            assert extent(image, axis) == pytest.approx(extent(seen, axis), abs=1.5 / SIZE)
