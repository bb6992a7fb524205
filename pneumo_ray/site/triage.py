"""Triage with a guarantee: called negative, called positive, or to be read by a person.

The promise, for each class by itself: of the images of that class that are called, at most alpha are called wrong, with
confidence 1 - delta over the draw of the local labels. It therefore holds at any prevalence, and so does the consequence
that at most alpha of all called images are wrong.

Pairs of thresholds are tested one after another, from calling few images to calling all, and the last pair before the
first that fails is taken (fixed-sequence testing of Learn-then-Test: Angelopoulos et al. 2021, arXiv 2110.01052). The
sequence depends on the scores and on the numbers of labels, never on which image has which label. Of n called images of
a class with an error of exactly alpha, the number of wrong ones is binomial, so each test is exact. The sequence has two
starts, each with half of delta: the first pair that calls enough images of both classes for a test to pass, and, because a
few confident errors end that one at once, the first pair that calls nearly all of both. How many images are called says
nothing about how many are wrong.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from pneumo_ray.site.labels import CLASS_WORDS, Labelled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STARTS = 2
_NEARLY_ALL = 0.9
STEPS = 200
"""Pairs of thresholds: the k-th calls about the share k / STEPS of the images."""
_MAX_MISSING = 100_000
"""Labels of a class beyond which no number is named."""


@dataclass(frozen=True)
class ClassCalls:
    """What triage does with the labelled images of one class, one per patient."""

    images: int
    called: int
    wrong: int
    error_at_most: float
    """Upper end of the exact one-sided interval of `wrong / called`, with confidence 1 - delta / 2, as it was tested."""


@dataclass(frozen=True)
class Triage:
    """Two thresholds on `prob_mean`, and the promise that goes with them."""

    low: float
    """Called negative where `prob_mean < low`."""
    high: float
    """Called positive where `prob_mean >= high`; in between to be read."""
    alpha: float
    delta: float
    called_share: float
    """Share of all images of the site that are called."""
    normal: ClassCalls
    pneumonia: ClassCalls


@dataclass(frozen=True)
class NoTriage:
    """Why there is no triage, and what would help."""

    reason: str
    """A sentence."""
    missing: dict[str, int] | None
    """Patients still to be labelled, `normal` and `pneumonia`; None where no number of labels helps."""


@lru_cache(maxsize=64)
def fewest_called(alpha: float, delta: float, errors: int = 0) -> int:
    """Return how many images of a class must be called for a test to pass with this many errors among them.

    Without an error it is `ln(delta) / ln(1 - alpha)`, rounded up.
    """
    number = max(errors + 1, math.ceil(math.log(delta) / math.log1p(-alpha) - 1e-12))
    while binom.cdf(errors, number, alpha) > delta:
        number += 1
    return number


def fewest_patients(alpha: float, delta: float) -> int:
    """Return how many labelled patients of each class triage needs, if no error is made."""
    return fewest_called(alpha, delta / _STARTS)


@lru_cache(maxsize=16)
def most_errors(largest: int, alpha: float, delta: float) -> Ints:
    """Return for 0, 1, ... `largest` called images the most errors with which the test passes; -1 for none.

    The test passes where `P(Binomial(n, alpha) <= errors) <= delta`.
    """
    n = np.arange(largest + 1)
    found = binom.ppf(delta, n, alpha)
    return (found - (binom.cdf(found, n, alpha) > delta)).astype(np.int64)


def triage_path(scores: Floats, share_positive: float) -> tuple[Floats, Floats]:
    """Return the pairs of thresholds, low and high, [STEPS] each, from calling few images to calling all.

    At each step the most extreme scores on both sides are called, in the proportion of the classes.

    Args:
        scores: [N], of all images, whether labelled or not.
        share_positive: of the labelled patients.
    """
    ordered = np.sort(scores)
    number, part = len(ordered), np.arange(1, STEPS + 1) / STEPS
    below = np.floor(part * (1 - share_positive) * number + 1e-9).astype(np.int64)
    above = np.floor(part * share_positive * number + 1e-9).astype(np.int64)
    below[-1] = number - above[-1]
    ends = np.append(ordered, np.inf)
    return ends[below], ends[number - above]


def find_triage(data: Labelled, scores: Floats, alpha: float, delta: float) -> Triage | NoTriage:
    """Find the pair of thresholds that calls most images under the promise.

    Args:
        data: one image of each patient and class, `Labelled.one_per_patient`.
        scores: [N], `prob_mean` of all images of the site.
        alpha: largest share of errors among the called images of each class.
        delta: probability with which the promise may fail.
    """
    sides = [np.sort(data.prob[data.label == c]) for c in (0, 1)]
    sizes = [len(side) for side in sides]
    least = fewest_patients(alpha, delta)
    if min(sizes) < least:
        return _too_few(sizes, least, alpha, delta)
    low, high = triage_path(scores, sizes[1] / sum(sizes))
    called, wrong = count_calls(sides, low, high)
    last = last_passing(called, wrong, (sizes[0], sizes[1]), alpha, delta)
    if last is None:
        return _not_separated(sizes, called, wrong, alpha, delta)
    calls = [ClassCalls(sizes[c], int(called[c][last]), int(wrong[c][last]),
                        _upper(int(wrong[c][last]), int(called[c][last]), delta)) for c in (0, 1)]  # fmt: skip
    share = float(np.mean((scores < low[last]) | (scores >= high[last])))
    return Triage(float(low[last]), float(high[last]), alpha, delta, share, calls[0], calls[1])


def count_calls(sides: list[Floats], low: Floats, high: Floats) -> tuple[list[Ints], list[Ints]]:
    """Return of each class how many images are called, and how many of them wrong, at each pair of thresholds.

    Args:
        sides: scores of the normal and of the pneumonia images, sorted.
        low: [STEPS].
        high: [STEPS].
    """
    negative = [np.searchsorted(side, low) for side in sides]
    positive = [len(side) - np.searchsorted(side, high) for side in sides]
    return [negative[c] + positive[c] for c in (0, 1)], [positive[0], negative[1]]


def last_passing(
    called: list[Ints], wrong: list[Ints], sizes: tuple[int, int], alpha: float, delta: float
) -> int | None:
    """Return the last step before the first that fails, from the first that calls enough; None where that one fails.

    Args:
        called: of each class, [STEPS].
        wrong: likewise, of those called.
        sizes: images of each class.
        alpha: largest share of errors.
        delta: probability of a false promise.
    """
    limit = most_errors(max(sizes), alpha, delta / _STARTS)
    passes = (wrong[0] <= limit[called[0]]) & (wrong[1] <= limit[called[1]])
    found = []
    for starts in zip(*(_starts(size, alpha, delta) for size in sizes), strict=True):
        enough = (called[0] >= starts[0]) & (called[1] >= starts[1])
        if enough.any():
            first = int(np.argmax(enough))
            stop = first + int(np.argmin(np.append(passes[first:], False)))
            if stop > first:
                found.append(stop - 1)
    return max(found, default=None)


def _starts(size: int, alpha: float, delta: float) -> tuple[int, int]:
    """Return how many images of a class the first pair of each start must call.

    The first start has room for up to two errors, where half of the images suffice for that.
    """
    counts = [fewest_called(alpha, delta / _STARTS, errors) for errors in (2, 1)]
    early = next((count for count in counts if count <= size / 2), fewest_called(alpha, delta / _STARTS))
    return early, max(early, math.ceil(_NEARLY_ALL * size))


def _upper(wrong: int, called: int, delta: float) -> float:
    return float(beta.ppf(1 - delta / _STARTS, wrong + 1, called - wrong)) if wrong < called else 1.0


def _promise(alpha: float, delta: float) -> str:
    return f"A promise of at most {100 * alpha:g} % errors among the called images of each class, with {100 * (1 - delta):g} % confidence,"


def _too_few(sizes: list[int], least: int, alpha: float, delta: float) -> NoTriage:
    missing = [max(0, least - size) for size in sizes]
    need = [f"{count:,} more {CLASS_WORDS[c]}" for c, count in enumerate(missing) if count]
    return NoTriage(
        f"{_promise(alpha, delta)} needs at least {least:,} labelled patients of each class, even if the model makes no "
        f"error; there are {sizes[1]:,} with pneumonia and {sizes[0]:,} without: label {' and '.join(need)}.",
        {"normal": missing[0], "pneumonia": missing[1]},
    )


def _not_separated(sizes: list[int], called: list[Ints], wrong: list[Ints], alpha: float, delta: float) -> NoTriage:
    """Return a sentence on how many labels are enough if the errors stay as frequent as on the pair that needs fewest."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.array([np.where(called[c] > 0, wrong[c] / called[c], np.nan) for c in (0, 1)])
    half = (called[0] >= sizes[0] / 4) & (called[1] >= sizes[1] / 4)
    worst = np.where(half, rates.max(0), np.nan)
    if not np.isfinite(worst).any() or np.nanmin(worst) >= alpha:
        seen = "" if not np.isfinite(worst).any() else f" (at best {100 * float(np.nanmin(worst)):.0f} % of a class)"
        return NoTriage(
            f"{_promise(alpha, delta)} cannot be given: among the labelled images that would be called, too many are "
            f"wrong{seen}. More labels do not help; every image is to be read, or a larger triage.alpha is to be accepted.",
            None,
        )
    step = int(np.nanargmin(worst))
    missing = []
    for c in (0, 1):
        need = _called_for(float(rates[c, step]), alpha, delta / _STARTS)
        if need is None:
            return NoTriage(
                f"{_promise(alpha, delta)} would take more than {_MAX_MISSING:,} labels: the errors among the labelled images "
                "are nearly as frequent as the promise allows. Every image is to be read.",
                None,
            )
        missing.append(max(0, math.ceil(need / min(int(called[c][step]) / sizes[c], _NEARLY_ALL)) - sizes[c]))
    if not any(missing):
        return NoTriage(
            f"{_promise(alpha, delta)} cannot be given: the errors lie among the most extreme scores, so that calling fewer "
            "images does not avoid them. Look at these images and their labels; until then every image is to be read.",
            None,
        )
    return NoTriage(
        f"{_promise(alpha, delta)} cannot be given with these labels. If errors stay as frequent as among them, about "
        f"{missing[1]:,} more patients with pneumonia and {missing[0]:,} more without are needed.",
        {"normal": missing[0], "pneumonia": missing[1]},
    )


@lru_cache(maxsize=1)
def _sizes() -> Ints:
    """Return numbers of called images up to `_MAX_MISSING`, each about 2 % above the one before."""
    return np.unique(np.geomspace(1, _MAX_MISSING, 700).astype(np.int64))


def _called_for(rate: float, alpha: float, delta: float) -> int | None:
    """Return how many called images prove `alpha` where errors have this rate; None beyond `_MAX_MISSING`."""
    sizes = _sizes()
    passing = binom.cdf(np.ceil(rate * sizes), sizes, alpha) <= delta
    return int(sizes[np.argmax(passing)]) if passing.any() else None
