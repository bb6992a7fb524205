"""Proper scores against labels that are probabilities: the score that the answer of a reader is expected to give.

With a label t an image's answer is pneumonia with the probability t. The expected score is least where the probability is
t (Gneiting and Raftery 2007, JASA 102:359), and is not 0 there: what the readers disagree about cannot be foretold.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SMALLEST = float(np.finfo(np.float64).eps)
"""Probability of an answer below which the log loss takes this one, as scikit-learn does."""


def soft_log_loss(prob: Floats, target: Floats, weight: Floats | None = None) -> float:
    """Return the expected log loss in nats; with labels 0 and 1, the log loss.

    Args:
        prob: [n], probability of pneumonia.
        target: [n], the label, 0 to 1.
        weight: [n], of each image; None for equal ones.
    """
    p = np.clip(prob, _SMALLEST, 1 - _SMALLEST)
    return float(np.average(-target * np.log(p) - (1 - target) * np.log1p(-p), weights=weight))


def soft_brier(prob: Floats, target: Floats, weight: Floats | None = None) -> float:
    """Return the expected Brier score, `t (1 - p)^2 + (1 - t) p^2`; with labels 0 and 1, the Brier score. Arguments as above."""
    return float(np.average(target * (1 - prob) ** 2 + (1 - target) * prob**2, weights=weight))
