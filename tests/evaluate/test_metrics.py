import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

import pneumo_ray.evaluate.metrics as metrics_module
from pneumo_ray.evaluate.metrics import (
    BOOTSTRAP_METRICS,
    bootstrap_intervals,
    classification_metrics,
    metrics_from_confusion,
)

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
    assert result["n"] == size
    if len(np.unique(labels)) < 2 or len(np.unique(called)) < 2:
        return
    for name, reference in REFERENCE.items():
        assert result[name] == pytest.approx(reference(labels, called, prob), abs=1e-9), name


def test_the_papers_own_numbers_follow_from_the_one_matrix_that_gives_them() -> None:
    """Notes, item 17: accuracy 95.94, precision 96.04, recall 97.49, F1 96.76, kappa 0.913, MCC 0.913 on 320."""
    result = metrics_from_confusion(tn=113, fp=8, fn=5, tp=194)
    percent = {name: round(100 * (result[name] or 0), 2) for name in ("accuracy", "precision", "recall", "f1")}
    assert percent == {"accuracy": 95.94, "precision": 96.04, "recall": 97.49, "f1": 96.76}
    assert (round(result["kappa"] or 0, 3), round(result["mcc"] or 0, 3)) == (0.913, 0.913)
    assert round(100 * (result["specificity"] or 0), 1) == 93.4
    assert result["n"] == 320


def test_the_papers_printed_matrix_is_another_test_set() -> None:
    """Notes, item 18: (198, 36, 6, 384) has 624 images, accuracy 93.3 and kappa 0.853."""
    result = metrics_from_confusion(198, 36, 6, 384)
    assert (result["n"], result["fp"], result["fn"]) == (624, 36, 6)
    assert round(100 * (result["accuracy"] or 0), 1) == 93.3
    assert round(result["kappa"] or 0, 3) == 0.853


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
    assert {name for name, value in result.items() if value is None} == {
        "specificity",
        "mcc",
        "auc",
        "average_precision",
    }
    assert result["recall"] == pytest.approx(2 / 3)
    assert result["brier"] == pytest.approx((0.64 + 0.09 + 0.01) / 3)
    assert result["log_loss"] == pytest.approx(-np.log([0.2, 0.7, 0.9]).mean())
    assert classification_metrics([0, 0, 1], [0.1, 0.2, 0.3], 0.5)["precision"] is None


def test_no_images_give_counts_of_zero_and_none_for_the_rest() -> None:
    result = classification_metrics([], [], 0.5)
    assert all(value == 0 for name, value in result.items() if name in ("n", "tn", "fp", "fn", "tp"))
    assert all(value is None for name, value in result.items() if name not in ("n", "tn", "fp", "fn", "tp"))
    assert bootstrap_intervals([], [], 0.5, []) == dict.fromkeys(BOOTSTRAP_METRICS)


def test_a_probability_equal_to_the_threshold_is_called_positive() -> None:
    assert classification_metrics([1], [0.5], 0.5)["tp"] == 1


def test_values_are_plain_python_numbers() -> None:
    result = classification_metrics([0, 1, 1], [0.1, 0.4, 0.8], 0.5)
    assert {type(value) for value in result.values()} == {int, float}


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        metrics_from_confusion(1, -1, 0, 0)


