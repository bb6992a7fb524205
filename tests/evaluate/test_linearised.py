"""Closed-form intervals over patients, held against the bootstrap that they are the limit of, and finite differences."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumo_ray.evaluate.compare import auc_interval_by_patient
from pneumo_ray.evaluate.linearised import auc_difference_interval, auc_influence, linearised_intervals
from pneumo_ray.evaluate.metrics import BOOTSTRAP_METRICS, bootstrap_intervals


def drawn(patients: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One to four images a patient, which are alike; scores with ties."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    label = (rng.random(patients) < 0.4).astype(np.int64)[of]
    shared = rng.normal(size=patients)[of]
    prob = 1 / (1 + np.exp(-(1.5 * label - 0.7 + shared + 0.5 * rng.normal(size=len(of)))))
    return label, prob.round(3), of.tolist()


def test_every_interval_is_the_limit_of_the_bootstrap():
    label, prob, patients = drawn()
    drawn_intervals = bootstrap_intervals(label, prob, 0.45, patients, num_resamples=4000)
    closed = linearised_intervals(label, prob, 0.45, patients)
    assert closed.pop("average_precision") is None
    for name in closed:
        (low, high), (low_closed, high_closed) = drawn_intervals[name], closed[name]
        width = high - low
        assert high_closed - low_closed == pytest.approx(width, rel=0.08), name
        assert low_closed == pytest.approx(low, abs=0.1 * width), name


def test_patients_and_not_images_are_the_units():
    """Every image ten times over tells nothing new."""
    label, prob, patients = drawn(300)
    once = linearised_intervals(label, prob, 0.45, patients)
    ten_times = linearised_intervals(np.tile(label, 10), np.tile(prob, 10), 0.45, patients * 10)
    for name in BOOTSTRAP_METRICS:
        assert ten_times[name] == pytest.approx(once[name]), name


def test_the_influence_is_the_derivative_of_the_weighted_auc():
    label, prob, _ = drawn(30)
    auc, influence = auc_influence(label, prob)
    assert auc == pytest.approx(roc_auc_score(label, prob))
    for i in range(0, len(label), 7):
        weight = np.ones(len(label))
        weight[i] += 1e-6
        moved = roc_auc_score(label, prob, sample_weight=weight)
        assert influence[i] == pytest.approx((moved - auc) / 1e-6, abs=1e-6)


def test_the_interval_of_a_difference_is_that_of_its_bootstrap():
    label, prob, patients = drawn(800)
    worse = np.clip(prob + 0.3 * np.random.default_rng(3).normal(size=len(prob)), 0, 1)
    low, high = auc_interval_by_patient(label, prob, worse, patients, num_resamples=2000)
    closed = auc_difference_interval(label, prob, worse, patients)
    assert closed == pytest.approx([low, high], abs=0.12 * (high - low))


def test_what_is_undefined_stays_undefined():
    found = linearised_intervals(np.array([1, 1, 1]), np.array([0.2, 0.6, 0.9]), 0.5, "abc")
    assert found["auc"] is None
    assert found["specificity"] is None
    assert found["recall"] is not None
    assert set(linearised_intervals(np.array([0, 1]), np.array([0.2, 0.6]), 0.5, "aa").values()) == {None}
