"""Proper scores against labels that are probabilities: the score that the answer of a reader is expected to give.

With a label t an image's answer is pneumonia with the probability t. The expected score is least where the probability is
t (Gneiting and Raftery 2007, JASA 102:359), and is not 0 there: what the readers disagree about cannot be foretold.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from pneumo_ray.evaluate.influence import Influence
from pneumo_ray.evaluate.intervals import MIN_PATIENTS, Interval, log_interval, reach_of
from pneumo_ray.evaluate.metrics import number_groups
from pneumo_ray.evaluate.scores import Scores

Floats = NDArray[np.float64]

_SMALLEST = float(np.finfo(np.float64).eps)
"""Probability of an answer below which the log loss takes this one, as scikit-learn does."""


@dataclass(frozen=True)
class AgainstReaders:
    """A model against the answers of the readers of an image, one drawn at random; 95 % intervals over patients."""

    images: int
    """That somebody read."""
    readers: float
    """Mean number of readers of an image."""
    log_loss: float
    """In nats."""
    log_loss_interval: Interval | None
    """None, like the other, with fewer than `intervals.MIN_PATIENTS` patients."""
    log_loss_least: float
    """What the share of the answers itself would have: the readers' doubt."""
    brier: float
    brier_interval: Interval | None
    brier_least: float


def against_readers(labelled: Scores, prob: Floats) -> AgainstReaders | None:
    """Measure a model against the answers of readers; None where no image was read.

    Args:
        labelled: joined with `label_soft` and `num_readers` of the manifest, as far as it has them.
        prob: [n].
    """
    if "num_readers" not in labelled.table.column_names:
        return None
    readers = labelled.numbers("num_readers")
    read = readers > 0
    if not read.any():
        return None
    target, p = labelled.numbers("label_soft")[read], np.clip(prob[read], _SMALLEST, 1 - _SMALLEST)
    patient_of, count = number_groups(np.array(labelled.table["patient_id"].to_pylist(), object)[read].tolist())
    losses = {
        "log_loss": -target * np.log(p) - (1 - target) * np.log1p(-p),
        "brier": target * (1 - prob[read]) ** 2 + (1 - target) * prob[read] ** 2,
    }

    def interval(loss: Floats) -> Interval | None:
        if count < MIN_PATIENTS:
            return None
        moved = np.bincount(patient_of, weights=(loss - loss.mean()) / len(loss)).astype(np.float64)
        reach = reach_of(Influence(float(loss.mean()), moved))
        return None if reach is None else log_interval(float(loss.mean()), reach)

    return AgainstReaders(
        images=len(target),
        readers=float(readers[read].mean()),
        log_loss=float(losses["log_loss"].mean()),
        log_loss_interval=interval(losses["log_loss"]),
        log_loss_least=float(-np.mean(xlogy(target, target) + xlogy(1 - target, 1 - target))),
        brier=float(losses["brier"].mean()),
        brier_interval=interval(losses["brier"]),
        brier_least=float(np.mean(target * (1 - target))),
    )


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
