"""Intervals over patients: exact binomial ones by scipy, and their coverage in simulated studies with a known truth."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, norm

from pneumo_ray.evaluate.differences import difference
from pneumo_ray.evaluate.influence import Predictions
from pneumo_ray.evaluate.intervals import METHODS, patient_intervals, proportion_interval

ILL = 0.7


def study(rng: np.random.Generator, patients: int, auc: float, models: int = 1) -> tuple[Any, ...]:
    """Draw a study of one to five images a patient: half of the noise of a score is shared by a patient's images.

    Returns:
        Labels, patients, and for each of the models, all equally good, its calibrated probabilities.
    """
    of = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    label = (rng.random(patients) < ILL).astype(np.int64)[of]
    shift = np.sqrt(2) * norm.ppf(auc)
    probs = []
    for _ in range(models):
        noise = np.sqrt(0.5) * (rng.normal(size=patients)[of] + rng.normal(size=len(of)))
        probs.append(expit(np.log(ILL / (1 - ILL)) + shift * (shift * label + noise) - shift**2 / 2))
    return label, of, *probs


def ends(interval: tuple[float, float] | None) -> tuple[float, float]:
    assert interval is not None
    return interval


def test_small_studies_cover_the_analytic_auc():
    """400 studies of 100 patients with an AUC of 0.976; 95 % less three binomial sd is 0.917."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        label, of, prob = study(rng, 100, 0.976)
        low, high = ends(patient_intervals(label, prob, 0.5, of, ("auc",))["auc"])
        assert high < 1
        covered += low <= 0.976 <= high
    assert covered / 400 >= 0.917


def test_sensitivity_intervals_cover_the_truth():
    """400 studies of 300 patients with a sensitivity of 0.978, where a bootstrap over patients covers 0.90."""
    rng = np.random.default_rng(6)
    shift = np.sqrt(2) * norm.ppf(0.995)
    cut = float(expit(np.log(ILL / (1 - ILL)) + shift * (shift - norm.ppf(0.978)) - shift**2 / 2))
    covered = 0
    for _ in range(400):
        label, of, prob = study(rng, 300, 0.995)
        low, high = ends(patient_intervals(label, prob, cut, of, ("recall",))["recall"])
        covered += low <= 0.978 <= high
    assert covered / 400 >= 0.917


def test_few_patients_widen_the_interval():
    """400 studies with 12 normal among 100 ill patients, one image each; 95 % less four points, and a normal interval 86 %."""
    rng = np.random.default_rng(7)
    label = np.repeat([0, 1], [12, 100])
    covered = 0
    for _ in range(400):
        prob = norm.cdf(rng.normal(size=112) + np.sqrt(2) * norm.ppf(0.9) * label)
        low, high = ends(patient_intervals(label, prob, 0.5, range(112), ("auc",))["auc"])
        covered += low <= 0.9 <= high
    assert covered / 400 >= 0.90


