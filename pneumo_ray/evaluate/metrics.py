"""Discrimination and calibration as numbers; undefined values are None, never 0.

Cohen's kappa (1960) and Matthews' coefficient (1975) correct accuracy for chance. Intervals are those of `intervals`.
"""

from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from pneumo_ray.evaluate.calibration import brier_score, check_predictions, expected_calibration_error

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ConfusionMetrics:
    """The counts of a confusion matrix and the rates that follow from them; None where a denominator is 0."""

    n: int
    tn: int
    fp: int
    fn: int
    tp: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    """The sensitivity."""
    specificity: float | None
    f1: float | None
    kappa: float | None
    mcc: float | None

    def __getitem__(self, name: str) -> float | None:
        """Return a measure by its name in files, for tables that list several.

        Raises:
            KeyError: if there is no such measure.
        """
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        value: float | None = getattr(self, name)
        return value


@dataclass(frozen=True)
class Metrics(ConfusionMetrics):
    """Counts and rates at one threshold, and measures that need none."""

    auc: float | None
    """None, like `average_precision`, where a class is missing."""
    average_precision: float | None
    brier: float | None
    ece: float | None
    """Expected calibration error, 15 bins."""
    log_loss: float | None
    """In nats."""


def classification_metrics(labels: npt.ArrayLike, prob: npt.ArrayLike, threshold: float) -> Metrics:
    """Return counts, rates at one threshold, and threshold-free measures of discrimination and calibration.

    Args:
        labels: [n], 0 normal or 1 pneumonia.
        prob: float [n], probability of pneumonia.
        threshold: an image is called pneumonia where `prob >= threshold`.

    Returns:
        The metrics; every measure is None where there are no images.

    Raises:
        ValueError: as `check_predictions`.
    """
    scores, truth = check_predictions(prob, labels)
    tn, fp, fn, tp = np.bincount(_confusion_cell(truth, scores, threshold), minlength=4).tolist()
    both, some = tn + fp > 0 and fn + tp > 0, truth.size > 0
    return Metrics(
        **asdict(metrics_from_confusion(tn, fp, fn, tp)),
        auc=float(roc_auc_score(truth, scores)) if both else None,
        average_precision=float(average_precision_score(truth, scores)) if both else None,
        brier=brier_score(scores, truth) if some else None,
        ece=expected_calibration_error(scores, truth) if some else None,
        log_loss=float(log_loss(truth, scores, labels=[0, 1])) if some else None,
    )


def metrics_from_confusion(tn: int, fp: int, fn: int, tp: int) -> ConfusionMetrics:
    """Return the metrics of a confusion matrix.

    Raises:
        ValueError: if a count is negative.
    """
    if min(tn, fp, fn, tp) < 0:
        raise ValueError(f"counts cannot be negative, got tn {tn}, fp {fp}, fn {fn}, tp {tp}")
    found = rates(*(np.asarray(count, dtype=np.float64) for count in (tn, fp, fn, tp)))
    defined = {name: None if np.isnan(value) else float(value) for name, value in found.items()}
    return ConfusionMetrics(tn + fp + fn + tp, tn, fp, fn, tp, **defined)


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
