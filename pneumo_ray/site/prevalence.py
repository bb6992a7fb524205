"""How common pneumonia is among images without labels, from their probabilities (Saerens, Latinne and Decaestecker 2002).

Where only the share of pneumonia differs from the labelled images, and not how pneumonia looks, the likelihood of the
share q among scores with calibrated odds is that of a mixture of two known densities. It is concave in q, and the EM
algorithm climbs to its only maximum; here the root of its derivative is taken. The interval is a percentile bootstrap over
patients of both sets, which refits the calibration, because that is not known exactly either.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pneumo_ray.evaluate.intervals import LEVEL
from pneumo_ray.site.labels import Labelled
from pneumo_ray.site.recalibration import Recalibration
from pneumo_ray.site.recalibration_fit import fit
from pneumo_ray.site.threshold import Share, clopper_pearson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAWS = 300
_BINS = 2000
"""Probabilities are counted in as many bins of equal width, so that a million images cost as much as a thousand."""
_MIN_PATIENTS = 20
"""Patients without a label below which their prevalence is not estimated."""


@dataclass(frozen=True)
class Prevalence:
    """Share of pneumonia, with a 95 % interval."""

    value: float
    low: float
    high: float
    source: str
    """unlabelled (estimated from scores), labelled (counted), or given."""
    images: int
    """That it was estimated on; 0 where it was given."""


def mixture_share(prob: Floats, share_labelled: float, weights: Floats | None = None) -> float:
    """Return the share of positives under which these probabilities are most likely, within [0, 1].

    Args:
        prob: [n], calibrated where the share of positives is `share_labelled`.
        share_labelled: within (0, 1).
        weights: [n], how often each counts; None for once.
    """
    p = np.clip(prob, 1e-9, 1 - 1e-9)
    gain = p / (1 - p) * (1 - share_labelled) / share_labelled - 1  # likelihood ratio less 1
    w = np.ones(len(p)) if weights is None else weights

    def slope(q: float) -> float:
        return float(np.sum(w * gain / (1 + q * gain)))

    if slope(0.0) <= 0:
        return 0.0
    if slope(1.0) >= 0:
        return 1.0
    return float(brentq(slope, 0.0, 1.0, xtol=1e-6))


def estimate_prevalence(
    unlabelled: Floats, patient_of: Ints, data: Labelled, chosen: Recalibration, seed: int
) -> Prevalence | None:
    """Estimate the share of pneumonia among images without a label.

    Args:
        unlabelled: [m], their `prob_mean`.
        patient_of: [m], their patients.
        data: the labelled images, which the recalibration was fitted on.
        chosen: the recalibration.
        seed: of the bootstrap.

    Returns:
        None of fewer than 20 patients.
    """
    patients, of = np.unique(patient_of, return_inverse=True)
    if len(patients) < _MIN_PATIENTS:
        return None
    bin_of = np.minimum((unlabelled * _BINS).astype(np.int64), _BINS - 1)
    sums = np.bincount(bin_of, weights=unlabelled, minlength=_BINS)
    counts = np.bincount(bin_of, minlength=_BINS)
    filled = counts > 0
    centres: Floats = sums[filled] / counts[filled]
    value = mixture_share(chosen.prob(centres), float(data.label.mean()), counts[filled].astype(np.float64))
    rng = np.random.default_rng(seed)
    known, known_of = np.unique(data.patient_of, return_inverse=True)
    rows_of = [np.flatnonzero(known_of == number) for number in range(len(known))]
    drawn = []
    for _ in range(DRAWS):
        again = data.where(np.concatenate([rows_of[k] for k in rng.integers(len(known), size=len(known))]))
        if not 0 < again.label.sum() < len(again):
            continue
        times = np.bincount(rng.integers(len(patients), size=len(patients)), minlength=len(patients))[of]
        weights: Floats = np.bincount(bin_of, weights=times, minlength=_BINS)[filled].astype(np.float64)
        refitted = fit(chosen.method, again.prob, again.label)
        drawn.append(mixture_share(refitted.prob(centres), float(again.label.mean()), weights))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Prevalence(value, min(float(low), value), max(float(high), value), "unlabelled", len(unlabelled))


def counted_prevalence(data: Labelled) -> Prevalence:
    """Return the share of pneumonia among labelled patients.

    Args:
        data: one image of each patient and class.
    """
    found, number = int(data.label.sum()), len(data)
    low, high = clopper_pearson(found, number)
    return Prevalence(found / number, low, high, "labelled", number)


@dataclass(frozen=True)
class PredictiveValues:
    """What a call means at a prevalence; intervals take the worst and the best ends of all that goes in."""

    positive: float | None
    """Share of pneumonia among those called pneumonia."""
    positive_interval: tuple[float, float]
    negative: float | None
    """Share of normals among those called normal."""
    negative_interval: tuple[float, float]
    missed: float
    """Of 1,000 patients, those with pneumonia who are called normal."""
    missed_interval: tuple[float, float]
    alarms: float
    """Of 1,000 patients, those without pneumonia who are called pneumonia."""
    alarms_interval: tuple[float, float]


def predictive_values(
    sensitivity: Share, specificity: Share, prevalence: Prevalence, expected_sensitivity: float | None = None
) -> PredictiveValues:
    """Return the predictive values by Bayes' rule, and what happens to 1,000 patients.

    Args:
        sensitivity: with its interval.
        specificity: likewise.
        prevalence: likewise.
        expected_sensitivity: to be taken instead of the share of `sensitivity`, within its interval.
    """
    ends = [
        _bayes(se, sp, q)
        for se in (sensitivity.low, sensitivity.high)
        for sp in (specificity.low, specificity.high)
        for q in (prevalence.low, prevalence.high)
    ]
    se, sp = sensitivity.value if expected_sensitivity is None else expected_sensitivity, specificity.value
    middle = _bayes(0.0 if se is None else se, 0.0 if sp is None else sp, prevalence.value)
    spans = []
    for place in range(4):
        known = [value for end in ends if (value := end[place]) is not None]
        spans.append((min(known, default=0.0), max(known, default=1.0)))
    return PredictiveValues(middle[0], spans[0], middle[1], spans[1], middle[2], spans[2], middle[3], spans[3])


def _bayes(se: float, sp: float, q: float) -> tuple[float | None, float | None, float, float]:
    """Return both predictive values, and the missed and the alarms in 1,000."""
    ill, alarm, missed, cleared = se * q, (1 - sp) * (1 - q), (1 - se) * q, sp * (1 - q)
    return (
        ill / (ill + alarm) if ill + alarm else None,
        cleared / (cleared + missed) if cleared + missed else None,
        1000 * missed,
        1000 * alarm,
    )
