"""Drift without labels: do the scores of an archive differ from those of a reference by more than chance, and by how much?

Numbers are compared by the two-sample test of Kolmogorov and Smirnov, words by chi-square. All comparisons of a run share
one error probability (Holm 1979), so that an alarm anywhere where nothing changed has at most the probability `level`. A
difference must also be large enough to matter: in a large archive, any is more than chance. The size is the population
stability index less what chance gives it: with B bins, (B - 1) (1 / n + 1 / m) on average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp

from pneumo_ray.evaluate.number_text import percent_text
from pneumo_ray.site.quantities import Floats, Words, known, taken

Ints = NDArray[np.int64]

MATTERS = 0.1
"""Population stability index from which a difference is worth an alarm; 0.1 moderate and 0.25 large by convention."""
BINS = 10
"""Quantile bins of the reference."""
MIN_IMAGES = 20
"""Known values on each side below which a quantity is not compared."""
_MIN_EXPECTED = 5.0
"""Expected count below which a word joins the others for chi-square."""


@dataclass(frozen=True)
class Comparison:
    """One quantity of one group against the reference."""

    group: str
    quantity: str
    n_reference: int
    n: int
    reference: str
    """Median of the reference, or its most frequent word with its share."""
    here: str
    """The same of the group; of words, the share of the reference's most frequent one."""
    psi: float
    """Population stability index less what chance gives it, at least 0."""
    p: float
    p_adjusted: float
    """After Holm, over all comparisons of the run."""
    alarm: bool
    """Whether `p_adjusted` is at most the level and `psi` at least `MATTERS`."""


@dataclass(frozen=True)
class Drift:
    """All comparisons of a run."""

    level: float
    comparisons: tuple[Comparison, ...]
    """By group, in their order."""
    left_out: tuple[tuple[str, str, str], ...]
    """Group, quantity and reason of what could not be compared."""

    @property
    def alarms(self) -> tuple[Comparison, ...]:
        """The comparisons with an alarm, the largest first."""
        return tuple(sorted((c for c in self.comparisons if c.alarm), key=lambda c: -c.psi))


def compare(
    reference: Mapping[str, Floats | Words],
    here: Mapping[str, Floats | Words],
    groups: Sequence[str] | None,
    level: float,
) -> Drift:
    """Compare the quantities of images with those of a reference.

    Args:
        reference: from `quantities`, of independent images (one per patient).
        here: likewise.
        groups: of each image of `here`, its group; None for one group.
        level: probability of an alarm where nothing changed.
    """
    number = len(next(iter(here.values()), []))
    group_of = np.array(["all"] * number if groups is None else list(groups), object)
    done: list[tuple[str, str, Floats | Words, Floats | Words, float]] = []
    left_out: list[tuple[str, str, str]] = []
    for group in sorted(set(group_of.tolist())):
        part = taken(here, group_of == group)
        for name in sorted({*reference, *here}):
            if name not in reference or name not in here:
                left_out.append((group, name, "only one of the two has this column"))
                continue
            a, b = known(reference[name]), known(part[name])
            if min(len(a), len(b)) < MIN_IMAGES:
                if max(len(a), len(b)):
                    left_out.append((group, name, f"known of {len(a):,} images of the reference and {len(b):,} here"))
                continue
            if (p := _p_value(a, b)) is not None:
                done.append((group, name, a, b, p))
    adjusted = holm([p for *_, p in done])
    comparisons = []
    for (group, name, a, b, p), p_adjusted in zip(done, adjusted, strict=True):
        psi = stability_index(a, b)
        words = _described(a, b)
        comparisons.append(
            Comparison(group, name, len(a), len(b), *words, psi, p, p_adjusted, p_adjusted <= level and psi >= MATTERS)
        )
    return Drift(level, tuple(comparisons), tuple(left_out))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values that hold for all comparisons together (Holm 1979, Scand. J. Statist. 6:65)."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values)))))
    out = np.empty(len(values))
    out[order] = adjusted
    return [float(value) for value in out]


def stability_index(reference: Floats | Words, here: Floats | Words) -> float:
    """Return `sum_b (q_b - p_b) ln(q_b / p_b)` over bins, less its mean where nothing changed; at least 0.

    Numbers fall into the reference's quantile bins, words into one bin each. Half an image is added to every bin.

    Args:
        reference: [n] known values.
        here: [m].
    """
    counts = _counts(reference, here)
    p, q = ((count + 0.5) / (count.sum() + 0.5 * len(count)) for count in counts)
    index = float(np.sum((q - p) * np.log(q / p)))
    return max(0.0, index - (len(p) - 1) * (1 / len(reference) + 1 / len(here)))


def _counts(reference: Floats | Words, here: Floats | Words) -> tuple[Floats, Floats]:
    if reference.dtype == object:
        names = sorted({*reference.tolist(), *here.tolist()})
        return tuple(np.array([np.sum(side == name) for name in names], np.float64) for side in (reference, here))  # type: ignore[return-value]
    edges = np.unique(np.quantile(reference.astype(np.float64), np.linspace(0, 1, BINS + 1)[1:-1]))
    found = [
        np.bincount(np.searchsorted(edges, side.astype(np.float64), side="right"), minlength=len(edges) + 1)
        for side in (reference, here)
    ]
    return found[0].astype(np.float64), found[1].astype(np.float64)


def _p_value(reference: Floats | Words, here: Floats | Words) -> float | None:
    """Return the p-value of no difference; None where both sides have one and the same value everywhere."""
    if reference.dtype != object:
        if np.ptp(np.concatenate([reference, here])) == 0:
            return None
        return float(ks_2samp(reference, here, method="asymp").pvalue)
    table = np.stack(_counts(reference, here))
    expected = table.sum(0) * table.sum(1).min() / table.sum()
    rare = expected < _MIN_EXPECTED
    if rare.any():
        table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], axis=1)
    if table.shape[1] < 2 or (table.sum(0) == 0).any():
        return None
    return float(chi2_contingency(table, correction=True).pvalue)


def _described(reference: Floats | Words, here: Floats | Words) -> tuple[str, str]:
    if reference.dtype != object:
        return f"{np.median(reference):.3g}", f"{np.median(here):.3g}"
    names, counts = np.unique(reference.astype(str), return_counts=True)
    most = names[np.argmax(counts)]
    share, now = float(counts.max() / len(reference)), float(np.mean(here.astype(str) == most))
    return f"{most} {percent_text(share, 0)}", f"{most} {percent_text(now, 0)}"
