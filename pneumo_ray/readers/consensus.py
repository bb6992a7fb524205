"""One label from the answers of several readers: a majority, a mean, or what the readers' own errors make likely.

Dawid and Skene (1979, Applied Statistics 28:20): each reader has a probability of each answer given the true class, and
the classes are not known; expectation maximisation finds both. A reader who contradicts the others counts for less.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pneumo_ray.data.config import Consensus

Floats = NDArray[np.float64]

ITERATIONS = 1000
TOLERANCE = 1e-10
"""Of the classes' probabilities, below which expectation maximisation ends."""
_TINY = 1e-10
"""Probability of an answer that a reader never gave."""


@dataclass(frozen=True)
class Skill:
    """How the readers answer, as Dawid and Skene estimate it; NaN for a reader without an answer about a class."""

    prevalence: float
    """Share of pneumonia among the images."""
    sensitivity: Floats
    """[readers], probability of the answer pneumonia about an image with it."""
    specificity: Floats
    """[readers], probability of the answer normal about an image without it."""


def consensus_of(votes: Floats, how: Consensus) -> Floats:
    """Return the probability of pneumonia that the readers' answers give to each image.

    Args:
        votes: [images, readers], 0 or 1; NaN for no answer.
        how: `majority` gives 0, 1, or 0.5 for a tie; `mean` the share of the answers; `dawid-skene` the posterior.

    Returns:
        [images] within [0, 1]; NaN without an answer.
    """
    if how == "dawid-skene":
        return dawid_skene(votes)[0]
    share = vote_share(votes)
    return share if how == "mean" else np.where(np.isnan(share), np.nan, (np.sign(share - 0.5) + 1) / 2)


def vote_share(votes: Floats) -> Floats:
    """Return the share of the answers that are pneumonia, [images]; NaN without an answer."""
    with np.errstate(invalid="ignore"):
        return np.nansum(votes, 1) / np.count_nonzero(~np.isnan(votes), 1)


def dawid_skene(votes: Floats) -> tuple[Floats, Skill]:
    """Return the posterior probability of pneumonia of each image, and the readers' skill.

    Expectation maximisation from the share of the votes, without a prior. The likelihood of two readers alone does not
    determine their skill; three who read the same images are the fewest for which it does.

    Args:
        votes: [images, readers], 0 or 1; NaN for no answer.

    Returns:
        [images], NaN without an answer; and the skill.
    """
    said = np.stack([votes == 0, votes == 1]).astype(np.float64)  # [answer, images, readers]
    read = np.count_nonzero(~np.isnan(votes), 1) > 0
    posterior = np.where(read, vote_share(votes), 0.0)
    for _ in range(ITERATIONS):
        prevalence, given = _skill(said, posterior, read)
        log_given = np.log(np.maximum(given, _TINY))
        ratio = np.nan_to_num(log_given[1] - log_given[0])  # [answer, readers]
        log_odds = np.log(prevalence) - np.log1p(-prevalence) if 0 < prevalence < 1 else np.inf * (prevalence - 0.5)
        before, posterior = posterior, np.where(read, expit(log_odds + np.einsum("air,ar->i", said, ratio)), 0.0)
        if np.abs(posterior - before).max(initial=0.0) < TOLERANCE:
            break
    prevalence, given = _skill(said, posterior, read)
    return np.where(read, posterior, np.nan), Skill(prevalence, given[1, 1], given[0, 0])


def _skill(said: Floats, posterior: Floats, read: NDArray[np.bool_]) -> tuple[float, Floats]:
    """Return the prevalence, and the probability of each answer given each class, [class, answer, readers]."""
    of_class = np.stack([np.where(read, 1 - posterior, 0.0), posterior])  # [class, images]
    counts = np.einsum("ci,air->car", of_class, said)
    with np.errstate(invalid="ignore"):
        given = counts / counts.sum(1, keepdims=True)
    return float(posterior.sum() / max(np.count_nonzero(read), 1)), given
