"""Means of shares beside chance, held against scipy and hand numbers."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from pneumo_ray.evaluate.shares import mean_share


def test_the_difference_from_chance_is_paired():
    """With one image per patient its interval is that of a paired t test, but for the degrees of freedom."""
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.1, 0.6, 200)
    values = np.clip(chance + rng.normal(0.1, 0.05, 200), 0, 1)
    found = mean_share(values, list(range(200)), chance)
    expected = ttest_1samp(values - chance, 0).confidence_interval(0.95)
    assert found.above_chance == pytest.approx((values - chance).mean())
    assert found.above_chance_interval == pytest.approx((expected.low, expected.high), rel=0.01)
    assert found.interval[0] < found.value < found.interval[1]


def test_a_property_has_the_exact_interval():
    values = np.array([1.0] * 12 + [0.0] * 18)
    low, high = mean_share(values, list(range(30))).interval
    exact = binomtest(12, 30).proportion_ci()
    assert low < exact.low + 0.01
    assert high > exact.high - 0.01
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.02)


def test_undefined_images_and_few_patients_have_none():
    values = np.array([0.2, np.nan, 0.4])
    found = mean_share(values, ["a", "b", None], np.array([0.1, 0.9, np.nan]))
    assert (found.n, found.patients, found.interval) == (2, 2, None)
    assert found.value == pytest.approx(0.3)
    assert found.chance == pytest.approx(0.1)
    assert found.above_chance == pytest.approx(0.1)
    assert mean_share(np.array([np.nan]), ["a"]).value is None


def test_copies_of_an_image_make_no_interval_narrower():
    values = np.random.default_rng(1).random(30)
    once = mean_share(values, list(range(30))).interval
    thrice = mean_share(np.repeat(values, 3), np.repeat(range(30), 3).tolist()).interval
    assert thrice == pytest.approx(once)
