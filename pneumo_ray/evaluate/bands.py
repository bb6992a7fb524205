"""A band around a whole ROC curve: a bootstrap that draws whole patients (Efron and Tibshirani 1993).

At each false positive rate the sensitivity depends on a threshold that is itself estimated, which no derivative of counts
follows; intervals of numbers are those of `intervals`.
"""

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pneumo_ray.evaluate.intervals import LEVEL, MIN_PATIENTS
from pneumo_ray.evaluate.metrics import number_groups

Floats = NDArray[np.float64]
_BINS = 512


def roc_band(
    label: NDArray[np.int64],
    prob: Floats,
    groups: Iterable[Hashable],
    grid: Floats,
    *,
    num_resamples: int = 500,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Floats, Floats] | None:
    """Return the pointwise percentile band of sensitivity at each false positive rate.

    A resample is a count for each patient; curves are evaluated at 512 quantiles of the scores, so the cost is
    one sparse product whatever the number of images. The lower end is at most the exact one (Clopper and Pearson 1934) of
    as many patients as have a positive, none of them missed.

    Args:
        label: [n], 0 or 1, both present.
        prob: [n].
        groups: [n] patients; None or NaN counts as a separate patient.
        grid: [g] false positive rates, ascending.
        num_resamples: bootstrap resamples.
        seed: the same seed draws the same patients.
        level: coverage at each rate, within (0, 1).

    Returns:
        (low, high), each [g]; None with fewer than `MIN_PATIENTS` patients.
    """
    group_of, num_groups = number_groups(groups)
    if num_groups < MIN_PATIENTS:
        return None
    cuts = np.unique(np.quantile(prob, np.linspace(0, 1, _BINS + 1)[1:-1], method="nearest"))
    bin_of = np.searchsorted(cuts, prob, side="right")
    num_bins = len(cuts) + 1
    cells = (np.ones(len(prob)), (group_of, bin_of + num_bins * label))
    counts = csr_array(cells, shape=(num_groups, 2 * num_bins))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(num_resamples):
        negative, positive = (rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups)) @ counts).reshape(
            2, num_bins
        )
        if negative.any() and positive.any():
            # From the highest bin down: the shares above a threshold at the lower edge of each bin.
            false, true = (np.concatenate(([0.0], np.cumsum(c[::-1]) / c.sum())) for c in (negative, positive))
            drawn.append(np.interp(grid, false, true))
    tail = (1 - level) / 2
    low, high = np.quantile(np.array(drawn), [tail, 1 - tail], axis=0)
    never_missed = tail ** (1 / np.count_nonzero(np.bincount(group_of[label == 1])))
    return np.where(grid < 1, np.minimum(low, never_missed), low), high
