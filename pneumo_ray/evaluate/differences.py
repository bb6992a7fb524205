"""Differences of a measure between two sets of scores of the same images, with patients as the units.

The paired jackknife over patients with Student's t, as in `intervals`: a patient contributes what it adds to the one measure
less what it adds to the other.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from pneumo_ray.evaluate.influence import OF_CELLS, IntArray, Predictions, influence
from pneumo_ray.evaluate.intervals import LEVEL, MIN_PATIENTS, Interval, spread_of, too_few

DIFFERENCE_METHOD = "jackknife over patients with Student's t, paired"


@dataclass(frozen=True)
class Difference:
    """The difference of a measure between two sets of scores; None where undefined or of too few patients."""

    here: float | None
    baseline: float | None
    difference: float | None = None
    """`here` minus `baseline`."""
    interval: Interval | None = None
    """None also where nothing differs, except for a proportion of which no image changed sides: as many patients bound the
    share that do."""
    p: float | None = None
    """Two-sided, of no difference; None also where nothing differs."""


def difference(name: str, here: Predictions, baseline: Predictions, level: float = LEVEL) -> Difference:
    """Return the difference of a measure between two sets of scores of the same images, with patients as the units.

    Args:
        name: of a measure out of `METHODS`.
        here: labels, probabilities and patients.
        baseline: the same images and patients, in the same order.
        level: coverage.
    """
    found, other = influence(name, here), influence(name, baseline)
    if found is None or other is None:
        known_here, known_there = (None if side is None else side.value for side in (found, other))
        return Difference(known_here, known_there)
    out = Difference(found.value, other.value, apart := found.value - other.value)
    if too_few(name, here) or (name in OF_CELLS and _bearing(name, here, baseline) < MIN_PATIENTS):
        return out
    spread = spread_of(found.of_patient - other.of_patient, max(abs(found.value), abs(other.value)))
    if spread is not None:
        error, freedom = spread
        reach = error * float(student.ppf(0.5 + level / 2, freedom))
        return replace(
            out, interval=(apart - reach, apart + reach), p=float(2 * student.sf(abs(apart) / error, freedom))
        )
    if name in ("accuracy", "recall", "specificity") and np.array_equal(_counts(name, here), _counts(name, baseline)):
        changed = 1 - ((1 - level) / 2) ** (1 / _bearing(name, here, baseline))
        return replace(out, interval=(-changed, changed))
    return out


def _bearing(name: str, here: Predictions, baseline: Predictions) -> int:
    """Count the patients with an image in the denominator of a proportion, of the set that has fewer."""
    return min(int(np.count_nonzero(_counts(name, side).any(1))) for side in (here, baseline))


def _counts(name: str, side: Predictions) -> IntArray:
    """Return the counts of each patient that a proportion is of, [patients, cells]: of the sensitivity its positives alone."""
    return side.confusion()[:, [cell for part in OF_CELLS[name] for cell in part]]
