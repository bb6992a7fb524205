"""Recalibration on local labels: which map from a model's probability to that of the site the labels support.

With few labels only the intercept can be known, with more the slope as well (Platt 1999; Steyerberg 2004, Statistics in
Medicine 23:2567), and with many any monotone map (isotonic regression: Zadrozny and Elkan 2002). The choice is by the
log loss of cross-fitting over patients, and the simplest map within one standard error of the best one is taken
(Breiman et al. 1984), so that a calibrated model is left as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.special import logit as log_odds
from sklearn.isotonic import IsotonicRegression

from pneumo_ray.evaluate.calibration import fit_calibration, platt_targets
from pneumo_ray.site.labels import Labelled
from pneumo_ray.site.recalibration import EDGE, METHODS, Floats, Method, Recalibration, logit_of

Ints = NDArray[np.int64]

FOLDS = 5


def fit(method: Method, prob: Floats, label: Ints) -> Recalibration:
    """Fit one kind of map. Labels count as `platt_targets`.

    Args:
        method: the kind.
        prob: [n], `prob_mean`.
        label: [n], 0 or 1; both classes.
    """
    return _FITS[method](logit_of(prob), label)


def _unchanged(x: Floats, label: Ints) -> Recalibration:
    return Recalibration()


def _intercept(x: Floats, label: Ints) -> Recalibration:
    """Solve mean(sigmoid(x + b)) = mean target, the optimum of the log loss in b."""
    wanted = float(platt_targets(label).mean())
    low, high = float(log_odds(wanted) - x.max()) - 1, float(log_odds(wanted) - x.min()) + 1
    found = brentq(lambda b: float(expit(x + b).mean()) - wanted, low, high)
    return Recalibration("intercept", intercept=float(found))


def _intercept_and_slope(x: Floats, label: Ints) -> Recalibration:
    found = fit_calibration(x, label)
    return Recalibration("intercept_and_slope", 1 / found.temperature, found.intercept)


def _isotonic(x: Floats, label: Ints) -> Recalibration:
    found = IsotonicRegression(out_of_bounds="clip").fit(x, platt_targets(label))
    return Recalibration(
        "isotonic",
        knots=tuple(found.X_thresholds_.astype(float).tolist()),
        values=tuple(found.y_thresholds_.astype(float).tolist()),
    )


_FITS: dict[Method, Callable[[Floats, Ints], Recalibration]] = {
    "none": _unchanged,
    "intercept": _intercept,
    "intercept_and_slope": _intercept_and_slope,
    "isotonic": _isotonic,
}


@dataclass(frozen=True)
class CrossFit:
    """A kind of map, judged on patients that it was not fitted on."""

    method: Method
    prob: Floats
    """[n], of each image, by the map that was fitted without its patient."""
    log_loss: float
    """Mean over the images, in nats."""
    excess: float
    """Mean log loss above that of the best kind."""
    excess_se: float
    """Standard error of the excess, with patients as the units."""


@dataclass(frozen=True)
class Choice:
    """The kinds of map beside one another, and the one that was taken, fitted on all labels."""

    tried: tuple[CrossFit, ...]
    chosen: Recalibration

    @property
    def cross_fitted(self) -> CrossFit:
        """What the chosen kind reaches on patients that it was not fitted on."""
        return next(found for found in self.tried if found.method == self.chosen.method)


def choose(data: Labelled, seed: int) -> Choice:
    """Choose the kind of map by cross-fitting over patients, and fit it on all labels.

    Args:
        data: labelled images, checked by `check_enough`.
        seed: of the folds.
    """
    fold_of = folds(data, seed)
    losses: dict[Method, Floats] = {}
    probs: dict[Method, Floats] = {}
    for method in METHODS:
        prob = np.empty(len(data))
        for fold in range(fold_of.max() + 1):
            inside = fold_of != fold
            prob[~inside] = fit(method, data.prob[inside], data.label[inside]).prob(data.prob[~inside])
        probs[method] = prob
        of_label = np.clip(np.where(data.label == 1, prob, 1 - prob), EDGE, None)
        losses[method] = -np.log(of_label)
    best = min(METHODS, key=lambda method: float(losses[method].mean()))
    tried = tuple(
        CrossFit(
            method, probs[method], float(losses[method].mean()), *_mean_and_error(losses[method] - losses[best], data)
        )
        for method in METHODS
    )
    simplest = next(found.method for found in tried if found.excess <= found.excess_se)
    return Choice(tried, fit(simplest, data.prob, data.label))


def folds(data: Labelled, seed: int) -> Ints:
    """Return the fold of each image, [n]: patients stay whole, and those with pneumonia are spread evenly.

    There are `FOLDS`, or fewer where a class has fewer patients, but at least 2.
    """
    patients, of = np.unique(data.patient_of, return_inverse=True)
    ill = np.bincount(of, weights=data.label) > 0
    number = int(np.clip(min(data.patients_of_class(c) for c in (0, 1)), 2, FOLDS))
    order = np.random.default_rng(seed).permutation(len(patients))
    order = order[np.argsort(ill[order], kind="stable")]
    fold = np.empty(len(patients), np.int64)
    fold[order] = np.arange(len(patients)) % number
    return fold[of]


def _mean_and_error(values: Floats, data: Labelled) -> tuple[float, float]:
    """Return the mean of [n] and its standard error over patients."""
    mean = float(values.mean())
    _, of = np.unique(data.patient_of, return_inverse=True)
    moved = np.bincount(of, weights=values - mean) / len(values)
    count = len(moved)
    return mean, float(np.sqrt(count / (count - 1) * np.sum(moved**2)))
