"""The threshold for a site, and what it reaches there with certainty.

The rule `sensitivity` takes a threshold from the order of the positives alone. The sensitivity at the k-th smallest of n
has the distribution Beta(n - k + 1, k), whose quantile is the lower end of Clopper and Pearson (1934), so that this end
is exact although the same labels chose the threshold; the negatives had no part in the choice. Under the other rules
both classes choose, and the decisions that are counted are those of thresholds that were chosen without the patient.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.evaluate.config import OperatingPointConfig
from pneumo_ray.evaluate.intervals import LEVEL, exact_interval
from pneumo_ray.evaluate.operating_point import choose_operating_point
from pneumo_ray.site.labels import Labelled
from pneumo_ray.site.recalibration_fit import folds


@dataclass(frozen=True)
class Share:
    """A share with its exact interval."""

    found: int
    of: int
    low: float
    """Lower end of the two-sided 95 % interval."""
    high: float
    at_least: float
    """Lower end of the one-sided 95 % interval."""

    @property
    def value(self) -> float | None:
        """The share itself; None of nothing."""
        return self.found / self.of if self.of else None


@dataclass(frozen=True)
class SiteThreshold:
    """A threshold on `prob_mean`, and what it reaches at the site."""

    threshold: float
    """Pneumonia is predicted where `prob_mean >= threshold`."""
    rule: str
    sensitivity: Share
    specificity: Share
    cross_fitted: bool
    """Whether the counts are of thresholds chosen without the patient; else of the threshold itself."""

    @property
    def expected_sensitivity(self) -> float:
        """The sensitivity to expect for new patients, 0 to 1.

        The rule `sensitivity` takes the threshold from the labels that it then finds, so that the share of them that it
        finds is too good: with 15 positives it is always 1. The mean of Beta(n - k + 1, k) is (n - k + 1) / (n + 1).
        """
        found = self.sensitivity
        return (found.value or 0.0) if self.cross_fitted else found.found / (found.of + 1)


def clopper_pearson(found: int, of: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper and Pearson 1934); 0 to 1 of nothing.

    Args:
        found: successes.
        of: independent trials.
        level: coverage at least.

    Raises:
        ValueError: if the counts are no part and whole.
    """
    if not 0 <= found <= of:
        raise ValueError(f"found must lie between 0 and {of}, got {found}")
    return exact_interval(found, of - found, level)


def share(found: int, of: int) -> Share:
    """Return a share with its exact intervals."""
    low, high = clopper_pearson(found, of)
    return Share(found, of, low, high, clopper_pearson(found, of, 2 * LEVEL - 1)[0])


def at_threshold(data: Labelled, threshold: float) -> tuple[Share, Share]:
    """Return sensitivity and specificity of a threshold on `prob_mean` that these images had no part in.

    Args:
        data: one image of each patient and class, `Labelled.one_per_patient`.
        threshold: pneumonia is predicted where `prob_mean >= threshold`.
    """
    return _shares(data.label, data.prob >= threshold)


def choose_threshold(data: Labelled, config: OperatingPointConfig, seed: int) -> SiteThreshold:
    """Choose the threshold on local labels.

    Args:
        data: one image of each patient and class, `Labelled.one_per_patient`.
        config: the rule.
        seed: of the folds, where the rule needs them.
    """
    point = choose_operating_point(data.prob, data.label, config)
    if config.rule == "sensitivity":
        called = data.prob >= point.threshold
    else:
        called = np.empty(len(data), bool)
        fold_of = folds(data, seed)
        for fold in range(fold_of.max() + 1):
            out = fold_of == fold
            without = choose_operating_point(data.prob[~out], data.label[~out], config)
            called[out] = data.prob[out] >= without.threshold
    return SiteThreshold(point.threshold, config.rule, *_shares(data.label, called), config.rule != "sensitivity")


def _shares(label: NDArray[np.int64], called: NDArray[np.bool_]) -> tuple[Share, Share]:
    ill, well = label == 1, label == 0
    return share(int((called & ill).sum()), int(ill.sum())), share(int((~called & well).sum()), int(well.sum()))
