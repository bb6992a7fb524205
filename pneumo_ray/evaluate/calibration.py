"""Calibration of probabilities on validation (Platt 1999), and the calibration error (Guo et al. 2017, arXiv 1706.04599)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from scipy.special import logit as log_odds

from pneumo_ray.model.calibrated import Calibration

MIN_SPREAD = 0.01
MAX_SPREAD = 100.0
"""Bounds on the standard deviation of the calibrated logits: without them, logits no better than chance would ask for a
slope of 0 or below, and passes that disagree about every image could ask for an infinite one."""
CALIBRATION_BINS = 15
"""Equal-width bins of [0, 1] of a calibration error."""
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class ReliabilityTable:
    """Observed frequency by predicted probability; bin b is [edges[b], edges[b + 1]), the last one closed."""

    edges: npt.NDArray[np.float64]
    """[bins + 1] equally spaced from 0 to 1."""
    counts: npt.NDArray[np.int64]
    """[bins] images in each bin."""
    mean_prob: npt.NDArray[np.float64]
    """[bins] mean predicted probability; NaN where the bin is empty."""
    observed: npt.NDArray[np.float64]
    """[bins] share of positive labels; NaN where the bin is empty."""


def platt_targets(label: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the targets [n] of labels 0 and 1 (Platt 1999), with which separated classes too have a finite optimum.

    They are `(N+ + 1) / (N+ + 2)` and `1 / (N- + 2)`, the posterior means under a uniform prior on each class's error
    (Lin, Lin and Weng 2007, Mach. Learn. 68:267).
    """
    positive = int(label.sum())
    negative = label.size - positive
    return np.where(label == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))


def fit_calibration(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Calibration:
    """Return the slope and the intercept that make the probabilities most likely (Platt 1999). Fit on validation only.

    The probability of an image is the mean over its passes of `sigmoid(logit / temperature + intercept)`, as the scores
    have it. Labels count as `platt_targets`. With one logit per image the loss is convex. Logits `a x + b`, a > 0, give the
    same probabilities as x.

    Args:
        logits: float [n], raw logits for pneumonia, or [n, T] of T Monte Carlo passes.
        labels: [n], 0 normal or 1 pneumonia.

    Returns:
        The calibration. Where nothing orders the images (all logits equal) temperature 1 and the intercept that gives
        everybody the prevalence; where a class is missing, or there are no images, one that changes nothing.

    Raises:
        ValueError: if a logit is not finite, a label is neither 0 nor 1, or the lengths differ.
    """
    passes = np.asarray(logits, dtype=np.float64)
    passes = passes[:, None] if passes.ndim == 1 else passes
    # A logit that is not finite makes the mean so, too.
    _, truth = _check_pair(passes.mean(1) if passes.ndim == 2 else passes, labels, "logits")
    num_positive = int(truth.sum())
    num_negative = truth.size - num_positive
    if not num_positive or not num_negative:
        return Calibration()
    return _most_likely(passes, platt_targets(truth), None)


def _most_likely(
    passes: npt.NDArray[np.float64], target: npt.NDArray[np.float64], weight: npt.NDArray[np.float64] | None
) -> Calibration:
    """Return the calibration of passes [n, T] that makes targets [n] most likely; None weighs all alike."""
    prior = float(log_odds(np.average(target, weights=weight)))
    centre, scale = float(passes.mean()), float(passes.std())
    if scale <= 1e-9 * abs(centre) or scale == 0:
        return Calibration(1.0, prior - centre)
    standard = (passes - centre) / scale
    found = minimize(
        _negative_log_likelihood,
        (1.0, prior),
        args=(standard, target, weight),
        jac=True,
        method="L-BFGS-B",
        bounds=[(MIN_SPREAD, MAX_SPREAD), (None, None)],
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000},
    )
    slope, shift = (float(value) for value in found.x)
    temperature = scale / slope
    return Calibration(temperature, shift - centre / temperature)