@pytest.mark.parametrize(("right", "total"), [(600, 600), (77, 77), (15, 15), (0, 40)])
def test_without_an_error_the_patients_are_counted(right, total):
    exact = binomtest(right, total).proportion_ci(0.95, method="exact")
    images = np.full(total, 3)  # three images of each patient, all alike
    found = proportion_interval(images * right // total, images)
    assert found == pytest.approx((exact.low, exact.high))


def test_copies_do_not_add_patients():
    """Copies have the design effect 4; t on 299 degrees of freedom is all that differs from scipy's exact interval."""
    right = (np.arange(300) % 20 != 0).astype(np.int64)
    exact = binomtest(int(right.sum()), 300).proportion_ci(0.95, method="exact")
    assert proportion_interval(4 * right, np.full(300, 4)) == pytest.approx((exact.low, exact.high), abs=0.002)
    independent = proportion_interval(np.tile(right, 4), np.ones(1200, np.int64))
    assert independent[1] - independent[0] < 0.6 * (exact.high - exact.low)


def test_counts_bound_an_errorless_archive():
    """61,234 normals and 77 positives, all right: exact bounds, and no width that a rounded derivative makes."""
    label = np.repeat([0, 1], [61_234, 77])
    prob = np.where(label == 1, 0.9, 0.1) - np.random.default_rng(0).random(len(label)) * 0.05
    found = patient_intervals(label, prob, 0.5, range(len(label)))
    assert found["recall"] == pytest.approx((binomtest(77, 77).proportion_ci(0.95, "exact").low, 1))
    assert found["recall"][0] == pytest.approx(0.953, abs=5e-4)
    assert found["specificity"] == pytest.approx((binomtest(61_234, 61_234).proportion_ci(0.95, "exact").low, 1))
    assert found["auc"] == pytest.approx((0.025 ** (1 / 77), 1))
    assert found["kappa"][0] < 0.99
    assert found["f1"] == pytest.approx((2 * found["recall"][0] / (1 + found["recall"][0]), 1))
    assert all(interval is None or interval[0] < interval[1] for interval in found.values())


@pytest.mark.parametrize("errors", [1, 2, 5])
@pytest.mark.parametrize("patients", [60, 60_000])
def test_no_interval_holds_one_where_errors_were_seen(patients, errors):
    rng = np.random.default_rng(errors)
    label = (np.arange(patients) % 3 > 0).astype(np.int64)
    prob = np.where(label == 1, 0.9, 0.1) - rng.random(patients) * 0.05
    for wrong in (np.flatnonzero(label == 0)[:errors], np.flatnonzero(label == 1)[:errors]):
        prob[wrong] = 1 - prob[wrong]
    found = patient_intervals(label, prob, 0.5, range(patients))
    for name in ("accuracy", "precision", "recall", "specificity", "f1", "kappa", "mcc", "auc", "average_precision"):
        low, high = ends(found[name])
        assert low < high < 1, name


def test_separated_classes_bound_the_auc_by_pairs():
    """12 pairs of independent patients in order: an AUC below 0.025^(1/12) gives that in less than 2.5 % of studies."""
    label = np.repeat([0, 1], [12, 30])
    prob = np.where(label == 1, 0.9, 0.1) + 0.001 * np.arange(42)
    assert patient_intervals(label, prob, 0.5, range(42))["auc"] == pytest.approx((0.025 ** (1 / 12), 1))
    assert patient_intervals(label, 1 - prob, 0.5, range(42))["auc"] == pytest.approx((0, 1 - 0.025 ** (1 / 12)))
    both = np.repeat(np.arange(21), 2)  # each patient in one pair only, so 21 patients are 10 pairs
    assert patient_intervals(np.tile([0, 1], 21), np.tile([0.1, 0.9], 21), 0.5, both)["auc"][0] == 0.025 ** (1 / 10)


def test_errorless_kappa_is_bounded_by_splits():
    """As many errors as accuracy allows, split between the classes in every way: no split gives less."""
    label = np.repeat([0, 1], [40, 160])
    found = patient_intervals(label, np.where(label == 1, 0.9, 0.1), 0.5, range(200))
    errors = 200 * (1 - found["accuracy"][0])
    for alarms in np.linspace(0, errors, 21):
        fp, fn = alarms, errors - alarms
        tn, tp = 40 - fp, 160 - fn
        chance = ((tp + fp) * 160 + (tn + fn) * 40) / 200**2
        assert ((tn + tp) / 200 - chance) / (1 - chance) >= found["kappa"][0] - 1e-6
        mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * 160 * 40 * (tn + fn))
        assert mcc >= found["mcc"][0] - 1e-6


@pytest.mark.parametrize("patients", [1, 14])
def test_a_handful_of_patients_has_no_interval(patients):
    """Hundreds of images of 14 patients tell nothing of other patients."""
    rng = np.random.default_rng(0)
    of = np.arange(400) % patients
    label = (of % 2).astype(np.int64)
    found = patient_intervals(label, expit(rng.normal(size=400) + label), 0.5, of)
    assert found == dict.fromkeys(METHODS)
    assert patient_intervals(np.zeros(0, np.int64), np.zeros(0), 0.5, []) == dict.fromkeys(METHODS)


def test_nine_patients_have_no_auc_interval():
    label = np.repeat([0, 1], [9, 60])
    prob = expit(np.random.default_rng(1).normal(size=69) + label)
    found = patient_intervals(label, prob, 0.5, range(69))
    assert {name for name, interval in found.items() if interval is None} >= {"auc", "kappa", "specificity"}
    assert found["recall"] is not None


def test_patients_and_not_images_are_the_units():
    """Every image ten times over says nothing new."""
    label, of, prob = study(np.random.default_rng(2), 80, 0.9)
    once = patient_intervals(label, prob, 0.5, of)
    ten_times = patient_intervals(np.tile(label, 10), np.tile(prob, 10), 0.5, np.tile(of, 10))
    for name in METHODS:
        assert ten_times[name] == pytest.approx(once[name], rel=0.02), name


