"""Does a probability mean what it says: temperature scaling, calibration error (Guo et al. 2017, arXiv 1706.04599)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
CALIBRATION_BINS = 15
"""Equal-width bins of [0, 1] of a calibration error."""


@dataclass(frozen=True)
class ReliabilityTable:
    """How often each level of probability came true; bin b is [edges[b], edges[b + 1]), the last one closed."""

    edges: npt.NDArray[np.float64]
    """[bins + 1] equally spaced from 0 to 1."""
    counts: npt.NDArray[np.int64]
    """[bins] images in each bin."""
    mean_prob: npt.NDArray[np.float64]
    """[bins] mean predicted probability; NaN where the bin is empty."""
    observed: npt.NDArray[np.float64]
    """[bins] share of positive labels; NaN where the bin is empty."""


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the temperature T that minimises the mean negative log likelihood of `sigmoid(logit / T)`.

    The likelihood is convex in 1/T, so its slope has at most one root, and that root is found directly: more exact
    than a search for the minimum, whose neighbourhood is flat. Fit on validation, never on test.

    Args:
        logits: float [n], the model's raw scores for pneumonia.
        labels: [n], 0 normal or 1 pneumonia.

    Returns:
        T within [`MIN_TEMPERATURE`, `MAX_TEMPERATURE`]. A bound itself means that the data name no finite optimum:
        perfectly separated labels ask for T -> 0, logits no better than chance for T -> infinity. Exactly 1.0 (leave
        the model as it is) where there is nothing to fit: one class only, no images, or all logits zero.

    Raises:
        ValueError: if a logit is not finite, a label is neither 0 nor 1, or the lengths differ.
    """
    scores, truth = _check_pair(logits, labels, "logits")
    if truth.size == 0 or truth.min() == truth.max() or not scores.any():
        return 1.0
    margin = np.where(truth == 1, scores, -scores)

    def slope(log_temperature: float) -> float:
        # d NLL / d(1/T) = -mean(m * sigmoid(-m/T)), m the signed margin: no difference of near-equal numbers.
        return float(-np.mean(margin * expit(-margin * np.exp(-log_temperature))))

    coldest, hottest = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
    if slope(coldest) <= 0:
        return MIN_TEMPERATURE
    if slope(hottest) >= 0:
        return MAX_TEMPERATURE
    return float(np.exp(brentq(slope, coldest, hottest, xtol=1e-12)))


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
    """Return probabilities and labels as float64 [n] and int64 [n], or refuse what no metric could mean.

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
