"""Is a calibration error more than chance? A calibrated model of few images has one too, and it is not small.

The error of a bin is a sum of `probability - label`. If every label is drawn with its probability these sums have mean 0
and a known covariance. The labels of one patient are taken as drawn together (one uniform number u a patient, ill where
`u < probability`), which keeps each probability and makes the images of a patient as alike as they can be.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from pneumo_ray.evaluate.calibration import CALIBRATION_BINS, bin_of
from pneumo_ray.evaluate.influence import Predictions

FloatArray = npt.NDArray[np.float64]

NUM_DRAWS = 2000
"""Draws of the errors of all bins under calibration: a p-value near 0.05 has a standard error of 0.005."""


@dataclass(frozen=True)
class CalibrationTest:
    """An expected calibration error beside those that a calibrated model would have on the same images."""

    error: float
    """The expected calibration error, as `calibration.expected_calibration_error`."""
    expected: float
    """Mean error of a calibrated model with these probabilities and patients."""
    p: float
    """Share of calibrated models with this error or more."""
    bias: float
    """By how much the error is expected to exceed the true one, if the errors of the bins that are seen were true."""


def calibration_test(seen: Predictions, seed: int = 0, bins: int = CALIBRATION_BINS) -> CalibrationTest | None:
    """Compare the calibration error with its distribution under calibration.

    Args:
        seen: probabilities and labels; the threshold has no part in it.
        seed: of the draws.
        bins: equal-width bins.

    Returns:
        None without images.
    """
    if not (n := len(seen.prob)):
        return None
    residual = np.bincount(bin_of(seen.prob, bins), weights=seen.prob - seen.truth, minlength=bins)
    values, vectors = np.linalg.eigh(calibrated_covariance(seen, bins))
    root = vectors * np.sqrt(np.clip(values, 0, None))
    noise = np.random.default_rng(seed).normal(size=(NUM_DRAWS, bins)) @ root.T
    error, calibrated = np.abs(residual).sum() / n, np.abs(noise).sum(1) / n
    # An error of exactly 0 with probabilities of 0 and 1 has no noise to exceed: rounding must not decide.
    reached = np.count_nonzero(calibrated >= error * (1 - 1e-9) - 1e-15)
    return CalibrationTest(
        error=float(error),
        expected=float(calibrated.mean()),
        p=(1 + reached) / (1 + NUM_DRAWS),
        bias=float((np.abs(residual + noise).sum(1) / n).mean() - error),
    )


def calibrated_covariance(seen: Predictions, bins: int) -> FloatArray:
    """Return the covariance of the summed residuals of the bins under calibration, [bins, bins], exactly.

    Two labels of one patient have the covariance `min(p, q) - p q`; of different bins the lower one has the smaller
    probability, and within a bin images sorted by probability have their minimum counted by rank.
    """
    prob, of, bin_number = seen.prob, seen.patient_of, bin_of(seen.prob, bins)
    shape = (seen.num_patients, bins)
    counts = csr_array((np.ones(len(prob)), (of, bin_number)), shape=shape)
    sums = csr_array((prob, (of, bin_number)), shape=shape)
    product = (sums.T @ sums).toarray()
    upper = np.triu((sums.T @ counts).toarray() - product, 1)

    order = np.lexsort((prob, of * bins + bin_number))
    key = (of * bins + bin_number)[order]
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    size = np.diff(np.r_[first, len(key)])
    above = np.repeat(size, size) - (np.arange(len(key)) - np.repeat(first, size))  # images from each one upwards
    minima = np.bincount(bin_number[order], weights=prob[order] * (2 * above - 1), minlength=bins)
    return upper + upper.T + np.diag(minima - np.diag(product))
