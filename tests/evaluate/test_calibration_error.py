"""The calibration error of calibrated models, held against labels drawn image by image."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from pneumo_ray.evaluate.calibration import bin_of, expected_calibration_error
from pneumo_ray.evaluate.calibration_error import calibrated_covariance, calibration_test
from pneumo_ray.evaluate.influence import Predictions
from pneumo_ray.evaluate.intervals import patient_intervals


def study(rng: np.random.Generator, patients: int, auc: float, slope: float = 1.0, offset: float = 0.0) -> Predictions:
    """Images of patients with one label each; calibrated where slope is 1 and offset is 0, whatever the patients share."""
    of = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    label = (rng.random(patients) < 0.7).astype(np.int64)[of]
    shift = np.sqrt(2) * norm.ppf(auc)
    score = shift * label + np.sqrt(0.5) * (rng.normal(size=patients)[of] + rng.normal(size=len(of)))
    prob = expit(offset + slope * (np.log(0.7 / 0.3) + shift * score - shift**2 / 2))
    return Predictions.of(label, prob, 0.5, of)


@pytest.mark.parametrize(("patients", "auc"), [(40, 0.9), (100, 0.976), (300, 0.995)])
def test_calibrated_models_are_found_out_in_five_percent(patients, auc):
    """200 calibrated models each: 5 % and three binomial sd are 9.6 %."""
    rng = np.random.default_rng(patients)
    tests = [calibration_test(study(rng, patients, auc), seed=k) for k in range(200)]
    assert np.mean([test.p < 0.05 for test in tests]) <= 0.096
    assert np.mean([test.p < 0.05 for test in tests]) >= 0.005
    assert np.mean([test.error for test in tests]) == pytest.approx(np.mean([test.expected for test in tests]), rel=0.1)


@pytest.mark.parametrize(("slope", "offset"), [(2.0, 0.0), (1.0, 1.5), (1.0, -1.5)])
def test_miscalibrated_models_are_found_out(slope, offset):
    rng = np.random.default_rng(1)
    tests = [calibration_test(study(rng, 200, 0.9, slope, offset)) for _ in range(50)]
    assert np.mean([test.p < 0.05 and test.error > 0.05 for test in tests]) > 0.9


def test_covariance_is_that_of_labels_drawn_by_patient():
    """40,000 draws of one uniform number a patient: a covariance is then known to 1 %."""
    rng = np.random.default_rng(2)
    of = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    prob = rng.random(len(of)).round(1)  # ties, and edges of bins
    seen = Predictions.of(np.zeros(len(of), np.int64), prob, 0.5, of)
    label = rng.random((40_000, 12))[:, of] < prob
    residual = (prob - label) @ (bin_of(prob, 5)[:, None] == np.arange(5))
    exact = calibrated_covariance(seen, 5)
    np.testing.assert_allclose(exact, residual.T @ residual / 40_000, atol=0.02 * np.diag(exact).max())


def test_the_error_is_the_expected_calibration_error():
    seen = study(np.random.default_rng(3), 50, 0.8)
    assert calibration_test(seen).error == pytest.approx(expected_calibration_error(seen.prob, seen.truth))
    empty = Predictions.of(np.zeros(0, np.int64), np.zeros(0), 0.5, [])
    assert calibration_test(empty) is None


def test_certainty_is_calibrated_only_if_right():
    label = np.tile([0, 1], 20)
    right = Predictions.of(label, label.astype(float), 0.5, range(40))
    wrong = Predictions.of(label, 1.0 - label, 0.5, range(40))
    assert calibration_test(right).p == 1
    assert calibration_test(wrong).p < 0.001


def test_intervals_of_the_error_cover_the_true_one():
    """200 studies; labels shifted by 0.1 everywhere have the error 0.1, calibrated ones 0. Three binomial sd are 4.6 %."""
    rng = np.random.default_rng(4)
    covered = np.zeros(2)
    for k in range(200):
        prob = rng.uniform(0.1, 0.8, 200)
        for number, error in enumerate((0.0, 0.1)):
            label = (rng.random(200) < prob + error).astype(np.int64)
            low, high = patient_intervals(label, prob, 0.5, range(200), ("ece",), seed=k)["ece"]
            assert low <= expected_calibration_error(prob, label) <= high
            covered[number] += low <= error <= high
    assert (covered / 200 >= 0.904).all(), covered / 200
