"""Sharpness and contrast, held against the calculus of sine waves and against images whose blur is known."""

import cv2
import numpy as np
import pytest

from pneumo_ray.evaluate.quality import SIDE, contrast, sharpness


def scene(height: int, width: int) -> np.ndarray:
    """The same waves at any size, as a photograph of one object: from 1 to 20 periods across the image."""
    rng = np.random.default_rng(0)
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None, :] + 0.5) / width
    waves = np.zeros((height, width))
    for _ in range(12):
        across, down = rng.integers(1, 21, 2)
        waves += np.cos(2 * np.pi * (across * x + rng.random())) * np.cos(2 * np.pi * (down * y + rng.random()))
    return np.round(128 + 15 * waves).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("periods", [4, 16, 40])
def test_sharpness_is_variance_of_second_differences(periods: int) -> None:
    """The second difference of a cos(k x) is -2 (1 - cos k) a cos(k x), whose variance is 2 a^2 (1 - cos k)^2.

    Rounding to whole grey levels adds that of its own, 1/12 times the 4 + 16 of the squared kernel.
    """
    k, amplitude = 2 * np.pi * periods / SIDE, 100
    wave = np.round(128 + amplitude * np.cos(k * np.arange(SIDE))).astype(np.uint8)
    expected = 2 * amplitude**2 * (1 - np.cos(k)) ** 2
    for image in (np.tile(wave, (SIDE, 1)), np.tile(wave[:, None], (1, SIDE))):
        assert sharpness(image) == pytest.approx(expected, rel=0.02, abs=20 / 12)


def test_contrast_is_the_deviation_of_grey_levels() -> None:
    """Half black and half white is the most there can be; a wave has its amplitude over the root of 2."""
    halves = np.repeat(np.array([[0, 255]], np.uint8), SIDE // 2, axis=1).repeat(SIDE, axis=0)
    assert contrast(halves) == pytest.approx(0.5)
    wave = np.round(128 + 100 * np.cos(2 * np.pi * 8 / SIDE * np.arange(SIDE))).astype(np.uint8)
    assert contrast(np.tile(wave, (SIDE, 1))) == pytest.approx(100 / 255 / np.sqrt(2), rel=1e-3)


@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (700, 700)])
def test_more_pixels_change_no_quality(size: tuple[int, int]) -> None:
    """Measured on the pixels as they are, twice the size would be about 16 times less sharp."""
    small, large = scene(SIDE, SIDE), scene(*size)
    assert sharpness(large) == pytest.approx(sharpness(small), rel=0.1)
    assert contrast(large) == pytest.approx(contrast(small), rel=0.02)
    raw = [cv2.Laplacian(image, cv2.CV_32F).var() for image in (small, large)]
    assert raw[1] < raw[0] / 4


def test_a_wide_image_is_not_squashed() -> None:
    """Its area is twice that of a square of the same wave, so its sides shrink by a further root of 2.

    A wave is then faster by that factor, and its curvature's variance larger by the 4th power of it. Squashed to a
    square it would be twice as fast, and 16 times as curved.
    """
    k, periods = 2 * np.pi / SIDE, 10
    wave = np.tile(np.round(128 + 100 * np.cos(periods * k * np.arange(2 * SIDE))).astype(np.uint8), (SIDE, 1))
    square = wave[:, :SIDE]
    assert sharpness(wave) / sharpness(square) == pytest.approx(4, rel=0.1)
    assert sharpness(wave.T.copy()) == pytest.approx(sharpness(wave), rel=0.01)


@pytest.mark.parametrize("sigma", [2, 4, 8])
def test_blur_lowers_sharpness_as_a_wave(sigma: int) -> None:
    """A Gaussian blur of s pixels damps cos(k x) by exp(-s^2 k^2 / 2), hence a variance by the square of that."""
    k = 2 * np.pi * 12 / 512
    wave = np.tile(np.round(128 + 100 * np.cos(k * np.arange(512))).astype(np.uint8), (512, 1))
    blurred = cv2.GaussianBlur(wave, (0, 0), sigma)
    assert sharpness(blurred) / sharpness(wave) == pytest.approx(np.exp(-((sigma * k) ** 2)), rel=0.03)


def test_half_contrast_is_a_quarter_sharpness() -> None:
    image = 2 * (scene(600, 500) // 2)
    faint = image // 2 + 64
    assert contrast(faint) == pytest.approx(contrast(image) / 2)
    assert sharpness(faint) == pytest.approx(sharpness(image) / 4, rel=1e-4)


def test_brightness_and_negatives_change_nothing() -> None:
    image = scene(400, 500) // 2
    for other in (image + 100, 255 - image):
        assert sharpness(other) == pytest.approx(sharpness(image), rel=1e-4)
        assert contrast(other) == pytest.approx(contrast(image))


@pytest.mark.parametrize("shape", [(1, 1), (1, 100_000), (3, 5), (3000, 2), (400, 600)])
def test_a_flat_image_of_any_shape_has_neither(shape: tuple[int, int]) -> None:
    flat = np.full(shape, 90, np.uint8)
    assert sharpness(flat) == pytest.approx(0, abs=1e-4)
    assert contrast(flat) == pytest.approx(0, abs=1e-4)


def test_measuring_leaves_the_image_as_it_was() -> None:
    image = scene(SIDE, SIDE)
    before = image.copy()
    assert {type(sharpness(image)), type(contrast(image))} == {float}
    np.testing.assert_array_equal(image, before)
