"""How far readers agree beyond chance: Cohen's, Fleiss' and Krippendorff's coefficients, with intervals over patients.

Every coefficient is a function of sums over images, so that its derivative by the weight of a patient gives its interval
as in `evaluate.intervals`: images of one child are not independent. Where nearly all images belong to one class, chance
alone agrees nearly always, and a kappa is small however few answers differ (Feinstein and Cicchetti 1990, J Clin Epidemiol
43:543); the observed agreement, and PABAK, which is a function of it, stand beside each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.evaluate.influence import Influence
from pneumo_ray.evaluate.intervals import MIN_PATIENTS, Interval, fisher_interval, proportion_interval, reach_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STEP = 1e-20
"""Of the complex-step derivative, which has no rounding error."""


@dataclass(frozen=True)
class Estimate:
    """A coefficient with its 95 % interval over patients."""

    value: float | None
    """None where it is undefined: no image, or, for a coefficient, one answer alone."""
    interval: Interval | None = None
    """None with fewer than `intervals.MIN_PATIENTS` patients, and where nothing was seen to vary."""


@dataclass(frozen=True)
class Agreement:
    """How far some answers agree."""

    images: int
    """With at least two answers, which all of these numbers are about."""
    observed: Estimate
    """Share of the pairs of answers about an image that are equal."""
    expected: float | None
    """The same by chance, as the coefficient defines it."""
    coefficient: Estimate
    """`(observed - expected) / (1 - expected)`: 1 for full agreement, 0 for that of chance."""
    pabak: Estimate
    """`2 observed - 1`: the coefficient if both answers were equally frequent (Byrt, Bishop and Carlin 1993)."""
    positive: float | None
    """Specific agreement: given one answer pneumonia, the share of the other answers that are."""
    negative: float | None
    """The same of normal."""


def cohen(votes: Floats, patient_of: Ints) -> Agreement:
    """Return Cohen's kappa (1960, Educ Psychol Meas 20:37) of two readers.

    Args:
        votes: [images, 2], 0 or 1; NaN for no answer. Images with both answers count.
        patient_of: [images], patients numbered from 0.
    """
    both = ~np.isnan(votes).any(1)
    first, second = votes[both].T
    cells = np.stack([(1 - first) * (1 - second), (1 - first) * second, first * (1 - second), first * second], 1)

    def expected(sums: Floats) -> Floats:
        d, c, b, a = sums
        return ((a + b) * (a + c) + (c + d) * (b + d)) / (a + b + c + d) ** 2

    def observed(sums: Floats) -> Floats:
        return (sums[0] + sums[3]) / sums.sum()

    agreeing = np.stack([cells[:, 3], cells[:, 1] + cells[:, 2], cells[:, 0]], 1)
    return _agreement(cells, observed, expected, agreeing, patient_of[both])


def fleiss(votes: Floats, patient_of: Ints) -> Agreement:
    """Return Fleiss' kappa (1971, Psychol Bull 76:378) of images that all readers answered.

    Args:
        votes: [images, readers], 0 or 1; NaN for no answer.
        patient_of: [images], patients numbered from 0.
    """
    complete = ~np.isnan(votes).any(1)
    ill, answers = votes[complete].sum(1), float(votes.shape[1])
    return _multi(ill, np.full(len(ill), answers), patient_of[complete], bias=False)


def krippendorff(votes: Floats, patient_of: Ints) -> Agreement:
    """Return Krippendorff's alpha (nominal; Hayes and Krippendorff 2007, Commun Methods Meas 1:77), which allows for gaps.

    Args:
        votes: [images, readers], 0 or 1; NaN for no answer. Images with two answers or more count.
        patient_of: [images], patients numbered from 0.
    """
    answers = np.count_nonzero(~np.isnan(votes), 1).astype(np.float64)
    several = answers >= 2
    return _multi(np.nansum(votes[several], 1), answers[several], patient_of[several], bias=True)


def _multi(ill: Floats, answers: Floats, patient_of: Ints, *, bias: bool) -> Agreement:
    """Return the agreement of any number of answers [images], `ill` of which are pneumonia.

    The coincidences of an image are its ordered pairs of answers over (answers - 1), so that each answer counts once.
    Krippendorff's expected agreement is that of pairs of answers drawn without replacement (`bias`), Fleiss' with it.
    """
    well = answers - ill
    rest = answers - 1
    agreeing = np.stack([ill * (ill - 1), 2 * ill * well, well * (well - 1)], 1) / rest[:, None]
    ill_of, differ_of, well_of = 0, 1, 2

    def expected(sums: Floats) -> Floats:
        total = sums.sum()
        share = (sums[ill_of] + sums[differ_of] / 2) / total
        by_chance: Floats = 1 - 2 * share * (1 - share)
        return by_chance

    def unbiased(sums: Floats) -> Floats:
        total = sums.sum()
        return 1 - (1 - expected(sums)) * total / (total - 1)

    def observed(sums: Floats) -> Floats:
        return (sums[ill_of] + sums[well_of]) / sums.sum()

    return _agreement(agreeing, observed, unbiased if bias else expected, agreeing, patient_of, expected)


OfSums = Callable[[Floats], Floats]


def _agreement(
    addends: Floats,
    observed: OfSums,
    expected: OfSums,
    agreeing: Floats,
    patient_of: Ints,
    for_derivative: OfSums | None = None,
) -> Agreement:
    """Return the agreement that follows from sums over images.

    Args:
        addends: [images, k], of which `observed` and `expected` take the sums.
        observed: share of equal pairs.
        expected: the same by chance.
        agreeing: [images, 3], the weight of pairs that are both pneumonia, that differ, and that are both normal.
        patient_of: [images].
        for_derivative: `expected` without the correction for a finite number, whose derivatives sum to 0.
    """
    sums = addends.sum(0)
    if not len(addends):
        nothing = Estimate(None)
        return Agreement(0, nothing, None, nothing, nothing, None, None)
    share, chance = float(observed(sums)), float(expected(sums))

    def coefficient(at: Floats) -> Floats:
        by_chance = (for_derivative or expected)(at)
        return (observed(at) - by_chance) / (1 - by_chance)

    both_ill, differ, both_well = agreeing.sum(0)
    value = (share - chance) / (1 - chance) if chance < 1 else None
    moved = _of_patient(addends, sums, coefficient, patient_of) if chance < 1 else None
    interval = _share_interval(agreeing, patient_of)
    scaled = None if interval is None else (2 * interval[0] - 1, 2 * interval[1] - 1)
    return Agreement(
        images=len(addends),
        observed=Estimate(share, interval),
        expected=chance,
        coefficient=Estimate(value, _coefficient_interval(value, moved)),
        pabak=Estimate(2 * share - 1, scaled),
        positive=_specific(both_ill, differ),
        negative=_specific(both_well, differ),
    )


def _specific(agree: float, differ: float) -> float | None:
    """Return the specific agreement of a class from the weights of pairs (Cicchetti and Feinstein 1990)."""
    of_class = 2 * agree + differ
    return float(2 * agree / of_class) if of_class else None


def _of_patient(addends: Floats, sums: Floats, coefficient: OfSums, patient_of: Ints) -> Floats:
    """Return the derivative of a coefficient by the weight of each patient, [patients]."""
    axes = np.eye(len(sums))
    slope = np.array([np.imag(coefficient(sums + 1j * _STEP * axis)) / _STEP for axis in axes])
    _, patient = np.unique(patient_of, return_inverse=True)
    moved: Floats = np.bincount(patient, weights=addends @ slope).astype(np.float64)
    return moved


def _coefficient_interval(value: float | None, of_patient: Floats | None) -> Interval | None:
    if value is None or of_patient is None or len(of_patient) < MIN_PATIENTS:
        return None
    reach = reach_of(Influence(value, of_patient))
    return None if reach is None else fisher_interval(value, reach)


def _share_interval(agreeing: Floats, patient_of: Ints) -> Interval | None:
    """Return the interval of the observed agreement: a proportion of weights, which differ as their patients do."""
    _, patient = np.unique(patient_of, return_inverse=True)
    right, total = (
        np.bincount(patient, weights=weight) for weight in (agreeing[:, 0] + agreeing[:, 2], agreeing.sum(1))
    )
    return proportion_interval(right, total)
