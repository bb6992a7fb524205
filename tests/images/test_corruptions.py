"""Conditions held against their formulas: what they change, by how much, and what they leave alone."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from pneumo_ray.images.corruptions import (
    AS_IT_IS,
    CONDITIONS,
    CORNER,
    SETTINGS,
    SEVERITIES,
    Condition,
    apply_condition,
    central_box,
)

SIZE = 224


def smooth(seed: int = 0, size: int = SIZE) -> np.ndarray:
    """An image without edges, grey levels 60 to 190, far from black and white."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 12)
    return (60 + 130 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def applied(name: str, severity: int, image: np.ndarray, image_id: str = "a", **changes) -> np.ndarray:
    return apply_condition(image, Condition(name, severity), image_id, changes.pop("seed", 0), **changes)


def powers(name: str, setting: float) -> set[float]:
    return {setting, 1 / setting} if name == "gamma" else {setting, -setting}


def test_conditions_are_unique_and_unchanged_comes_first():
    assert CONDITIONS[0] == AS_IT_IS
    assert len(set(CONDITIONS)) == len(CONDITIONS) == 1 + 3 * len(SEVERITIES) + 3
    assert {condition.name for condition in CONDITIONS} == set(SETTINGS)
    with pytest.raises(ValueError, match="no condition"):
        applied("noise", 4, smooth())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_leaves_the_original(condition):
    image = smooth()
    before = image.copy()
    image.flags.writeable = False
    out = apply_condition(image, condition, "a", 0)
    assert out.shape == image.shape
    assert out.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(out, image) == (condition == AS_IT_IS)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_noise_has_its_standard_deviation_and_no_bias(severity):
    """At mid-grey 2.8 sigma fit below white, so clipping takes under 1 % off the deviation."""
    grey = np.full((SIZE, SIZE), 127, np.uint8)
    sigma = 255 * SEVERITIES["noise"][severity - 1]
    noise = applied("noise", severity, grey).astype(float) - 127
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean()) < 5 * sigma / SIZE


def test_severities_share_noise_images_and_seeds_do_not():
    grey = np.full((SIZE, SIZE), 127, np.uint8)
    mild, strong = (applied("noise", severity, grey).astype(float).ravel() for severity in (1, 3))
    other, reseeded = (applied("noise", 1, grey, **c).astype(float).ravel() for c in ({"image_id": "b"}, {"seed": 1}))
    assert np.corrcoef(mild, strong)[0, 1] > 0.98
    assert abs(np.corrcoef(mild, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(mild, reseeded)[0, 1]) < 0.03


@pytest.mark.parametrize(("size", "severity"), [(224, 1), (224, 3), (448, 2)])
def test_blur_is_scipys_and_scales_with_the_image(size, severity):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, size)).astype(np.uint8)
    sigma = SEVERITIES["blur"][severity - 1] * size / 224
    expected = gaussian_filter(image.astype(float), sigma, mode="nearest", truncate=3)
    assert np.abs(applied("blur", severity, image) - expected).max() < 2


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_jpeg_is_pillows_of_that_quality(severity):
    image = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=SEVERITIES["jpeg"][severity - 1])
    assert np.abs(applied("jpeg", severity, image).astype(int) - np.asarray(Image.open(stream))).max() <= 2


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_contrast_keeps_the_mean_and_scales_the_deviation(severity):
    image = smooth()
    out = applied("contrast", severity, image).astype(float)
    assert out.mean() == pytest.approx(image.mean(), abs=0.5)
    assert out.std() == pytest.approx(SEVERITIES["contrast"][severity - 1] * image.std(), rel=0.05)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_gamma_is_a_power_or_its_inverse(severity):
    image, setting = smooth(), SEVERITIES["gamma"][severity - 1]
    found = set()
    for number in range(20):
        out = applied("gamma", severity, image, f"{number}")
        errors = {power: np.abs(out - 255 * (image / 255.0) ** power).max() for power in powers("gamma", setting)}
        power = min(errors, key=errors.__getitem__)
        assert errors[power] <= 0.5 + 1e-9
        found.add(power)
    assert found == powers("gamma", setting)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_rotation_turns_about_the_centre(severity):
    """A disc 60 pixels right of the centre moves to (cos, -sin) of the angle, counter-clockwise with y down."""
    centre, radius = (SIZE - 1) / 2, 60
    y, x = np.indices((SIZE, SIZE)) - centre
    disc = (255 * ((x - radius) ** 2 + y**2 < 100)).astype(np.uint8)
    found = set()
    for number in range(20):
        out = applied("rotation", severity, disc, f"{number}").astype(float)
        place = np.array([(x * out).sum(), (y * out).sum()]) / out.sum()
        assert np.hypot(*place) == pytest.approx(radius, abs=0.1)
        found.add(round(float(np.degrees(np.arctan2(-place[1], place[0]))), 0))
    assert found == powers("rotation", SEVERITIES["rotation"][severity - 1])


def test_rotation_of_an_even_image_makes_no_corner():
    even = np.full((SIZE, SIZE), 140, np.uint8)
    assert np.array_equal(applied("rotation", 3, even), even)


@pytest.mark.parametrize("lungs", [None, (10, 20, 100, 90)])
def test_the_two_blackouts_are_complements(lungs):
    image = smooth()
    x0, y0, x1, y1 = lungs or central_box(SIZE)
    without, alone = (applied(name, 0, image, lungs=lungs) for name in ("lungs_black", "only_lungs"))
    assert np.array_equal(without + alone, image)
    assert not without[y0:y1, x0:x1].any()
    assert (alone > 0).sum() == (x1 - x0) * (y1 - y0)


def test_corners_are_four_squares_and_nothing_else():
    out, side = applied("corners_black", 0, np.full((SIZE, SIZE), 9, np.uint8)), round(CORNER * SIZE)
    assert (out == 0).sum() == 4 * side**2
    assert not out[-side:, -side:].any()
    assert out[side:-side].all()
    assert out[:, side:-side].all()


def test_a_lung_mask_is_blackened_by_pixel():
    image = np.random.default_rng(0).integers(1, 256, (64, 64)).astype(np.uint8)
    mask = np.random.default_rng(1).random((64, 64)) < 0.4
    black, only = (apply_condition(image, Condition(name), "a", 0, mask) for name in ("lungs_black", "only_lungs"))
    for row in range(64):
        for column in range(64):
            expected = (0, image[row, column]) if mask[row, column] else (image[row, column], 0)
            assert (black[row, column], only[row, column]) == expected
