import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import InterpolationMode

from pneumo_ray.errors import ConfigError
from pneumo_ray.images.augment import (
    AugmentDraws,
    augment_batch,
    augment_image,
    base_size,
    center_crop,
    draw_augmentations,
    materialise_copy,
    resize_grey,
)
from pneumo_ray.images.augment_config import OPERATIONS, AugmentConfig

RADIOGRAPHS = Path(__file__).parents[3] / "shared/data/kermany224/train"
BILINEAR = InterpolationMode.BILINEAR
few = settings(deadline=None, max_examples=25)


def slots(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64)


def draws_with(n: int = 1, **fields) -> AugmentDraws:
    """The identity (evaluation's centre crop), with some parameters set by hand."""
    values = {name: np.array([value] * n) for name, value in fields.items()}
    return dataclasses.replace(draw_augmentations(AugmentConfig.none(), 0, slots(n)), **values)


def texture(size: int, seed: int = 0, *, smoothness: float = 6.0) -> np.ndarray:
    """A smooth grey image that fades to black at its border, so that no operation loses any of it."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(size, size)), (0, 0), smoothness)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    window = np.clip(1.6 * (0.75 - np.hypot(*np.meshgrid(axis, axis))), 0, 1)
    return np.rint(255 * window * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """Float in 0..255: torchvision then neither rounds nor truncates between the operations."""
    return torch.from_numpy(image)[None].float()


def to_grey(image: torch.Tensor) -> np.ndarray:
    return image[0].numpy()


# Sizes and the evaluation transform


def test_base_sizes_are_256_and_128():
    assert [base_size(size) for size in (224, 112)] == [256, 128]


@pytest.mark.parametrize(("size", "crop"), [(256, 224), (73, 64), (9, 4), (8, 8), (7, 2)])
def test_center_crop_is_torchvisions(size, crop):
    image = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    np.testing.assert_array_equal(center_crop(image, crop), to_grey(tvf.center_crop(as_tensor(image), [crop, crop])))


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="no centre crop of 9"):
        center_crop(np.zeros((8, 8), np.uint8), 9)


def test_shrinking_averages_over_areas():
    """For whole ratios the area average is the mean of each block: no pixel is skipped."""
    image = np.random.default_rng(0).integers(0, 256, (96, 64), dtype=np.uint8)
    blocks = image.reshape(32, 3, 32, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_grey(image, 32), blocks, atol=0.51)


def test_enlarging_is_bilinear_with_half_pixel_centres():
    image = texture(40)[:30]
    expected = to_grey(tvf.resize(as_tensor(image), [64, 64], BILINEAR, antialias=False))
    np.testing.assert_allclose(resize_grey(image, 64), expected, atol=1)


def test_a_shrinking_axis_is_averaged():
    """Columns alternate between black and white, so every average of whole pairs is grey; sampling would alias."""
    image = np.tile(np.array([0, 255], dtype=np.uint8), (16, 64))
    np.testing.assert_allclose(resize_grey(image, 32), 127.5, atol=1)


# Geometry


def test_no_augmentation_is_evaluation_bitwise():
    for size in (224, 112, 64):
        base = np.random.default_rng(size).integers(0, 256, (base_size(size),) * 2, dtype=np.uint8)
        result = augment_image(base, draw_augmentations(AugmentConfig.none(), 0, slots(1)), size)
        np.testing.assert_array_equal(result, center_crop(base, size))


@pytest.mark.parametrize("which", ["flip", "copy_flip"])
def test_a_flip_is_exact(which):
    base = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    result = augment_image(base, draws_with(**{which: True}), 224)
    np.testing.assert_array_equal(result, center_crop(base, 224)[:, ::-1])
    both = augment_image(base, draws_with(flip=True, copy_flip=True), 224)
    np.testing.assert_array_equal(both, center_crop(base, 224))


def test_a_full_crop_is_a_plain_resize():
    base = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    result = augment_image(base, draws_with(crop=[0.0, 0.0, 1.0, 1.0]), 224)
    expected = to_grey(tvf.resize(as_tensor(base), [224, 224], BILINEAR, antialias=False))
    np.testing.assert_allclose(result, expected, atol=5)
    assert np.abs(result - expected).mean() < 1


@given(
    flips=st.tuples(st.booleans(), st.booleans()),
    angles=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    shape=st.tuples(st.integers(150, 256), st.integers(150, 256)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.sampled_from([224, 112]),
)
@few
def test_one_warp_is_torchvisions_operations_one_after_another(flips, angles, shape, place, size):
    """Copy's flip and rotation, then flip, rotation and resized crop; only interpolation may differ."""
    base = texture(256)
    width, height = shape
    left, top = (int(share * (256 - side)) for share, side in zip(place, shape, strict=True))
    expected = as_tensor(base)
    for flip, angle in zip(flips, angles, strict=True):
        expected = tvf.horizontal_flip(expected) if flip else expected
        expected = tvf.rotate(expected, angle, BILINEAR)
    expected = tvf.resized_crop(expected, top, left, height, width, [size, size], BILINEAR, antialias=False)
    draws = draws_with(
        copy_flip=flips[0],
        flip=flips[1],
        copy_angle=angles[0],
        angle=angles[1],
        crop=[left / 256, top / 256, width / 256, height / 256],
    )
    difference = np.abs(augment_image(base, draws, size) - to_grey(expected))
    assert difference.mean() < 0.6
    assert difference.max() < 8


