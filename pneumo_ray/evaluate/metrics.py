"""Discrimination, calibration and their intervals over patients; a value that is undefined is None, never a silent 0.

Cohen's kappa (1960) and Matthews' coefficient (1975) correct accuracy for chance; intervals are percentiles of a
bootstrap that draws whole patients (Efron and Tibshirani 1993), because two images of one child are not two children.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from pneumo_ray.evaluate.calibration import brier_score, check_predictions, expected_calibration_error

BOOTSTRAP_METRICS = (
    "accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "kappa",
    "mcc",
    "brier",
    "auc",
    "average_precision",
)
_OF_CELLS = {"accuracy": (0, 1, 2, 3), "precision": (1, 3), "recall": (2, 3), "specificity": (0, 1)}
"""Cells of the confusion matrix (tn, fp, fn, tp) that the denominator of a proportion counts."""

# Weights (resamples times images) held at once: 2 MB, which stays in cache and bounds memory for a million images.
_CHUNK_ELEMENTS = 1 << 18

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def classification_metrics(
    labels: npt.ArrayLike, prob: npt.ArrayLike, threshold: float
) -> dict[str, float | int | None]:
    """Return counts, rates at one threshold, and threshold-free measures of discrimination and calibration.

    Args:
        labels: [n], 0 normal or 1 pneumonia.
        prob: float [n], probability of pneumonia.
        threshold: an image is called pneumonia where `prob >= threshold`.

    Returns:
        n, tn, fp, fn, tp, accuracy, precision, recall (= sensitivity), specificity, f1, kappa, mcc, auc,
        average_precision, brier, ece (15 bins), log_loss (nats). None where a denominator is 0, for auc and
        average_precision where a class is missing, and for every measure where there are no images.

    Raises:
        ValueError: as `check_predictions`.
    """
    scores, truth = check_predictions(prob, labels)
    tn, fp, fn, tp = np.bincount(_confusion_cell(truth, scores, threshold), minlength=4).tolist()
    both, some = tn + fp > 0 and fn + tp > 0, truth.size > 0
    return {
        **metrics_from_confusion(tn, fp, fn, tp),
        "auc": float(roc_auc_score(truth, scores)) if both else None,
        "average_precision": float(average_precision_score(truth, scores)) if both else None,
        "brier": brier_score(scores, truth) if some else None,
        "ece": expected_calibration_error(scores, truth) if some else None,
        "log_loss": float(log_loss(truth, scores, labels=[0, 1])) if some else None,
    }


def metrics_from_confusion(tn: int, fp: int, fn: int, tp: int) -> dict[str, float | int | None]:
    """Return what a printed confusion matrix alone can tell: n, the counts, and the rates (None where 0/0).

    Raises:
        ValueError: if a count is negative.
    """
    if min(tn, fp, fn, tp) < 0:
        raise ValueError(f"counts cannot be negative, got tn {tn}, fp {fp}, fn {fn}, tp {tp}")
    found = rates(*(np.asarray(count, dtype=np.float64) for count in (tn, fp, fn, tp)))
    defined = {name: None if np.isnan(value) else float(value) for name, value in found.items()}
    return {"n": tn + fp + fn + tp, "tn": tn, "fp": fp, "fn": fn, "tp": tp, **defined}


def bootstrap_intervals(
    labels: npt.ArrayLike,
    prob: npt.ArrayLike,
    threshold: float,
    groups: Iterable[Hashable],
    *,
    metrics: Sequence[str] = BOOTSTRAP_METRICS,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float] | None]:
    """Return percentile bootstrap intervals, resampling whole patients with replacement.

    A resample is a number of times for each patient, so that counts are one matrix product and AUC one cumulative sum
    over images sorted once. The work is done in chunks: memory does not grow with the number of resamples.

    Args:
        labels: [n], 0 normal or 1 pneumonia.
        prob: float [n], probability of pneumonia.
        threshold: an image is called pneumonia where `prob >= threshold`; held fixed, as on a test set.
        groups: [n] patient ids; an image whose id is None or NaN is a patient of its own.
        metrics: names out of `BOOTSTRAP_METRICS`.
        num_resamples: bootstrap resamples.
        seed: the same seed draws the same patients.
        level: coverage, within (0, 1).

    Returns:
        (low, high) for each name. Resamples in which a measure is undefined (a class missing) do not count towards it;
        None where it is undefined in all of them, for fewer than two patients, and where all of them agree, except
        for a proportion of 0 or 1, which has the exact interval of so many patients (see `without_width`).

    Raises:
        ValueError: if a name is unknown, a number out of range, the lengths differ, or as `check_predictions`.
    """
    if unknown := [name for name in metrics if name not in BOOTSTRAP_METRICS]:
        raise ValueError(f"no bootstrap for {', '.join(unknown)}: choose from {', '.join(BOOTSTRAP_METRICS)}")
    if num_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"num_resamples must be positive and level within (0, 1), got {num_resamples} and {level}")
    scores, truth = check_predictions(prob, labels)
    group_of, num_groups = number_groups(groups)
    if group_of.size != scores.size:
        raise ValueError(f"groups must name a patient for each image: got {group_of.size} for {scores.size} images")
    if num_groups < 2:  # one patient is always drawn: an interval without width would promise what nobody knows
        return dict.fromkeys(metrics)

    # One row a patient: its tn, fp, fn, tp and its summed squared error. [num_groups, 5]
    cell = 4 * group_of + _confusion_cell(truth, scores, threshold)
    confusion = np.bincount(cell, minlength=4 * num_groups).reshape(num_groups, 4)
    squared_error = np.bincount(group_of, weights=(scores - truth) ** 2, minlength=num_groups)
    patients = np.column_stack((confusion, squared_error))

    ordered = OrderedPairs.of(truth, scores, group_of)
    falling = np.argsort(scores)[::-1]
    falling_group, falling_truth = group_of[falling], truth[falling]
    last = np.append(np.flatnonzero(np.diff(scores[falling])), scores.size - 1)  # of those with the same score

    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_ELEMENTS // scores.size)
    samples = []
    for start in range(0, num_resamples, chunk):
        times = draw_patients(rng, min(chunk, num_resamples - start), num_groups)
        tn, fp, fn, tp, squared = (times @ patients).T
        values = rates(tn, fp, fn, tp)
        values["brier"] = squared / (tn + fp + fn + tp)
        if "auc" in metrics:
            values["auc"] = ordered.auc(times)
        if "average_precision" in metrics:
            values["average_precision"] = _weighted_average_precision(times[:, falling_group], falling_truth, last)
        samples.append([values[name] for name in metrics])

    tail = (1 - level) / 2
    intervals: dict[str, tuple[float, float] | None] = {}
    for name, drawn in zip(metrics, np.concatenate(samples, axis=1), strict=True):
        defined = drawn[~np.isnan(drawn)]
        intervals[name] = None
        if defined.size:
            low, high = np.quantile(defined, [tail, 1 - tail])
            intervals[name] = (
                (float(low), float(high)) if low < high else without_width(name, float(low), confusion, level)
            )
    return intervals


def without_width(name: str, value: float, confusion: IntArray, level: float) -> tuple[float, float] | None:
    """Return the interval of a measure on which all resamples agree: it is not certain, only never seen otherwise.

    Args:
        name: of the measure.
        value: of it.
        confusion: [patients, 4] counts tn, fp, fn, tp.
        level: coverage.

    Returns:
        For a proportion of 0 or 1 the exact interval (Clopper and Pearson 1934) of as many patients as have images in
        its denominator; None for anything else.
    """
    if name not in _OF_CELLS or value not in (0.0, 1.0):
        return None
    patients = int((confusion[:, _OF_CELLS[name]].sum(1) > 0).sum())
    end = ((1 - level) / 2) ** (1 / patients)
    return (end, 1.0) if value == 1.0 else (0.0, 1 - end)


def _confusion_cell(truth: IntArray, scores: FloatArray, threshold: float) -> IntArray:
    """Number the cells 0 tn, 1 fp, 2 fn, 3 tp."""
    return 2 * truth + (scores >= threshold)


def rates(tn: FloatArray, fp: FloatArray, fn: FloatArray, tp: FloatArray) -> dict[str, FloatArray]:
    """Return the rates of one matrix or of many at once; a denominator of 0 implies a numerator of 0, hence NaN."""
    with np.errstate(invalid="ignore"):
        excess = tp * tn - fp * fn
        return {
            "accuracy": (tp + tn) / (tn + fp + fn + tp),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "kappa": 2 * excess / ((tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)),
            "mcc": excess / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        }


def number_groups(groups: Iterable[Hashable]) -> tuple[IntArray, int]:
    """Number the patients 0, 1, ... in order of first appearance; an id that is null (not equal to itself) is new."""
    ids = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    numbers: dict[Hashable, int] = {}
    for index, identity in enumerate(ids):
        is_null = identity is None or identity != identity
        ids[index] = numbers.setdefault(object() if is_null else identity, len(numbers))
    return np.array(ids, dtype=np.int64), len(numbers)


def draw_patients(rng: np.random.Generator, num_resamples: int, num_groups: int) -> FloatArray:
    """Return how many times each resample draws each patient, float64 [num_resamples, num_groups]."""
    drawn = rng.integers(num_groups, size=(num_resamples, num_groups))
    drawn += num_groups * np.arange(num_resamples)[:, None]
    times = np.bincount(drawn.ravel(), minlength=drawn.size)
    return times.reshape(num_resamples, num_groups).astype(np.float64)


@dataclass(frozen=True)
class OrderedPairs:
    """The order of positives and negatives, found once and measured for many resamples of patients."""

    patient_of_positive: IntArray
    """[m], by ascending score."""
    patient_of_negative: IntArray
    """[n], by ascending score."""
    num_below: IntArray
    """[m] negatives that score less than each positive."""
    num_up_to: IntArray
    """[m] negatives that score less or the same."""

    @classmethod
    def of(cls, truth: IntArray, scores: FloatArray, patient_of: IntArray) -> "OrderedPairs":
        """Sort once.

        Args:
            truth: [n], 0 or 1.
            scores: [n].
            patient_of: [n], numbers of patients.
        """
        order = np.argsort(scores)
        positive, negative = order[truth[order] == 1], order[truth[order] == 0]
        below, up_to = (np.searchsorted(scores[negative], scores[positive], side) for side in ("left", "right"))
        return cls(patient_of[positive], patient_of[negative], below, up_to)

    def auc(self, times: FloatArray) -> FloatArray:
        """Return the share of pairs in the right order, ties counted half (Mann-Whitney).

        Args:
            times: [resamples, patients], how often each patient counts.

        Returns:
            float64 [resamples]; NaN where a class has no weight.
        """
        positive_weight, negative_weight = times[:, self.patient_of_positive], times[:, self.patient_of_negative]
        cumulative = np.zeros((negative_weight.shape[0], negative_weight.shape[1] + 1))
        np.cumsum(negative_weight, axis=1, out=cumulative[:, 1:])
        pairs = positive_weight * (cumulative[:, self.num_below] + cumulative[:, self.num_up_to])
        with np.errstate(invalid="ignore"):
            return pairs.sum(axis=1) / (2 * positive_weight.sum(axis=1) * cumulative[:, -1])


def _weighted_average_precision(weight: FloatArray, truth: IntArray, last: IntArray) -> FloatArray:
    """Return the sum of precision times gained recall over falling thresholds, as scikit-learn defines it.

    Args:
        weight: [resamples, n], columns sorted by falling score.
        truth: [n], in that order.
        last: [levels], the last column of each distinct score.

    Returns:
        float64 [resamples]; NaN where there is no positive.
    """
    called = np.cumsum(weight, axis=1)[:, last]
    found = np.cumsum(weight * truth, axis=1)[:, last]
    gained = np.diff(found, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore"):
        return np.nansum(gained * found / called, axis=1) / found[:, -1]
