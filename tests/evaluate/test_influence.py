"""What each patient moves a measure by, held against scikit-learn with the weight of a patient changed a little."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as sk

from pneumo_ray.evaluate.influence import Predictions, influence
from pneumo_ray.evaluate.intervals import METHODS

THRESHOLD = 0.45
Weighted = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]


def weighted_ece(y: np.ndarray, prob: np.ndarray, weight: np.ndarray) -> float:
    bins = np.minimum((prob * 15).astype(int), 14)
    return sum(abs(np.sum((weight * (prob - y))[bins == b])) for b in range(15)) / weight.sum()


# The measure of weighted images, from (labels, calls, probabilities, weights).
WEIGHTED: dict[str, Weighted] = {
    "accuracy": lambda y, called, prob, w: sk.accuracy_score(y, called, sample_weight=w),
    "precision": lambda y, called, prob, w: sk.precision_score(y, called, sample_weight=w),
    "recall": lambda y, called, prob, w: sk.recall_score(y, called, sample_weight=w),
    "specificity": lambda y, called, prob, w: sk.recall_score(y, called, pos_label=0, sample_weight=w),
    "f1": lambda y, called, prob, w: sk.f1_score(y, called, sample_weight=w),
    "kappa": lambda y, called, prob, w: sk.cohen_kappa_score(y, called, sample_weight=w),
    "mcc": lambda y, called, prob, w: sk.matthews_corrcoef(y, called, sample_weight=w),
    "auc": lambda y, called, prob, w: sk.roc_auc_score(y, prob, sample_weight=w),
    "average_precision": lambda y, called, prob, w: sk.average_precision_score(y, prob, sample_weight=w),
    "brier": lambda y, called, prob, w: sk.brier_score_loss(y, prob, sample_weight=w),
    "log_loss": lambda y, called, prob, w: sk.log_loss(y, prob, sample_weight=w),
    "ece": lambda y, called, prob, w: weighted_ece(y, prob, w),
}


def drawn(patients: int, seed: int = 0) -> Predictions:
    """One to four images a patient, which are alike; scores with ties."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    label = (rng.random(patients) < 0.4).astype(np.int64)[of]
    prob = 1 / (1 + np.exp(-(1.5 * label - 0.7 + rng.normal(size=patients)[of] + 0.5 * rng.normal(size=len(of)))))
    return Predictions.of(label, prob.round(2), THRESHOLD, of.tolist())


@pytest.mark.parametrize("name", METHODS)
def test_influence_is_the_derivative_by_a_patients_weight(name):
    seen = drawn(25)
    found = influence(name, seen)
    called = (seen.prob >= THRESHOLD).astype(int)
    step = 1e-4
    for patient in range(25):
        ends = []
        for sign in (1, -1):
            weight = 1 + sign * step * (seen.patient_of == patient)
            ends.append(WEIGHTED[name](seen.truth, called, seen.prob, weight))
        assert found.of_patient[patient] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=2e-6)
    assert found.value == pytest.approx(WEIGHTED[name](seen.truth, called, seen.prob, np.ones(len(called))))


@pytest.mark.parametrize("name", METHODS)
def test_more_of_every_patient_moves_nothing(name):
    assert abs(influence(name, drawn(40)).of_patient.sum()) < 1e-12


def test_without_images_or_a_class_nothing_is_defined():
    empty = Predictions.of(np.zeros(0, np.int64), np.zeros(0), 0.5, [])
    assert all(influence(name, empty) is None for name in METHODS)
    ill = Predictions.of(np.ones(3, np.int64), np.array([0.2, 0.6, 0.9]), 0.5, "abc")
    assert {name for name in METHODS if influence(name, ill) is None} == {
        "specificity",
        "mcc",
        "auc",
        "average_precision",
    }


def test_what_has_no_derivative_is_refused():
    with pytest.raises(ValueError, match="no derivative is known of ppv"):
        influence("ppv", drawn(5))
    with pytest.raises(ValueError, match="got 3, 3 and 2"):
        Predictions.of(np.ones(3, np.int64), np.ones(3), 0.5, "ab")
