"""Whether the uncertainty of a map marks the places where another training would give another map.

In each image, cells are ranked by the standard deviation of one model's map and by the difference of two other models' maps,
that differ in nothing but their seed; Spearman's correlation of the two is 1 where the uncertainty orders the cells
perfectly. A standard deviation is large where evidence is, and so are differences: the mean map is the baseline.
Cells below a thousandth of the image's largest value count as equal: passes leave exact zeros there, closed forms do not.
Most cells of most images have no evidence, and so no deviation and no difference: a correlation over all cells is high
for whatever knows where the evidence is. Whether it knows more is seen over the cells with evidence alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pneumo_ray.evaluate.influence import Influence
from pneumo_ray.evaluate.intervals import MIN_PATIENTS, reach_of
from pneumo_ray.evaluate.metrics import number_groups

Floats = NDArray[np.float64]
Maps = NDArray[np.float32]

FLOOR = 1e-3
"""Share of an image's largest value below which cells count as equal."""
EVIDENCE = 0.1
"""Share of an image's largest value from which one of the two seeds' maps has evidence in a cell."""
MIN_CELLS = 5
"""Fewest cells over which a correlation says something."""


@dataclass(frozen=True)
class Estimate:
    """A mean over images with a 95 % interval over patients."""

    value: float | None
    interval: tuple[float, float] | None
    n: int
    """Images of which it is the mean."""


@dataclass(frozen=True)
class MapReliability:
    """Mean rank correlations, over images, with how far the maps of two seeds differ."""

    of_std: Estimate
    """Of the standard deviation of the cells."""
    of_mean: Estimate
    """Of the mean map, the baseline."""
    above_mean: Estimate
    """Their difference, image by image."""
    within_evidence: Estimate
    """Of the standard deviation, over the cells in which one of the two seeds has evidence."""


def map_reliability(std: Maps, mean: Maps, one: Maps, other: Maps, patients: list[str | None]) -> MapReliability:
    """Measure the uncertainty of maps against the difference of two seeds' maps.

    Args:
        std: [n, h, w], standard deviation of each cell.
        mean: [n, h, w], mean of each cell.
        one: [n, h, w], map of one seed.
        other: [n, h, w], map of another.
        patients: [n]; None counts as a separate patient.
    """
    apart = np.abs(one.astype(np.float64) - other)
    of_std, of_mean = rank_correlations(std, apart), rank_correlations(mean, apart)
    highest = np.maximum(one, other)
    evidence = highest >= EVIDENCE * np.maximum(highest.max((1, 2), keepdims=True), np.finfo(np.float32).tiny)
    within = [
        rank_correlations(a[kept][None, None], b[kept][None, None])[0] if kept.sum() >= MIN_CELLS else np.nan
        for a, b, kept in zip(std, apart, evidence, strict=True)
    ]
    return MapReliability(
        of_std=mean_by_patient(of_std, patients),
        of_mean=mean_by_patient(of_mean, patients),
        above_mean=mean_by_patient(of_std - of_mean, patients),
        within_evidence=mean_by_patient(np.array(within), patients),
    )


def rank_correlations(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """Return Spearman's correlation over the cells of each image, [n]; NaN where one of the two is constant.

    Args:
        a: [n, h, w], not negative.
        b: [n, h, w], not negative.
    """
    flat = [values.reshape(len(values), -1) for values in (a, b)]
    ranks = [rankdata(np.where(v < FLOOR * v.max(1, keepdims=True), 0, v), axis=1) for v in flat]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return found


def mean_by_patient(values: Floats, patients: list[str | None]) -> Estimate:
    """Return the mean of the values that are numbers, with an interval from `MIN_PATIENTS` patients on."""
    known = np.isfinite(values)
    kept, count = values[known], int(known.sum())
    if not count:
        return Estimate(None, None, 0)
    value = float(kept.mean())
    patient_of, num_patients = number_groups([p for p, there in zip(patients, known, strict=True) if there])
    of_patient = np.bincount(patient_of, weights=(kept - value) / count, minlength=num_patients).astype(np.float64)
    reach = None if num_patients < MIN_PATIENTS else reach_of(Influence(value, of_patient))
    return Estimate(value, None if reach is None else (value - reach, value + reach), count)
