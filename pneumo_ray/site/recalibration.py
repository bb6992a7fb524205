"""The map from a model's probability to that of a site, as scoring applies it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.special import logit as log_odds

Floats = NDArray[np.float64]
Method = Literal["none", "intercept", "intercept_and_slope", "isotonic"]

METHODS: tuple[Method, ...] = ("none", "intercept", "intercept_and_slope", "isotonic")
"""From the simplest."""
EDGE = float(np.finfo(np.float32).eps) / 2
"""Probabilities are float32, so that one nearer to 0 or 1 cannot be distinguished from it."""


@dataclass(frozen=True)
class Recalibration:
    """A monotone map of probabilities; the default changes nothing."""

    method: Method = "none"
    slope: float = 1.0
    """`prob_site = sigmoid(slope * logit(prob_mean) + intercept)`."""
    intercept: float = 0.0
    knots: tuple[float, ...] = ()
    """Of `isotonic`: logits of `prob_mean`, ascending; linear in between and constant beyond."""
    values: tuple[float, ...] = ()
    """Of `isotonic`: `prob_site` at the knots."""

    def prob(self, prob: Floats) -> Floats:
        """Return probabilities for the site, of any shape."""
        if self.method == "none":
            return prob
        x = logit_of(prob)
        if self.method == "isotonic":
            return np.interp(x, self.knots, self.values)
        moved: Floats = expit(self.slope * x + self.intercept)
        return moved


def logit_of(prob: Floats) -> Floats:
    """Return the log odds of float32 probabilities, finite at 0 and 1 as well."""
    result: Floats = log_odds(np.clip(prob, EDGE, 1 - EDGE))
    return result
