"""How a raw logit becomes a calibrated probability: a slope and an intercept (Platt 1999).

The slope is kept as a temperature (Guo et al. 2017, arXiv 1706.04599), which divides the logit. The intercept puts back
the prior odds that class balancing takes out: a network trained at odds 1 where the data have 2.89 is low by ln 2.89 in
every logit, which no temperature can mend (Saerens, Latinne and Decaestecker 2002).
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.special import logit as log_odds
from torch import Tensor

from pneumo_ray.errors import ModelError

Values = TypeVar("Values", float, NDArray[np.float64], Tensor)


@dataclass(frozen=True)
class Calibration:
    """Calibrated probability of pneumonia = sigmoid(logit / temperature + intercept); the default changes nothing."""

    temperature: float = 1.0
    """Divides the raw logit; positive, so that the order of images is kept."""
    intercept: float = 0.0
    """Added after the division."""

    def __post_init__(self) -> None:
        """Refuse what gives no probability.

        Raises:
            ModelError: if the temperature is not positive and finite, or the intercept not finite.
        """
        if not 0 < self.temperature < math.inf:
            raise ModelError(
                f"temperature must be positive and finite, got {self.temperature}; calibrate again or leave it 1"
            )
        if not math.isfinite(self.intercept):
            raise ModelError(f"intercept must be finite, got {self.intercept}; calibrate again or leave it 0")

    def logit(self, raw: Values) -> Values:
        """Return calibrated logits of raw ones, of any shape."""
        return raw / self.temperature + self.intercept

    def prob(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return calibrated probabilities of raw logits, of any shape."""
        result: NDArray[np.float64] = expit(self.logit(raw))
        return result

    def raw_logit(self, prob: float) -> float:
        """Return the raw logit that has this calibrated probability; infinite at 0 and 1 and beyond."""
        return float((log_odds(min(max(prob, 0.0), 1.0)) - self.intercept) * self.temperature)