@given(st.floats(-15, 15), st.floats(-10, 10), st.integers(-15, 15), st.integers(-15, 15))
@few
def test_shear_and_translation_are_torchvisions_affine(angle, shear, x, y):
    """`affine` turns clockwise where `rotate` turns counter-clockwise."""
    base = texture(256)
    expected = tvf.affine(as_tensor(base), -angle, [x, y], 1.0, [shear, 0.0], BILINEAR)
    draws = draws_with(angle=angle, shear=shear, translate=[x / 256, y / 256], crop=[0.0, 0.0, 1.0, 1.0])
    difference = np.abs(augment_image(base, draws, 256) - to_grey(expected))
    assert difference.mean() < 0.3


@given(st.floats(-25, 25), st.booleans(), st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0.85, 0.9))
@few
def test_landmarks_land_where_complex_numbers_say(angle, flip, left, top, side):
    """A rotation by a degrees counter-clockwise multiplies x - iy by exp(ia): within half a pixel."""
    landmarks = np.array([[128.0, 70.0], [90.0, 128.0], [150.0, 160.0], [176.0, 110.0]])  # x, y of 256 px
    columns, rows = np.meshgrid(np.arange(256) + 0.5, np.arange(256) + 0.5)
    draws = draws_with(angle=angle, flip=flip, crop=[left, top, side, side])
    for x, y in landmarks:
        blob = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.5**2))
        result = augment_image(np.rint(blob).astype(np.uint8), draws, 224).astype(float)
        mirrored = 256 - x if flip else x
        turned = complex(mirrored - 128, -(y - 128)) * np.exp(1j * np.radians(angle))
        expected = (np.array([turned.real + 128, -turned.imag + 128]) / 256 - [left, top]) / side * 224
        found = [(result.sum(axis=axis) * (np.arange(224) + 0.5)).sum() / result.sum() for axis in (0, 1)]
        np.testing.assert_allclose(found, expected, atol=0.1)


def test_what_rotates_in_from_outside_is_black():
    result = augment_image(np.full((256, 256), 200, np.uint8), draws_with(angle=20.0, crop=[0.0, 0.0, 1.0, 1.0]), 224)
    assert result[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 0, 0, 0]
    assert result[112, 112] == 200


def test_elastic_displacement_has_the_given_size():
    """On a ramp whose grey level is its column, the level read minus the column is the displacement along x."""
    base = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    config = dataclasses.replace(AugmentConfig.none(), elastic_alpha=3.0, elastic_sigma=8.0)
    for pixel_axis in (base, base.T.copy()):
        results = augment_batch(np.stack([pixel_axis] * 8), draw_augmentations(config, 0, slots(8)), 224)
        shift = results.astype(float) - center_crop(pixel_axis, 224)
        assert np.sqrt(np.square(shift).mean()) == pytest.approx(3.0, rel=0.1)
        assert not np.array_equal(results[0], results[1])


# Intensities


@given(
    copy=st.tuples(st.floats(0.6, 1.4), st.floats(0.6, 1.4)), own=st.tuples(st.floats(0.6, 1.4), st.floats(0.6, 1.4))
)
@few
def test_one_table_is_torchvisions_brightness_then_contrast(copy, own):
    """Saturation included: the image runs from black to white. The table rounds once, hence one level."""
    base = np.random.default_rng(0).beta(0.5, 0.5, (64, 64)) * 255
    base = np.rint(base).astype(np.uint8)
    expected = as_tensor(base) / 255
    for brightness, contrast in (copy, own):
        expected = tvf.adjust_contrast(tvf.adjust_brightness(expected, brightness), contrast)
    draws = draws_with(copy_brightness=copy[0], copy_contrast=copy[1], brightness=own[0], contrast=own[1])
    np.testing.assert_allclose(augment_image(base, draws, 64), to_grey(expected) * 255, atol=0.51)


