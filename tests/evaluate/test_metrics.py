import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pneumo_ray.evaluate.metrics import classification_metrics, metrics_from_confusion

Reference = Callable[[np.ndarray, np.ndarray, np.ndarray], float]

# scikit-learn's own value for each name, from (labels, predictions, probabilities).
REFERENCE: dict[str, Reference] = {
    "accuracy": lambda y, called, prob: sk.accuracy_score(y, called),
    "precision": lambda y, called, prob: sk.precision_score(y, called, zero_division=np.nan),
    "recall": lambda y, called, prob: sk.recall_score(y, called, zero_division=np.nan),
    "specificity": lambda y, called, prob: sk.recall_score(y, called, pos_label=0, zero_division=np.nan),
    "f1": lambda y, called, prob: sk.f1_score(y, called, zero_division=np.nan),
    "kappa": lambda y, called, prob: sk.cohen_kappa_score(y, called, labels=[0, 1]),
    "mcc": lambda y, called, prob: sk.matthews_corrcoef(y, called),
    "auc": lambda y, called, prob: sk.roc_auc_score(y, prob),
    "average_precision": lambda y, called, prob: sk.average_precision_score(y, prob),
    "brier": lambda y, called, prob: sk.brier_score_loss(y, prob),
    "log_loss": lambda y, called, prob: sk.log_loss(y, prob, labels=[0, 1]),
}


def sample(size: int, num_patients: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities with ties, and patients of several images each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size)
    prob = np.round(np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1), 2)
    return labels, prob, rng.integers(0, num_patients, size)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 60), threshold=st.sampled_from([0.2, 0.5, 0.73]))
def test_metrics_agree_with_scikit_learn(seed: int, size: int, threshold: float) -> None:
    labels, prob, _ = sample(size, 5, seed)
    result = classification_metrics(labels, prob, threshold)
    called = (prob >= threshold).astype(int)
    matrix = sk.confusion_matrix(labels, called, labels=[0, 1])
    assert [result[name] for name in ("tn", "fp", "fn", "tp")] == matrix.ravel().tolist()
    assert result.n == size
    if len(np.unique(labels)) < 2 or len(np.unique(called)) < 2:
        return
    for name, reference in REFERENCE.items():
        assert result[name] == pytest.approx(reference(labels, called, prob), abs=1e-9), name


def test_one_matrix_gives_the_papers_numbers() -> None:
    """Notes, item 17: accuracy 95.94, precision 96.04, recall 97.49, F1 96.76, kappa 0.913, MCC 0.913 on 320."""
    result = metrics_from_confusion(tn=113, fp=8, fn=5, tp=194)
    percent = {name: round(100 * (result[name] or 0), 2) for name in ("accuracy", "precision", "recall", "f1")}
    assert percent == {"accuracy": 95.94, "precision": 96.04, "recall": 97.49, "f1": 96.76}
    assert (round(result.kappa or 0, 3), round(result.mcc or 0, 3)) == (0.913, 0.913)
    assert round(100 * (result.specificity or 0), 1) == 93.4
    assert result.n == 320


def test_the_papers_printed_matrix_is_another_test_set() -> None:
    """Notes, item 18: (198, 36, 6, 384) has 624 images, accuracy 93.3 and kappa 0.853."""
    result = metrics_from_confusion(198, 36, 6, 384)
    assert (result.n, result.fp, result.fn) == (624, 36, 6)
    assert round(100 * (result.accuracy or 0), 1) == 93.3
    assert round(result.kappa or 0, 3) == 0.853


@settings(deadline=None, max_examples=100)
@given(counts=st.tuples(*[st.integers(0, 4)] * 4))
def test_every_rate_is_its_textbook_ratio_or_none(counts: tuple[int, int, int, int]) -> None:
    """Kappa is (po - pe) / (1 - pe) with the chance agreement pe of the margins, computed here in integers."""
    tn, fp, fn, tp = counts
    n = sum(counts)
    chance = (tp + fp) * (tp + fn) + (tn + fn) * (tn + fp)
    ratios = {
        "accuracy": (tp + tn, n),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "kappa": (n * (tp + tn) - chance, n * n - chance),
        "mcc": (tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }
    result = metrics_from_confusion(tn, fp, fn, tp)
    for name, (numerator, denominator) in ratios.items():
        expected = pytest.approx(numerator / denominator, abs=1e-12) if denominator else None
        assert result[name] == expected, name


def test_a_million_images_overflow_nothing() -> None:
    """A matrix scaled by 10**6 has the same rates; the product under the root of MCC is beyond 64-bit integers."""
    small, large = (
        metrics_from_confusion(113, 8, 5, 194),
        metrics_from_confusion(*(10**6 * k for k in (113, 8, 5, 194))),
    )
    for name in ("accuracy", "f1", "kappa", "mcc"):
        assert large[name] == pytest.approx(small[name], rel=1e-12)


def test_a_missing_class_leaves_none_and_never_zero() -> None:
    result = classification_metrics([1, 1, 1], [0.2, 0.7, 0.9], 0.5)
    assert {name for name, value in asdict(result).items() if value is None} == {
        "specificity",
        "mcc",
        "auc",
        "average_precision",
    }
    assert result.recall == pytest.approx(2 / 3)
    assert result.brier == pytest.approx((0.64 + 0.09 + 0.01) / 3)
    assert result.log_loss == pytest.approx(-np.log([0.2, 0.7, 0.9]).mean())
    assert classification_metrics([0, 0, 1], [0.1, 0.2, 0.3], 0.5).precision is None


def test_no_images_give_zeros_and_none() -> None:
    result = classification_metrics([], [], 0.5)
    assert all(value == 0 for name, value in asdict(result).items() if name in ("n", "tn", "fp", "fn", "tp"))
    assert all(value is None for name, value in asdict(result).items() if name not in ("n", "tn", "fp", "fn", "tp"))


def test_the_threshold_itself_is_positive() -> None:
    assert classification_metrics([1], [0.5], 0.5).tp == 1


def test_values_are_plain_python_numbers() -> None:
    result = classification_metrics([0, 1, 1], [0.1, 0.4, 0.8], 0.5)
    assert {type(value) for value in asdict(result).values()} == {int, float}


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        metrics_from_confusion(1, -1, 0, 0)


def test_a_name_that_is_no_measure_is_refused() -> None:
    metrics = classification_metrics([0, 1], [0.1, 0.8], 0.5)
    assert metrics["recall"] == metrics.recall == 1.0
    with pytest.raises(KeyError, match="sensitivity"):
        metrics["sensitivity"]