@pytest.mark.parametrize("null", [None, float("nan")])
def test_images_without_patient_count_as_patients(null):
    label, _, prob = study(np.random.default_rng(3), 30, 0.8)
    alone = patient_intervals(label, prob, 0.5, range(len(label)))
    assert patient_intervals(label, prob, 0.5, [null] * len(label)) == alone
    assert patient_intervals(label, prob, 0.5, [0] * len(label)) != alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"metrics": ("ppv",)}, "no interval for ppv"), ({"level": 1.0}, "level"), ({"patients": "a"}, "1")],
)
def test_what_has_no_interval_is_refused(changes, words):
    arguments = {"label": np.array([0, 1]), "prob": np.array([0.1, 0.9]), "threshold": 0.5, "patients": "ab"}
    with pytest.raises(ValueError, match=words):
        patient_intervals(**(arguments | changes))


def test_a_higher_level_is_wider():
    label, of, prob = study(np.random.default_rng(4), 60, 0.85)
    narrow, wide = (patient_intervals(label, prob, 0.5, of, level=level) for level in (0.5, 0.99))
    for name in METHODS:
        assert wide[name][0] <= narrow[name][0] < narrow[name][1] < wide[name][1], name


@pytest.mark.parametrize("patients", [60, 300])
def test_equal_models_are_told_apart_in_five_percent(patients):
    """400 pairs of equal clustered models; 5 % and three binomial sd are 8.3 %."""
    rng = np.random.default_rng(patients)
    names = ("auc", "accuracy", "recall", "brier", "ece")
    apart = dict.fromkeys(names, 0)
    for _ in range(400):
        label, of, first, second = study(rng, patients, 0.95, models=2)
        here, there = (Predictions.of(label, prob, 0.5, of) for prob in (first, second))
        for name in names:
            found = difference(name, here, there)
            if found.p is None:  # too few normal patients
                continue
            apart[name] += found.p < 0.05
            assert (found.p < 0.05) == (not found.interval[0] <= 0 <= found.interval[1])
    assert max(apart.values()) / 400 <= 0.083, apart


def test_a_better_model_is_told_apart():
    """AUC 0.95 against 0.85 on 300 patients."""
    label, of, good, noise = study(np.random.default_rng(8), 300, 0.95, models=2)
    worse = expit(0.5 * np.log(good / (1 - good)) + np.random.default_rng(9).normal(0, 2, len(good)))
    found = difference("auc", Predictions.of(label, good, 0.5, of), Predictions.of(label, worse, 0.5, of))
    assert found.p < 0.001
    assert found.interval[0] > 0
    assert found.difference == pytest.approx(found.here - found.baseline)
    assert noise is not None


def test_no_changed_side_bounds_the_difference_by_patients():
    """Of 40 patients none changed sides: with 7.8 % or fewer that do, exactly 2.5 % of samples show none."""
    label = np.tile([0, 1], 40)
    here, there = (
        Predictions.of(label, np.where(label == 1, 0.8, shift), 0.5, np.arange(80) // 2) for shift in (0.1, 0.2)
    )
    changed = binomtest(0, 40).proportion_ci(0.95, "exact").high
    assert difference("accuracy", here, there).interval == pytest.approx((-changed, changed))
    assert difference("accuracy", here, there).p is None
    assert difference("auc", here, there).interval is None


def test_a_proportion_is_bounded_by_its_own_class():
    """Normals changed sides, of 40 positives none: the specificity differs, and the sensitivity has its exact bounds."""
    label = np.tile([0, 1], 40)
    moved = np.where(label == 1, 0.8, np.where(np.arange(80) < 10, 0.6, 0.1))
    here, there = (Predictions.of(label, prob, 0.5, range(80)) for prob in (np.where(label == 1, 0.8, 0.1), moved))
    changed = binomtest(0, 40).proportion_ci(0.95, "exact").high
    found = difference("recall", here, there)
    assert (found.difference, found.p) == (0.0, None)
    assert found.interval == pytest.approx((-changed, changed))
    low, high = ends(difference("specificity", here, there).interval)
    assert low < 5 / 40 < high


def test_many_independent_images_have_the_textbook_standard_error():
    """20,000 images, one a patient: 3.92 s / sqrt(n) for means of losses, and of a binomial for a proportion."""
    rng = np.random.default_rng(10)
    prob = rng.uniform(0.02, 0.98, 20_000)
    label = (rng.random(20_000) < prob).astype(np.int64)
    found = patient_intervals(label, prob, 0.5, range(20_000))
    right = (prob >= 0.5) == label
    losses = {
        "brier": (prob - label) ** 2,
        "log_loss": -np.log(np.where(label == 1, prob, 1 - prob)),
        "accuracy": right,
    }
    for name, loss in losses.items():
        low, high = ends(found[name])
        assert high - low == pytest.approx(3.92 * loss.std() / np.sqrt(20_000), rel=0.02), name
        assert low < loss.mean() < high
