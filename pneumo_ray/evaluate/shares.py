"""The mean over images of a share between 0 and 1, beside what chance gives, with intervals over patients.

Images of one patient are correlated, so patients are the units, as in `intervals`: a share of images that have a property
takes the exact interval of their effective sample size, a mean of other shares the jackknife with Student's t, on the
scale of the logit. The difference from chance is paired: each image has a chance of its own.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from pneumo_ray.evaluate.influence import Influence
from pneumo_ray.evaluate.intervals import MIN_PATIENTS, Interval, proportion_interval, reach_of
from pneumo_ray.evaluate.metrics import number_groups

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A share between 0 and 1 beside what chance gives; None where undefined."""

    n: int
    """Images."""
    patients: int
    value: float | None
    interval: Interval | None
    """95 %, over patients."""
    chance: float | None


@dataclass(frozen=True)
class MeanShare(Share):
    """The mean of a share over images."""

    above_chance: float | None
    """Mean of the differences over the images whose chance is known."""
    above_chance_interval: Interval | None


def mean_share(values: Floats, patients: Sequence[Hashable], chance: Floats | None = None) -> MeanShare:
    """Return the mean of a share over images, and how far it lies above chance.

    Args:
        values: [n] within 0 and 1; NaN where it is undefined, which leaves the image out. Only 0 and 1 if it is a property.
        patients: [n] ids; None counts as a separate patient.
        chance: [n], what chance gives for each image; None or NaN where that is not known.

    Returns:
        `chance` is the mean over the images where it is known. No interval is given with fewer than `MIN_PATIENTS` patients,
        or where nothing varies.
    """
    known = np.isfinite(values)
    patient_of, _ = number_groups([patients[row] for row in np.flatnonzero(known).tolist()])
    seen = values[known].astype(np.float64)
    value, interval = _with_interval(seen, patient_of)
    expectation = above = above_interval = None
    if chance is not None and (both := np.isfinite(expected := chance[known])).any():
        expectation = float(expected[both].mean())
        differences = seen[both] - expected[both]
        above = float(differences.mean())
        reach = _reach(differences, patient_of[both])
        if reach is not None:
            above_interval = above - reach, above + reach
    return MeanShare(len(seen), len(np.unique(patient_of)), value, interval, expectation, above, above_interval)


def on_logit(value: float, reach: float | None) -> Interval | None:
    """Return the interval of a share that is symmetric on the logit, from what it reaches on its own scale."""
    if reach is None or not 0 < value < 1:
        return None
    middle, reach = float(logit(value)), reach / (value * (1 - value))
    return float(expit(middle - reach)), float(expit(middle + reach))


def _with_interval(values: Floats, patient_of: NDArray[np.int64]) -> tuple[float | None, Interval | None]:
    if not len(values):
        return None, None
    value = float(values.mean())
    if np.isin(values, (0, 1)).all():
        total = np.bincount(patient_of)
        right = np.bincount(patient_of, weights=values).round().astype(np.int64)
        return value, proportion_interval(right, total)
    return value, on_logit(value, _reach(values, patient_of))


def _reach(values: Floats, patient_of: NDArray[np.int64]) -> float | None:
    """Return how far the interval of a mean reaches on each side; None with too few patients, or if nothing varies."""
    total = np.bincount(patient_of)
    if np.count_nonzero(total) < MIN_PATIENTS:
        return None
    value = float(values.mean())
    moved = np.bincount(patient_of, weights=(values - value) / len(values))[total > 0]
    return reach_of(Influence(value, moved.astype(np.float64)))
