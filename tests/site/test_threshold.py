"""Exact intervals, and what a threshold reaches that was chosen on the same labels."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from pneumo_ray.evaluate.config import OperatingPointConfig
from pneumo_ray.site.labels import Labelled
from pneumo_ray.site.threshold import at_threshold, choose_threshold, clopper_pearson, share


@pytest.mark.parametrize(("found", "of"), [(0, 1), (0, 30), (1, 2), (17, 20), (30, 30), (3, 1000), (500, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_clopper_pearson_is_that_of_scipy(found, of, level):
    other = binomtest(found, of).proportion_ci(level, method="exact")
    assert clopper_pearson(found, of, level) == pytest.approx((other.low, other.high), abs=1e-12)


def test_the_lower_end_is_one_sided():
    other = binomtest(17, 20, alternative="greater").proportion_ci(0.95, method="exact")
    assert share(17, 20).at_least == pytest.approx(other.low, abs=1e-12)


def test_nothing_is_known_of_nothing():
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert share(0, 0).value is None
    with pytest.raises(ValueError, match="found"):
        clopper_pearson(3, 2)


@pytest.mark.parametrize("target", [0.8, 0.95])
@pytest.mark.slow
def test_the_lower_end_holds_after_the_choice(target):
    rng, below, draws = np.random.default_rng(0), [0, 0], 2000
    rule = OperatingPointConfig(rule="sensitivity", sensitivity=target)
    label = np.repeat([0, 1], [80, 60])
    for _ in range(draws):
        prob = norm.cdf((rng.normal(size=140) + 2 * label - 1) / 2)
        found = choose_threshold(Labelled(prob, label, np.arange(140)), rule, 0)
        edge = 2 * norm.ppf(found.threshold) + 1
        below[0] += norm.sf(edge - 2) < found.sensitivity.at_least
        below[1] += norm.cdf(edge) < found.specificity.at_least
    assert max(below) / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize("rule", ["youden", "cost"])
def test_other_rules_count_decisions_made_without_the_patient(rule):
    """Labels that are coin tosses: a threshold judged on its own labels would look better than chance."""
    rng = np.random.default_rng(1)
    label, prob = rng.integers(0, 2, 3000), rng.random(3000)
    gains = []
    for start in range(0, 3000, 60):
        rows = slice(start, start + 60)
        found = choose_threshold(Labelled(prob[rows], label[rows], np.arange(60)), OperatingPointConfig(rule=rule), 0)
        assert found.cross_fitted
        gains.append((found.sensitivity.value or 0) + (found.specificity.value or 0) - 1)
    assert np.mean(gains) < 2 * np.std(gains) / np.sqrt(len(gains))


def test_a_threshold_from_elsewhere_is_counted():
    data = Labelled(np.array([0.1, 0.6, 0.4, 0.4000001]), np.array([0, 0, 1, 1]), np.arange(4))
    sensitivity, specificity = at_threshold(data, 0.4)
    assert (sensitivity.found, specificity.found) == (2, 1)


@pytest.mark.parametrize("positives", [15, 40])
def test_new_patients_show_the_expected_sensitivity(positives):
    """Exactly so where negatives are dense, because the cut then lies just below a positive."""
    rng, rule = np.random.default_rng(0), OperatingPointConfig(rule="sensitivity")
    label = np.repeat([0, 1], [2000, positives])
    true, expected, found = [], [], []
    for _ in range(400):
        prob = rng.random(len(label))
        point = choose_threshold(Labelled(prob, label, np.arange(len(label))), rule, 0)
        true.append(1 - point.threshold)
        expected.append(point.expected_sensitivity)
        found.append(point.sensitivity.value)
    error = np.std(true) / np.sqrt(len(true))
    assert np.mean(true) == pytest.approx(np.mean(expected), abs=3 * error)
    assert np.mean(found) > np.mean(true) + 5 * error
