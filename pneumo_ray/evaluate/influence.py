"""How much each patient moves a measure: its derivative by the weight of that patient, in closed form.

A measure that is a smooth function of sums over patients has the standard error `sqrt(sum_g U_g^2)`, with `U_g` its
derivative by the weight of patient g (the infinitesimal jackknife: Jaeckel 1972; Efron 1981, Biometrika 68:589). For the
AUC the derivative is made of the placements of DeLong et al. 1988. Two sets of scores of the same images are compared by
the difference of their derivatives. One pass over the images in order, and no random numbers.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from pneumo_ray.evaluate.calibration import CALIBRATION_BINS, bin_of
from pneumo_ray.evaluate.metrics import number_groups, rates

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

OF_CELLS = {"accuracy": ((0, 3), (1, 2)), "precision": ((3,), (1,)), "recall": ((3,), (2,)),
            "specificity": ((0,), (1,)), "f1": ((3,), (1, 2))}  # fmt: skip
"""Proportions as cells of the confusion matrix (tn, fp, fn, tp): the right ones, and the errors that share their
denominator. F1 is `2 q / (1 + q)` of such a proportion q, the share of true positives among the called or ill."""

_STEP = 1e-20
"""Of the complex-step derivative, which has no rounding error to balance against (Squire and Trapp 1998)."""
_SMALLEST = float(np.finfo(np.float64).eps)
"""Probability of a label below which the log loss takes this one, as scikit-learn does."""


@dataclass(frozen=True)
class Predictions:
    """Labels and probabilities of n images, with the patient of each."""

    truth: IntArray
    """[n], 0 normal or 1 pneumonia."""
    prob: FloatArray
    """[n]."""
    threshold: float
    """An image is called pneumonia where `prob >= threshold`."""
    patient_of: IntArray
    """[n], patients numbered from 0."""
    num_patients: int

    @classmethod
    def of(cls, truth: IntArray, prob: FloatArray, threshold: float, patients: Iterable[Hashable]) -> "Predictions":
        """Number the patients; None or NaN counts as a separate patient.

        Raises:
            ValueError: if the lengths differ.
        """
        patient_of, num_patients = number_groups(patients)
        if not len(truth) == len(prob) == len(patient_of):
            raise ValueError(
                f"an image needs a label, a probability and a patient: got {len(truth)}, {len(prob)} and {len(patient_of)}"
            )
        return cls(truth, prob, threshold, patient_of, num_patients)

    def confusion(self) -> IntArray:
        """Return the counts tn, fp, fn, tp of each patient, [patients, 4]."""
        cell = 4 * self.patient_of + 2 * self.truth + (self.prob >= self.threshold)
        return np.bincount(cell, minlength=4 * self.num_patients).reshape(self.num_patients, 4)

    def summed(self, of_image: FloatArray) -> FloatArray:
        """Return the sum of [n] over the images of each patient, [patients]."""
        return np.bincount(self.patient_of, weights=of_image, minlength=self.num_patients).astype(np.float64)

    def patients_of_class(self, label: int) -> int:
        """Count the patients with an image of a class."""
        return int(np.count_nonzero(np.bincount(self.patient_of[self.truth == label])))


@dataclass(frozen=True)
class Influence:
    """A measure, and what each patient moves it by."""

    value: float
    of_patient: FloatArray
    """[patients], the derivative of the measure by the weight of the patient; sums to 0."""


def influence(name: str, seen: Predictions) -> Influence | None:
    """Return a measure and its derivatives.

    Args:
        name: of a measure, as `classification_metrics` has it.
        seen: what is measured.

    Returns:
        None where the measure is undefined.

    Raises:
        ValueError: if the measure has no derivative here.
    """
    truth, prob = seen.truth, seen.prob
    if not len(truth):
        return None
    if name in ("auc", "average_precision"):
        if not 0 < truth.sum() < len(truth):
            return None
        value, of_image = auc_influence(truth, prob) if name == "auc" else average_precision_influence(truth, prob)
        return Influence(value, seen.summed(of_image))
    if name == "ece":
        return _calibration_influence(seen)
    if name in ("brier", "log_loss"):
        of_label = np.where(truth == 1, prob, 1 - prob)
        loss = (prob - truth) ** 2 if name == "brier" else -np.log(np.clip(of_label, _SMALLEST, 1 - _SMALLEST))
        value = float(loss.mean())
        return Influence(value, seen.summed((loss - value) / len(loss)))
    return _rate_influence(name, seen.confusion())


def _calibration_influence(seen: Predictions) -> Influence:
    """Return the calibration error and its derivatives, which take the sign of the error of each bin as known.

    Where a bin's sign is not known its error varies less than by this derivative, so intervals are too wide there.
    """
    number = bin_of(seen.prob, CALIBRATION_BINS)
    residual = seen.prob - seen.truth
    sign = np.sign(np.bincount(number, weights=residual, minlength=CALIBRATION_BINS))
    towards = sign[number] * residual
    value = float(towards.mean())
    return Influence(value, seen.summed((towards - value) / len(towards)))


def _rate_influence(name: str, confusion: IntArray) -> Influence | None:
    counts = confusion.sum(0).astype(np.float64)
    if name not in (found := rates(*counts)):
        raise ValueError(f"no derivative is known of {name}")
    value = float(found[name])
    if np.isnan(value):
        return None
    stepped = [rates(*(counts + 1j * _STEP * (np.arange(4) == axis)))[name] for axis in range(4)]
    return Influence(value, confusion @ np.array([float(np.imag(step)) / _STEP for step in stepped]))


def placements(truth: IntArray, prob: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return for each positive the number of negatives below it, for each negative that of positives, ties half."""
    rank = rankdata(prob)
    of_positives, of_negatives = (rank[truth == c] - rankdata(prob[truth == c]) for c in (1, 0))
    return of_positives, of_negatives


def auc_influence(truth: IntArray, prob: FloatArray) -> tuple[float, FloatArray]:
    """Return the AUC, and its derivative by the weight of each image, [n]; it sums to 0.

    Args:
        truth: [n], both classes present.
        prob: float [n].
    """
    positive = truth == 1
    m, n = int(positive.sum()), int((~positive).sum())
    of_positives, of_negatives = placements(truth, prob)
    share = np.empty(len(prob))
    # Of a positive the share of negatives below it, of a negative the share of positives above it.
    share[positive], share[~positive] = of_positives / n, 1 - of_negatives / m
    auc = float(share[positive].mean())
    return auc, (share - auc) / np.where(positive, m, n)


def average_precision_influence(truth: IntArray, prob: FloatArray) -> tuple[float, FloatArray]:
    """Return the average precision, and its derivative by the weight of each image, [n]; it sums to 0.

    With P positives and `p(s)` the precision among the C(s) images that score s or more, it is the mean of p over the
    positives. An image counts in p at every score up to its own, and a positive also as one of those averaged over.

    Args:
        truth: [n], both classes present.
        prob: float [n].
    """
    scores, level = np.unique(prob, return_inverse=True)
    all_at, found_at = (
        np.bincount(level, weights=weight, minlength=len(scores)) for weight in (np.ones(len(prob)), truth)
    )
    called, found = (np.cumsum(count[::-1])[::-1] for count in (all_at, found_at))
    precision, positives = found / called, float(truth.sum())
    value = float(found_at @ precision / positives)
    # Of the precisions at all scores up to each: what one more image does to them, without and with the disease.
    more_called, more_found = np.cumsum(found_at * precision / called), np.cumsum(found_at / called)
    moved = truth * (precision[level] - value) + truth * more_found[level] - more_called[level]
    return value, moved / positives