def test_contrast_uses_the_mean_of_the_crop():
    """Half of the base is white, but the crop holds black only: contrast has nothing to turn about."""
    base = np.zeros((256, 256), dtype=np.uint8)
    base[:, 128:] = 255
    draws = draws_with(contrast=0.8, crop=[0.0, 0.0, 0.4, 0.4])
    assert augment_image(base, draws, 224).max() == 0


# Noise


def test_noise_is_gaussian_on_a_share():
    """Difference from the plain image: 30 % of images, mean 0, sigma 0.02 of 255, rounded to levels."""
    config = dataclasses.replace(AugmentConfig.none(), noise_probability=0.3)
    n, size = 1000, 32
    bases = np.full((n, base_size(size), base_size(size)), 128, dtype=np.uint8)
    noise = augment_batch(bases, draw_augmentations(config, 0, slots(n)), size).astype(float) - 128
    noisy = noise.any(axis=(1, 2))
    assert noisy.mean() == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / n))
    values = noise[noisy].ravel()
    assert abs(values.mean()) < 5 * 5.1 / np.sqrt(values.size)
    assert values.std() == pytest.approx(np.hypot(5.1, np.sqrt(1 / 12)), rel=0.01)
    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, values.size)  # undoes the rounding
    assert stats.kstest((values + jitter)[:5000], "norm", args=(0, 5.1)).pvalue > 1e-3
    first, second = noise[noisy][:2]
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / size


@pytest.mark.parametrize("level", [0, 255])
def test_noise_saturates_instead_of_wrapping(level):
    result = augment_image(np.full((256, 256), level, np.uint8), draws_with(noise_sigma=0.02), 224)
    assert np.abs(result.astype(int) - level).max() < 40
    assert (result == level).mean() == pytest.approx(stats.norm.cdf(0.5 / 5.1), abs=0.02)


# Draws


@given(st.integers(0, 2**32), st.randoms(), st.sampled_from([0.0, 2.0]))
@settings(deadline=None, max_examples=10)
def test_results_depend_on_image_and_slot_only(seed, random, elastic_alpha):
    """Permuted, split into batches of one, or mixed with originals and copies: the same pixels."""
    n, size = 12, 32
    config = AugmentConfig(elastic_alpha=elastic_alpha)
    bases = np.stack([texture(base_size(size), i, smoothness=1.5) for i in range(n)])
    copies, keys = np.arange(n) % 3, slots(n) * np.uint64(7)
    whole = augment_batch(bases, draw_augmentations(config, seed, slots(n), copies=copies, image_keys=keys), size)
    order = np.array(random.sample(range(n), n))
    for part in (order, order[:5], order[:1]):
        draws = draw_augmentations(config, seed, slots(n)[part], copies=copies[part], image_keys=keys[part])
        np.testing.assert_array_equal(augment_batch(bases[part], draws, size), whole[part])
    all_draws = draw_augmentations(config, seed, slots(n), copies=copies, image_keys=keys)
    np.testing.assert_array_equal(augment_batch(bases[order], all_draws[order], size), whole[order])


def test_the_parameters_of_one_image_are_uncorrelated():
    """Of copy and slot alike: sample correlations have standard deviation 1 / sqrt(n)."""
    n = 20_000
    draws = draw_augmentations(
        AugmentConfig(affine_shear_degrees=5.0, affine_translate=0.1),
        0,
        slots(n),
        copies=np.ones(n, dtype=np.int16),
        image_keys=slots(n),
    )
    crop = draws.crop
    columns = [draws.copy_flip, draws.copy_angle, draws.copy_brightness, draws.copy_contrast]
    columns += [draws.flip, draws.angle, draws.brightness, draws.contrast, draws.noise_sigma, draws.shear]
    columns += [*draws.translate.T, *(crop[:, :2] / (1 - crop[:, 2:])).T, crop[:, 2] * crop[:, 3]]
    correlation = np.corrcoef(np.stack(columns).astype(float)) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_draws_have_the_papers_ranges_and_shares():
    """10,000 draws: uniform over their ranges by Kolmogorov-Smirnov, the area of a crop as well."""
    draws = draw_augmentations(AugmentConfig(), 0, slots(10_000))
    uniform = [
        (draws.angle, -10, 10),
        (draws.brightness, 0.8, 1.2),
        (draws.contrast, 0.8, 1.2),
        (draws.crop[:, 2] * draws.crop[:, 3], 0.8, 1.0),
        (draws.crop[:, 0] / (1 - draws.crop[:, 2]), 0, 1),
        (draws.crop[:, 1] / (1 - draws.crop[:, 3]), 0, 1),
    ]
    for values, low, high in uniform:
        assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-4
    assert draws.flip.mean() == pytest.approx(0.5, abs=0.025)
    assert (draws.noise_sigma > 0).mean() == pytest.approx(0.3, abs=0.023)
    aspect = draws.crop[:, 2] / draws.crop[:, 3]
    assert aspect.min() >= 0.9 - 1e-9
    assert aspect.max() <= 1.1 + 1e-9
    assert (draws.crop[:, :2] >= 0).all()
    assert (draws.crop[:, :2] + draws.crop[:, 2:] <= 1 + 1e-12).all()
    assert not draws.shear.any()
    assert not draws.translate.any()