def soft_platt_targets(target: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return `platt_targets` of labels that are probabilities: those of both classes, in the proportion of the label.

    Args:
        target: [n], probability of pneumonia.
        weight: [n], of each label, with the mean 1; the expected numbers of the classes are as weighted.
    """
    positive, negative = float(np.sum(weight * target)), float(np.sum(weight * (1 - target)))
    mixed: npt.NDArray[np.float64] = target * (positive + 1) / (positive + 2) + (1 - target) / (negative + 2)
    return mixed


def fit_soft_calibration(
    logits: npt.NDArray[np.float64], target: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]
) -> Calibration:
    """Return the calibration that makes labels which are probabilities most likely: `fit_calibration` of hard ones.

    Args:
        logits: as for `fit_calibration`.
        target: [n], probability of pneumonia.
        weight: [n], at least 0, with the mean 1.
    """
    passes = logits[:, None] if logits.ndim == 1 else logits
    if not (np.any(weight * target > 0) and np.any(weight * (1 - target) > 0)):
        return Calibration()
    return _most_likely(passes, soft_platt_targets(target, weight), weight)


def tells_nothing(calibration: Calibration, logits: npt.ArrayLike) -> bool:
    """Return whether a fit ended where all images have nearly one probability: the logits are no better than chance.

    Args:
        calibration: from `fit_calibration`.
        logits: what it was fitted on.
    """
    return bool(np.std(np.asarray(logits, dtype=np.float64)) / calibration.temperature <= MIN_SPREAD * (1 + 1e-6))


def _negative_log_likelihood(
    parameters: tuple[float, float],
    standard: npt.NDArray[np.float64],
    target: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64] | None,
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the mean loss of targets [n] under the mean of sigmoid(slope x + shift) over passes [n, T], and its gradient."""
    slope, shift = parameters
    z = slope * standard + shift
    p, q = expit(z), expit(-z)
    # Smaller probabilities than any float are met only far from the optimum, where the loss need only be finite.
    ill, well = np.maximum(p.mean(1), _TINY), np.maximum(q.mean(1), _TINY)
    of_image = target * np.log(ill) + (1 - target) * np.log(well)
    loss = -np.mean(of_image if weight is None else weight * of_image)
    by_z = p * q * ((1 - target) / well - target / ill)[:, None] / z.shape[1]
    if weight is not None:
        by_z *= weight[:, None]
    return float(loss), np.array([np.sum(by_z * standard), np.sum(by_z)]) / len(target)


def expected_calibration_error(prob: npt.ArrayLike, labels: npt.ArrayLike, bins: int = CALIBRATION_BINS) -> float:
    """Return `sum_b (n_b / n) |mean probability in b - share of positives in b|` over equal-width bins of [0, 1].

    The probability is that of the positive class, so an over-confident negative counts too; the error of the
    winning class alone (Guo's multi-class form) would fold both ends of the scale together.

    Args:
        prob: float [n] within [0, 1].
        labels: [n], 0 or 1.
        bins: number of bins.

    Raises:
        ValueError: if there are no images, or as `check_predictions` and `reliability_table`.
    """
    table = reliability_table(prob, labels, bins)
    filled = table.counts > 0
    if not filled.any():
        raise ValueError("the calibration error of no images is undefined: give at least one probability")
    distance = np.abs(table.mean_prob[filled] - table.observed[filled])
    return float(np.average(distance, weights=table.counts[filled]))


def brier_score(prob: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean squared difference between probability and label, 0 best (Brier 1950).

    Args:
        prob: float [n] within [0, 1].
        labels: [n], 0 or 1.

    Raises:
        ValueError: if there are no images, or as `check_predictions`.
    """
    scores, truth = check_predictions(prob, labels)
    if scores.size == 0:
        raise ValueError("the Brier score of no images is undefined: give at least one probability")
    return float(np.mean((scores - truth) ** 2))


def reliability_table(prob: npt.ArrayLike, labels: npt.ArrayLike, bins: int = CALIBRATION_BINS) -> ReliabilityTable:
    """Return the reliability diagram as numbers: count, mean probability and observed frequency of each bin.

    Args:
        prob: float [n] within [0, 1], the probability of the positive class.
        labels: [n], 0 or 1.
        bins: number of equal-width bins.

    Raises:
        ValueError: if `bins` is not positive, or as `check_predictions`.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    scores, truth = check_predictions(prob, labels)
    number = bin_of(scores, bins)
    counts = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_prob = np.bincount(number, weights=scores, minlength=bins) / counts
        observed = np.bincount(number, weights=truth, minlength=bins) / counts
    edges = np.linspace(0.0, 1.0, bins + 1)
    return ReliabilityTable(edges=edges, counts=counts, mean_prob=mean_prob, observed=observed)


def bin_of(prob: npt.NDArray[np.float64], bins: int) -> npt.NDArray[np.int64]:
    """Return the number of the equal-width bin of each probability, [n]; bin b is [b / bins, (b + 1) / bins)."""
    return np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], prob, side="right")


def check_predictions(
    prob: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return probabilities and labels as float64 [n] and int64 [n], or refuse invalid values.

    Raises:
        ValueError: if the lengths differ, a probability is not finite or outside [0, 1], or a label is neither 0 nor 1.
    """
    scores, truth = _check_pair(prob, labels, "prob")
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        raise ValueError(f"prob must lie within [0, 1], got {scores.min()} to {scores.max()}: pass sigmoid(logit)")
    return scores, truth


def _check_pair(
    values: npt.ArrayLike, labels: npt.ArrayLike, name: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    scores, truth = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise ValueError(f"{name} and labels must be [n] of one length, got {scores.shape} and {truth.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{name} holds {np.sum(~np.isfinite(scores))} values that are not finite: leave out failed rows"
        )
    if not ((truth == 0) | (truth == 1)).all():
        raise ValueError("labels must be 0 or 1: leave out the images whose label is not known")
    return scores, truth.astype(np.int64)
