"""All intervals over patients; which method a measure has, and why.

Patients are the units, because two images of one child are not two children. The methods were chosen by simulated
studies of 20 to 300 patients (benchmarks/coverage.py): a percentile bootstrap over patients holds the truth in 81 to 93 % there.

* A proportion takes the exact interval (Clopper and Pearson 1934) of the sample size that its design effect leaves
  (Korn and Graubard 1998, Survey Methodology 24:193). Where no error was seen that is the number of patients.
* Everything else takes Student's t times the standard error of the jackknife over patients, on a scale on which the
  measure has no end. Its degrees of freedom follow from the fourth moments of what the patients contribute
  (Satterthwaite 1946; Pan and Wall 2002, Statistics in Medicine 21:1429), so that a few patients who decide are few.

Counts decide where the derivative is 0: no interval has the width 0, and none holds 1 where an error was seen.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from scipy.stats import beta, norm
from scipy.stats import t as student

from pneumo_ray.evaluate.calibration import check_predictions
from pneumo_ray.evaluate.calibration_error import calibration_test
from pneumo_ray.evaluate.influence import OF_CELLS, Influence, Predictions, influence
from pneumo_ray.evaluate.metrics import Metrics, classification_metrics, rates

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Interval = tuple[float, float]

LEVEL = 0.95
"""Coverage that the intervals aim at."""
MIN_PATIENTS = 15
"""Patients that a measure is of, below which it has no interval: too few to know how patients differ."""
MIN_CLASS_PATIENTS = 10
"""Patients of each class below which a measure of both classes has no interval."""

_EXACT = "exact binomial (Clopper-Pearson) on the effective sample size of the patients (Korn-Graubard)"
_JACKKNIFE = "jackknife over patients with Student's t, on the scale of "
METHODS = {
    "accuracy": _EXACT,
    "precision": _EXACT,
    "recall": _EXACT,
    "specificity": _EXACT,
    "f1": _EXACT + ", of the share of true positives among the called or ill",
    "kappa": _JACKKNIFE + "Fisher's z",
    "mcc": _JACKKNIFE + "Fisher's z",
    "auc": _JACKKNIFE + "the logit; exact over pairs of patients where the classes are separated",
    "average_precision": _JACKKNIFE + "the logit",
    "brier": _JACKKNIFE + "the logarithm",
    "log_loss": _JACKKNIFE + "the logarithm",
    "ece": "jackknife over patients with Student's t, its lower end less the bias, and 0 unless a calibrated model has a "
    "smaller error with 97.5 % probability",
}
"""How the interval of each measure is made."""
BOTH_CLASSES = ("auc", "average_precision", "kappa", "mcc")
"""Measures that need patients of both classes."""


@dataclass(frozen=True)
class AtThreshold:
    """The metrics at a threshold, with their intervals."""

    threshold: float
    values: Metrics
    intervals: dict[str, Interval | None]
    """By the names of `METHODS`."""


@dataclass(frozen=True)
class IntervalMethods:
    """Description of the intervals in metrics.json."""

    level: float = LEVEL
    unit: str = "patient"
    min_patients: int = MIN_PATIENTS
    min_patients_of_each_class: int = MIN_CLASS_PATIENTS
    methods: dict[str, str] = field(default_factory=lambda: dict(METHODS))


def patient_intervals(
    label: IntArray,
    prob: FloatArray,
    threshold: float,
    patients: Iterable[Hashable],
    metrics: Sequence[str] = tuple(METHODS),
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval | None]:
    """Return an interval over patients for each measure.

    Args:
        label: [n], 0 normal or 1 pneumonia.
        prob: float [n].
        threshold: an image is called pneumonia where `prob >= threshold`; held fixed, as on a test set.
        patients: [n] ids; None or NaN counts as a separate patient.
        metrics: names out of `METHODS`.
        seed: of the distribution of the calibration error under calibration; nothing else is drawn.
        level: coverage, within (0, 1).

    Returns:
        (low, high) for each name. None where the measure is undefined, where it is of fewer than `MIN_PATIENTS`, or
        of both classes with fewer than `MIN_CLASS_PATIENTS` of one, and where nothing was seen to vary, unless counts
        bound it: a proportion, kappa, Matthews' coefficient and the AUC without an error.

    Raises:
        ValueError: if a name is unknown, a number out of range, the lengths differ, or as `check_predictions`.
    """
    if unknown := [name for name in metrics if name not in METHODS]:
        raise ValueError(f"no interval for {', '.join(unknown)}: choose from {', '.join(METHODS)}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie within (0, 1), got {level}")
    scores, truth = check_predictions(prob, label)
    seen = Predictions.of(truth, scores, threshold, patients)
    return {name: _interval(name, seen, seed, level) for name in metrics}


def with_intervals(
    label: IntArray, prob: FloatArray, threshold: float, patients: Iterable[Hashable], seed: int
) -> AtThreshold:
    """Return the metrics at a threshold with their intervals."""
    values = classification_metrics(label, prob, threshold)
    return AtThreshold(threshold, values, patient_intervals(label, prob, threshold, patients, seed=seed))


def proportion_interval(
    right: IntArray | FloatArray, total: IntArray | FloatArray, level: float = LEVEL
) -> Interval | None:
    """Return the interval of `sum(right) / sum(total)`.

    The effective sample size is that of independent images with the same standard error, at most as many as there are and
    at least as many as if the images of a patient were copies; Student's t makes up for a variance that is estimated.

    Args:
        right: [patients], images of each that are right, or their weight.
        total: [patients], images of each that count, or their weight.
        level: coverage.

    Returns:
        None with fewer than `MIN_PATIENTS` patients that have an image.
    """
    right, total = right[total > 0], total[total > 0]
    if (count := len(total)) < MIN_PATIENTS:
        return None
    n, found = float(total.sum()), float(right.sum())
    tail = (1 - level) / 2
    if found in (0, n):
        end = tail ** (1 / count)
        return (end, 1.0) if found else (0.0, 1 - end)
    share = found / n
    variance = count / (count - 1) * float(np.sum((right - share * total) ** 2)) / n**2
    copies = n**2 / float(np.sum(total.astype(np.float64) ** 2))
    size = float(np.clip(share * (1 - share) / variance, copies, n)) if variance else n
    size *= (norm.ppf(tail) / student.ppf(tail, count - 1)) ** 2
    hits, misses = share * size, (1 - share) * size
    return exact_interval(hits, misses, level)


def exact_interval(hits: float, misses: float, level: float = LEVEL) -> Interval:
    """Return the exact interval of a share (Clopper and Pearson 1934); 0 to 1 of nothing.

    Args:
        hits: number of successes; effective numbers need not be whole.
        misses: number of failures.
        level: coverage at least.
    """
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, misses + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, misses)) if misses else 1.0
    return low, high


def _interval(name: str, seen: Predictions, seed: int, level: float) -> Interval | None:
    if name in OF_CELLS:
        low_high = _of_cells(name, seen.confusion(), level)
        return low_high if name != "f1" or low_high is None else (_f1(low_high[0]), _f1(low_high[1]))
    if too_few(name, seen):
        return None
    if name == "auc" and (exact := _separated(seen, level)) is not None:
        return exact
    if name in ("kappa", "mcc") and not seen.confusion()[:, [1, 2]].any():
        return _worst_split(name, seen.confusion(), level)
    found = influence(name, seen)
    if found is None:
        return None
    reach = reach_of(found, level)
    return None if reach is None else _on_its_scale(name, found.value, reach, seen, seed, level)


def reach_of(found: Influence, level: float = LEVEL) -> float | None:
    """Return how far an interval reaches on each side; None where no patient moves the measure."""
    spread = spread_of(found.of_patient, abs(found.value))
    return None if spread is None else spread[0] * float(student.ppf(0.5 + level / 2, spread[1]))


def spread_of(of_patient: FloatArray, scale: float) -> tuple[float, float] | None:
    """Return the standard error and its degrees of freedom; None where it is 0 but for rounding."""
    count, squares = len(of_patient), of_patient**2
    variance = float(squares.sum())
    if count < 2 or np.sqrt(variance) <= 1e-12 * max(scale, 1e-300):
        return None
    # Satterthwaite's 2 V^2 / Var(V), with the fourth moments for Var(V): about count where patients contribute alike.
    uneven = float(np.sum(squares**2)) / variance**2 - 1 / count
    freedom = count - 1 if uneven <= 0 else float(np.clip(2 / uneven, 1, count - 1))
    return float(np.sqrt(variance * count / (count - 1))), freedom


def _on_its_scale(name: str, value: float, reach: float, seen: Predictions, seed: int, level: float) -> Interval | None:
    """Return the interval, symmetric where the measure has no end, from what it reaches on its own scale."""
    if name == "ece":
        test = calibration_test(seen, seed)
        assert test is not None
        low = 0.0 if test.p > (1 - level) / 2 else max(value - test.bias - reach, 0.0)
        return low, min(value + reach, 1.0)
    if name in ("brier", "log_loss"):
        low, high = log_interval(value, reach)
        return low, min(high, 1.0) if name == "brier" else high
    if name in ("kappa", "mcc"):
        return fisher_interval(value, reach)
    if not 0 < value < 1:
        return None
    middle, reach = float(logit(value)), reach / (value * (1 - value))
    return float(expit(middle - reach)), float(expit(middle + reach))


def log_interval(value: float, reach: float) -> Interval:
    """Return the interval of a mean loss above 0, on the logarithm; `reach` as for `fisher_interval`."""
    factor = float(np.exp(min(reach / value, 700.0)))
    return value / factor, value * factor


def fisher_interval(value: float, reach: float) -> Interval | None:
    """Return the interval of a coefficient that ends at -1 and 1, on Fisher's z; None where it is one of its ends.

    Args:
        value: of the coefficient.
        reach: of its interval on each side, on the coefficient's own scale.
    """
    if abs(value) >= 1:
        return None
    middle, reach = float(np.arctanh(value)), reach / (1 - value**2)
    return float(np.tanh(middle - reach)), float(np.tanh(middle + reach))


def _of_cells(name: str, confusion: IntArray, level: float) -> Interval | None:
    right, wrong = (confusion[:, list(cells)].sum(1) for cells in OF_CELLS[name])
    return proportion_interval(right, right + wrong, level)


def _f1(share: float) -> float:
    return 2 * share / (1 + share)


def too_few(name: str, seen: Predictions) -> bool:
    """Whether a measure has no interval, because it is of too few patients."""
    if name in BOTH_CLASSES and min(seen.patients_of_class(c) for c in (0, 1)) < MIN_CLASS_PATIENTS:
        return True
    return seen.num_patients < MIN_PATIENTS


def _separated(seen: Predictions, level: float) -> Interval | None:
    """Return the interval of an AUC of 0 or 1; None for any other.

    Patients of the two classes form pairs, each patient in one of them. All of these independent pairs are in order with
    the probability AUC^pairs, so below this end that is less likely than the tail.
    """
    positive, negative = (seen.prob[seen.truth == c] for c in (1, 0))
    if not (perfect := positive.min() > negative.max()) and not positive.max() < negative.min():
        return None
    pairs = min(seen.patients_of_class(0), seen.patients_of_class(1), seen.num_patients // 2)
    end = float(((1 - level) / 2) ** (1 / pairs))
    return (end, 1.0) if perfect else (0.0, 1 - end)


def _worst_split(name: str, confusion: IntArray, level: float) -> Interval | None:
    """Return the interval of a coefficient without an error: down to the worst split of the errors that accuracy allows."""
    accuracy = _of_cells("accuracy", confusion, level)
    if accuracy is None:
        return None
    tn, _, _, tp = confusion.sum(0).astype(np.float64)
    errors = (1 - accuracy[0]) * (tn + tp)
    alarms = np.linspace(max(errors - tp, 0.0), min(errors, tn), 1001)
    low = rates(tn - alarms, alarms, errors - alarms, tp - errors + alarms)[name]
    return float(np.nanmin(low)), 1.0