FIELD_OF = dict(zip(OPERATIONS, ["flip", "angle", "crop", "brightness", "contrast", "noise_sigma"], strict=True))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_draws_of_operations_are_independent(operation):
    """Ablations are compared on the same crops, angles and noise."""
    full = vars(draw_augmentations(AugmentConfig(), 3, slots(50)))
    ablated = vars(draw_augmentations(AugmentConfig().without(operation), 3, slots(50)))
    identity = vars(draws_with(50))[FIELD_OF[operation]]
    np.testing.assert_array_equal(ablated[FIELD_OF[operation]], identity)
    for name in set(full) - {FIELD_OF[operation]}:
        np.testing.assert_array_equal(full[name], ablated[name])


# Copies


def test_copies_are_fixed_and_originals_unchanged():
    n = 40
    keys = np.repeat(slots(10), 4)
    copies = np.tile([0, 1, 1, 2], 10)
    draws = draw_augmentations(AugmentConfig(), 0, slots(n), copies=copies, image_keys=keys)
    angle = draws.copy_angle.reshape(10, 4)
    assert not angle[:, 0].any()
    np.testing.assert_array_equal(angle[:, 1], angle[:, 2])
    assert len(np.unique(angle[:, 1:])) == 20
    assert not draws.copy_flip[::4].any()
    assert (draws.copy_brightness[::4] == 1).all()
    assert (draws.copy_contrast[::4] == 1).all()
    np.testing.assert_array_equal(draws.angle, draw_augmentations(AugmentConfig(), 0, slots(n)).angle)


def test_copies_without_image_keys_are_refused():
    with pytest.raises(ValueError, match="together"):
        draw_augmentations(AugmentConfig(), 0, slots(1), copies=np.array([1]))


@pytest.mark.parametrize("shape", [(600, 900), (512, 512)])
def test_written_copies_train_like_virtual_ones(shape):
    """Resized and centre-cropped, the file is the virtual copy that no slot transforms further."""
    image = cv2.resize(texture(512, smoothness=12), shape[::-1])
    for copy in (1, 2, 3):
        on_disk = materialise_copy(image, AugmentConfig(), 0, 2**64 - 5, copy)
        assert on_disk.shape == shape
        key = np.array([2**64 - 5], dtype=np.uint64)
        virtual = draw_augmentations(AugmentConfig(), 0, slots(1), copies=np.array([copy]), image_keys=key)
        fixed = {name: value for name, value in vars(virtual).items() if name.startswith("copy_")}
        draws = dataclasses.replace(draws_with(), **fixed)
        trained_on = augment_image(resize_grey(image, 256), draws, 224)
        difference = center_crop(resize_grey(on_disk, 256), 224) - trained_on.astype(float)
        assert np.abs(difference).mean() < 3
        assert (difference - np.median(difference)).std() < 2


def test_a_copy_resembles_its_radiograph():
    files = sorted(RADIOGRAPHS.rglob("*.jp*g"))[:3]
    if not files:
        pytest.skip(f"no radiographs under {RADIOGRAPHS}")
    for file in files:
        image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        copies = [materialise_copy(image, AugmentConfig().without("flip"), 0, 1, copy) for copy in (1, 2)]
        assert not np.array_equal(*copies)
        assert all(np.corrcoef(image.ravel(), copy.ravel())[0, 1] > 0.5 for copy in copies)


# Config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip_probability", 1.5),
        ("rotation_degrees", -1.0),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (1.0, 0.8)),
        ("crop_aspect", (1.1, 1.2)),
        ("brightness", float("nan")),
        ("contrast", -0.1),
        ("noise_sigma", 2.0),
        ("noise_probability", -0.1),
        ("elastic_alpha", -1.0),
        ("elastic_sigma", 0.0),
        ("affine_shear_degrees", 90.0),
        ("affine_translate", 1.1),
    ],
)
def test_an_impossible_range_names_its_option(field, value):
    with pytest.raises(ConfigError, match=rf"^augment\.{field} must be .*, got .*\.$"):
        AugmentConfig(**{field: value})


def test_an_unknown_operation_names_the_nearest():
    with pytest.raises(ConfigError, match="'rotate'; did you mean rotation\\?"):
        AugmentConfig().without("rotate")
