"""The band around a ROC curve, held against scikit-learn and against patients drawn one by one."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from pneumo_ray.evaluate.bands import roc_band

GRID = np.linspace(0, 1, 21)


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    return label, 1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * label)))


def test_the_band_equals_drawing_single_patients():
    """Few enough scores that every one is a quantile: curves of resampled rows themselves, by scikit-learn."""
    label, prob = drawn(150)
    patients = np.arange(150) // 3
    rng = np.random.default_rng(5)
    curves = []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(patients == p) for p in rng.integers(50, size=50)])
        false, true, _ = roc_curve(label[rows], prob[rows], drop_intermediate=False)
        curves.append(np.interp(GRID, false, true))
    expected = np.quantile(curves, [0.025, 0.975], axis=0)
    found = roc_band(label, prob, patients.tolist(), GRID, num_resamples=1500)
    ill = len(np.unique(patients[label == 1]))
    expected[0, :-1] = np.minimum(expected[0, :-1], binomtest(ill, ill).proportion_ci(0.95, "exact").low)
    # Where the curve rises steeply the quantiles of 1,500 resamples are themselves uncertain.
    np.testing.assert_allclose(np.array(found)[:, 3:], expected[:, 3:], atol=0.03)


def test_only_more_patients_narrow_the_band():
    label, prob = drawn(200)
    one = roc_band(label, prob, range(200), GRID)
    ten_times = [np.tile(values, 10) for values in (label, prob)]
    alike = roc_band(*ten_times, np.tile(np.arange(200), 10).tolist(), GRID)
    np.testing.assert_allclose(one, alike, atol=0.02)
    more = roc_band(*ten_times, range(2000), GRID)
    assert (more[1] - more[0])[2:10].mean() == pytest.approx((one[1] - one[0])[2:10].mean() / np.sqrt(10), rel=0.25)


def test_perfect_scores_have_the_exact_band():
    """Twenty of twenty found: Clopper and Pearson say 0.832 to 1."""
    label = np.repeat([0, 1], 20)
    low, high = roc_band(label, 0.1 + 0.8 * label + 0.001 * np.arange(40), range(40), GRID)
    assert low[:-1] == pytest.approx(binomtest(20, 20).proportion_ci(0.95, "exact").low)
    assert low[-1] == 1  # every curve ends there
    assert (high == 1).all()


def test_a_handful_of_patients_has_no_band():
    assert roc_band(np.array([0, 1] * 50), np.linspace(0, 1, 100), np.arange(100) % 14, GRID) is None