def naive_intervals(
    labels: np.ndarray, prob: np.ndarray, threshold: float, groups: Sequence[Hashable], num_resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Build each resample as a list of rows, patient by patient, and let scikit-learn measure it."""
    patients = list(dict.fromkeys(groups))
    rows_of = {patient: [row for row, other in enumerate(groups) if other == patient] for patient in patients}
    rng = np.random.default_rng(seed)
    values: dict[str, list[float]] = {name: [] for name in BOOTSTRAP_METRICS}
    for _ in range(num_resamples):
        drawn = rng.integers(len(patients), size=len(patients))
        rows = np.concatenate([rows_of[patients[index]] for index in drawn])
        y, p = labels[rows], prob[rows]
        for name in BOOTSTRAP_METRICS:
            values[name].append(REFERENCE[name](y, (p >= threshold).astype(int), p))
    return {name: tuple(np.quantile(column, [0.025, 0.975])) for name, column in values.items()}


@pytest.mark.parametrize("num_patients", [25, 10_000])
def test_bootstrap_agrees_with_a_naive_loop_over_the_same_resamples(num_patients: int) -> None:
    """With 10,000 patients nearly every image has its own: the plain bootstrap is the same code."""
    labels, prob, patients = sample(80, num_patients, seed=7)
    groups = [f"person{number}" for number in patients]
    ours = bootstrap_intervals(labels, prob, 0.5, groups, num_resamples=40, seed=3)
    naive = naive_intervals(labels, prob, 0.5, groups, num_resamples=40, seed=3)
    for name in BOOTSTRAP_METRICS:
        assert ours[name] == pytest.approx(naive[name], abs=1e-9), name


@pytest.mark.parametrize("null", [None, float("nan")])
def test_an_image_without_a_patient_is_a_patient_of_its_own(null: Any) -> None:
    labels, prob, _ = sample(60, 60, seed=1)
    alone = bootstrap_intervals(labels, prob, 0.5, range(60), num_resamples=50)
    assert bootstrap_intervals(labels, prob, 0.5, [null] * 60, num_resamples=50) == alone
    assert bootstrap_intervals(labels, prob, 0.5, np.array([null] * 60), num_resamples=50) == alone
    assert bootstrap_intervals(labels, prob, 0.5, [0] * 60, num_resamples=50) != alone


def test_copies_of_an_image_under_one_patient_carry_no_information() -> None:
    """Five copies of each image must not narrow the interval; as if independent they narrow it by sqrt(5)."""
    labels, prob, _ = sample(200, 200, seed=2)
    patients = np.arange(200)
    single = bootstrap_intervals(labels, prob, 0.5, patients)
    fivefold = [np.tile(column, 5) for column in (labels, prob, patients)]
    copied = bootstrap_intervals(fivefold[0], fivefold[1], 0.5, fivefold[2])
    for name in BOOTSTRAP_METRICS:
        assert copied[name] == pytest.approx(single[name], abs=1e-12), name
    pretended = bootstrap_intervals(fivefold[0], fivefold[1], 0.5, range(1000))
    assert width(single["accuracy"]) / width(pretended["accuracy"]) == pytest.approx(math.sqrt(5), rel=0.12)


def width(interval: tuple[float, float] | None) -> float:
    assert interval is not None
    return interval[1] - interval[0]


def test_accuracy_interval_has_the_width_of_a_binomial_proportion() -> None:
    """One image a patient: the bootstrap variance of a mean is a(1 - a)/n exactly, so the 95 % width is 3.92 sd."""
    labels = np.repeat([0, 1], 300)
    prob = np.where(np.arange(600) % 10 == 0, 1 - labels, labels)
    interval = bootstrap_intervals(labels, prob, 0.5, range(600), metrics=["accuracy"], num_resamples=20_000)
    assert width(interval["accuracy"]) == pytest.approx(3.92 * math.sqrt(0.9 * 0.1 / 600), rel=0.05)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """300 studies of 120 patients with 2 alike images each; true accuracy 0.8. Three binomial sd are 3.8 points."""
    rng = np.random.default_rng(11)
    covered = {"by patient": 0, "by image": 0}
    groupings = {"by patient": np.repeat(np.arange(120), 2), "by image": np.arange(240)}
    for _ in range(300):
        patient_right = np.repeat(rng.random(120) < 0.8, 2)
        labels = np.repeat(rng.integers(0, 2, 120), 2)
        prob = np.where(patient_right, labels, 1 - labels)
        for name, groups in groupings.items():
            result = bootstrap_intervals(labels, prob, 0.5, groups, metrics=["accuracy"], num_resamples=300)
            low, high = result["accuracy"] or (1.0, 0.0)
            covered[name] += low <= 0.8 <= high
    assert 0.90 <= covered["by patient"] / 300 <= 0.99
    assert covered["by image"] / 300 < 0.88  # intervals too narrow by sqrt(2) cover 83 %


def test_chunks_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, prob, groups = sample(50, 20, seed=4)
    whole = bootstrap_intervals(labels, prob, 0.5, groups, num_resamples=101)
    monkeypatch.setattr(metrics_module, "_CHUNK_ELEMENTS", 150)
    assert bootstrap_intervals(labels, prob, 0.5, groups, num_resamples=101) == whole


def test_a_wider_level_gives_a_wider_interval_around_the_same_seed() -> None:
    labels, prob, groups = sample(100, 40, seed=5)
    narrow, wide = (
        bootstrap_intervals(labels, prob, 0.5, groups, metrics=["auc"], level=x)["auc"] for x in (0.5, 0.99)
    )
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_resamples_without_a_class_do_not_count_and_a_lost_measure_is_none() -> None:
    """Two patients, one a class: half of the resamples have no AUC, the others have 1, which is no interval."""
    intervals = bootstrap_intervals([0, 1], [0.2, 0.9], 0.5, ["a", "b"], num_resamples=200)
    assert intervals["auc"] is None
    lost = bootstrap_intervals([1, 1], [0.2, 0.9], 0.5, ["a", "b"], num_resamples=200)
    assert lost["auc"] is None
    assert lost["specificity"] is None
    assert lost["recall"] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metrics": ["accuracy", "ppv"]}, "ppv"),
        ({"num_resamples": 0}, "num_resamples"),
        ({"level": 1.0}, "level"),
        ({"groups": ["a"]}, "groups"),
    ],
)
def test_what_cannot_be_resampled_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bootstrap_intervals(**{"labels": [0, 1], "prob": [0.1, 0.9], "threshold": 0.5, "groups": "ab", **arguments})


def test_what_was_never_seen_otherwise_is_not_certain():
    """Twelve of twelve found, one patient each: Clopper and Pearson say 0.735 to 1 (scipy agrees); AUC has no interval."""
    labels = [1] * 12 + [0] * 12
    prob = [0.9] * 12 + [0.1] * 12
    found = bootstrap_intervals(labels, prob, 0.5, range(24), num_resamples=200)
    expected = binomtest(12, 12).proportion_ci(0.95, method="exact")
    assert found["recall"] == pytest.approx((expected.low, expected.high))
    assert found["specificity"] == pytest.approx((expected.low, expected.high))
    assert found["accuracy"][0] == pytest.approx(binomtest(24, 24).proportion_ci(0.95, method="exact").low)
    assert found["auc"] is None
    nothing = bootstrap_intervals(labels, [0.1] * 24, 0.5, [i // 2 for i in range(24)], num_resamples=200)
    assert nothing["recall"] == pytest.approx((0, binomtest(0, 6).proportion_ci(0.95, method="exact").high))


def test_the_interval_of_average_precision_is_that_of_resampled_rows():
    rng = np.random.default_rng(4)
    label = (rng.random(200) < 0.5).astype(int)
    prob = np.clip(rng.normal(0.3 + 0.3 * label, 0.25), 0, 1).round(2)  # with ties
    drawn = []
    for _ in range(1500):
        rows = rng.integers(200, size=200)
        drawn.append(sk.average_precision_score(label[rows], prob[rows]))
    found = bootstrap_intervals(label, prob, 0.5, range(200), metrics=("average_precision",))["average_precision"]
    assert found == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.012)
