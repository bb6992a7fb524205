"""Intervals for archives too large to resample: what the bootstrap over patients converges to, in closed form.

A measure that is a smooth function of sums over patients has the variance `sum_g U_g^2`, with `U_g` its derivative by the
weight of patient g (the infinitesimal jackknife: Jaeckel 1972; Efron 1981, Biometrika 68:589). For the AUC the derivative
is made of the placements of DeLong et al. 1988. One pass, no random numbers.
"""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from pneumo_ray.evaluate.metrics import BOOTSTRAP_METRICS, number_groups, rates, without_width

MAX_RESAMPLED = 50_000
"""Images up to which intervals are bootstrapped; above, the bootstrap and its limit differ by less than it varies."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_STEP = 1e-20
"""Of the complex-step derivative, which has no rounding error to balance against (Squire and Trapp 1998)."""


def linearised_intervals(
    truth: IntArray,
    prob: FloatArray,
    threshold: float,
    groups: Iterable[Hashable],
    *,
    metrics: Sequence[str] = BOOTSTRAP_METRICS,
    level: float = 0.95,
) -> dict[str, tuple[float, float] | None]:
    """Return the normal interval of each measure, with patients as the units, cut off where the measure ends.

    Args:
        truth: [n], 0 normal or 1 pneumonia.
        prob: float [n].
        threshold: an image is called pneumonia where `prob >= threshold`.
        groups: [n] patient ids; None or NaN is a patient of its own.
        metrics: names out of `BOOTSTRAP_METRICS`.
        level: coverage, within (0, 1).

    Returns:
        (low, high) for each name; None where the measure is undefined, for fewer than two patients, and for the average
        precision.
    """
    group_of, num_groups = number_groups(groups)
    out: dict[str, tuple[float, float] | None] = dict.fromkeys(metrics)
    if num_groups < 2:
        return out
    cell = 4 * group_of + 2 * truth + (prob >= threshold)
    confusion = np.bincount(cell, minlength=4 * num_groups).reshape(num_groups, 4)
    counts = confusion.sum(0).astype(np.float64)
    values = rates(*counts)
    stepped = [rates(*(counts + 1j * _STEP * (np.arange(4) == axis))) for axis in range(4)]
    reach = float(norm.ppf(0.5 + level / 2))
    for name in metrics:
        if name == "average_precision":  # its derivative is not known here
            continue
        if name == "auc":
            if not 0 < truth.sum() < len(truth):
                continue
            value, of_image = auc_influence(truth, prob)
            influence = np.bincount(group_of, weights=of_image)
        elif name == "brier":
            squared = np.bincount(group_of, weights=(prob - truth) ** 2)
            value = float(squared.sum() / len(prob))
            influence = (squared - value * confusion.sum(1)) / len(prob)
        else:
            value = float(values[name])
            influence = confusion @ np.array([float(np.imag(step[name])) / _STEP for step in stepped])
        if np.isfinite(value):
            error = reach * float(np.sqrt(np.sum(influence**2)))
            if error == 0:
                out[name] = without_width(name, value, confusion, level)
                continue
            lowest = -1.0 if name in ("kappa", "mcc") else 0.0
            out[name] = (max(value - error, lowest), min(value + error, 1.0))
    return out


def auc_difference_interval(
    truth: IntArray, prob: FloatArray, baseline: FloatArray, groups: Iterable[Hashable]
) -> list[float] | None:
    """Return the 95 % interval of the difference of two AUCs of the same images, with patients as the units.

    Args:
        truth: [n], both classes present.
        prob: float [n].
        baseline: float [n], of the same images.
        groups: [n] patient ids; None or NaN is a patient of its own.

    Returns:
        [low, high]; None for fewer than two patients.
    """
    group_of, num_groups = number_groups(groups)
    if num_groups < 2:
        return None
    (here, influence), (there, influence_there) = (auc_influence(truth, p) for p in (prob, baseline))
    of_patient = np.bincount(group_of, weights=influence - influence_there)
    error = float(norm.ppf(0.975)) * float(np.sqrt(np.sum(of_patient**2)))
    return [here - there - error, here - there + error]


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
