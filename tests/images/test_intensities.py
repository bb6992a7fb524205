"""One table for all changes of grey levels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pneumo_ray.errors import ConfigError
from pneumo_ray.images.augment import augment_batch, base_size, draw_augmentations
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.intensities import NUM_KNOTS, Stage, intensity_tables, monotone_curve

FLAT = np.ones((1, 256))
LEVELS = np.arange(256.0)


def tone(n: int = 1, **fields) -> Stage:
    return Stage(np.ones(n), np.ones(n), **fields)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.2])
def test_powers_apply_to_shares_of_full_scale(power):
    (table,) = intensity_tables(FLAT, [tone(power=np.array([power]))])
    np.testing.assert_array_equal(table, np.rint(255 * (LEVELS / 255) ** power))


@given(st.lists(st.floats(-3, 3), min_size=NUM_KNOTS, max_size=NUM_KNOTS))
def test_the_curve_rises_from_black_to_white(steepness):
    curve = monotone_curve(LEVELS, np.array(steepness))
    assert np.all(np.diff(curve) > 0)
    assert curve[0] == 0
    assert curve[-1] == pytest.approx(255)


def test_curve_slopes_have_the_drawn_ratios():
    steepness = np.log([1.0, 2, 3, 4, 4, 3, 2, 1])
    edges = np.linspace(0, 255, NUM_KNOTS + 1)
    pieces = np.diff(monotone_curve(edges, steepness))
    np.testing.assert_allclose(pieces, 255 * np.array([1, 2, 3, 4, 4, 3, 2, 1]) / 20)


def test_no_tone_is_the_identity():
    stage = tone(2, power=np.array([1.0, 2.0]), steepness=np.array([[0.0] * NUM_KNOTS, [1.0, *[0.0] * 7]]))
    kept, changed = intensity_tables(np.ones((2, 256)), [stage])
    np.testing.assert_array_equal(kept, LEVELS)
    assert not np.array_equal(changed, LEVELS)


def test_tone_leaves_every_other_draw_alone():
    slots = np.arange(50, dtype=np.uint64)
    plain, toned = (draw_augmentations(AugmentConfig(gamma=g, histogram=g), 3, slots) for g in (0.0, 0.5))
    for name, values in vars(plain).items():
        if name not in ("power", "steepness"):
            np.testing.assert_array_equal(values, vars(toned)[name])
    assert np.all(plain.power == 1)
    assert np.all(plain.steepness == 0)


def test_powers_are_as_often_above_one_as_below():
    draws = draw_augmentations(AugmentConfig(gamma=0.4, histogram=0.5), 0, np.arange(4000, dtype=np.uint64))
    assert stats.kstest(np.log(draws.power), stats.uniform(-0.4, 0.8).cdf).pvalue > 0.01
    assert stats.kstest(draws.steepness.ravel()[::3], stats.uniform(-0.5, 1.0).cdf).pvalue > 0.01


def test_an_image_is_changed_by_its_own_table():
    base = np.random.default_rng(0).integers(0, 256, (base_size(64),) * 2, dtype=np.uint8)
    slots = np.arange(1, dtype=np.uint64)
    plain = augment_batch(base[None], draw_augmentations(AugmentConfig.none(), 0, slots), 64)[0]
    draws = draw_augmentations(
        AugmentConfig(0, 0, None, brightness=0, contrast=0, noise_probability=0, gamma=0.5), 0, slots
    )
    result = augment_batch(base[None], draws, 64)[0]
    np.testing.assert_array_equal(result, np.rint(255 * (plain / 255) ** draws.power[0]))


@pytest.mark.parametrize("changes", [{"gamma": -1}, {"histogram": 4}, {"outside": "white"}, {"outside_probability": 2}])
def test_strengths_that_make_no_image_are_refused(changes):
    with pytest.raises(ConfigError, match=f"augment.{next(iter(changes))}"):
        AugmentConfig(**changes)
