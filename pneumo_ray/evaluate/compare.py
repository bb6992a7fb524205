"""Two sets of scores of the same images: is one better? Every measure by patient, and two tests of the literature.

The difference of every measure has an interval and a p-value with patients as the units (`differences.difference`).
Beside them stand DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837) for the AUC, by the midranks of Sun and Xu
2014 (IEEE Signal Processing Letters 21:1389), and McNemar 1947 for the errors. Both assume independent images. Images of
one child are not: with one to five images per patient DeLong finds a difference between two equal models in about 20 % of studies and
McNemar in about 14 %, the p-value by patient in 5 % or less (benchmarks/coverage.py).
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import binomtest, chi2, norm

from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.differences import DIFFERENCE_METHOD, Difference, difference
from pneumo_ray.evaluate.influence import Predictions, placements
from pneumo_ray.evaluate.intervals import METHODS, Interval
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.records import ABSENT, INLINE, named

EXACT_BELOW = 25
"""Number of discordant images from which McNemar's chi-square replaces the exact binomial test."""
CRITICAL = float(norm.ppf(0.975))
"""Standard errors on each side of an estimate that make a 95 % interval."""
INDEPENDENT_IMAGES = ("auc.standard_error", "auc.interval", "auc.p", "errors.p")
"""Fields of `compare` that assume independent images; where patients have several, they are too sure."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class DeLong:
    """Two AUCs of the same images and their difference."""

    here: float | None
    """None, like everything else, where a class is missing."""
    baseline: float | None
    difference: float | None
    """`here` minus `baseline`."""
    standard_error: float | None
    """None where a class has one image. 0 where the difference of placements is the same for all images, as
    for equal rankings: there is no test then."""
    interval: Interval | None
    """95 %, from the normal approximation, so it can reach beyond -1 and 1; None where the standard error is 0 or None."""
    p: float | None
    """Two-sided, of no difference; None where `interval` is."""


@dataclass(frozen=True)
class McNemar:
    """Errors of two sets on the same images; only images on which they disagree affect the difference."""

    both_right: int
    only_here_right: int
    """McNemar's b: right here, wrong in the baseline."""
    only_baseline_right: int
    """McNemar's c: wrong here, right in the baseline."""
    both_wrong: int
    test: str
    """Which test gave p: `exact binomial`, or `chi-square with continuity correction` from 25 discordant images."""
    p: float
    """Two-sided, of equal error rates; 1 where the sets disagree on no image."""


@dataclass(frozen=True)
class AucComparison:
    """The AUCs, tested with images and with patients as the units."""

    delong: DeLong = field(metadata=INLINE)
    interval_by_patient: Interval | None
    """95 %, of the same difference over whole patients."""


@dataclass(frozen=True)
class ErrorComparison:
    """The errors, each set at its own stored threshold."""

    threshold: float
    threshold_baseline: float
    share: float
    """Of the images."""
    share_baseline: float
    mcnemar: McNemar = field(metadata=INLINE)


@dataclass(frozen=True)
class Comparison:
    """Two sets of scores of the same images. Differences are this set minus the baseline; None where undefined."""

    name: str | None = field(metadata=ABSENT)
    """Of the baseline."""
    images: int = field(metadata=named("pictures"))
    """Labelled, with scores in both sets."""
    normal: int
    pneumonia: int
    patients: int
    only_here: int
    """Labelled images that the baseline lacks."""
    only_baseline: int
    auc: AucComparison
    errors: ErrorComparison
    differences: dict[str, Difference]
    """Of every measure, with patients as the units."""
    difference_method: str = DIFFERENCE_METHOD
    assumes_independent_images: tuple[str, ...] = INDEPENDENT_IMAGES


def compare(scores: Scores, baseline: Scores, name: str | None = None) -> Comparison:
    """Compare two sets of scores on the labelled images that both have, each at its own stored threshold.

    Images are sorted by name first, so the result does not depend on the order of rows or shards.

    Args:
        scores: from `matching.match`: no failed rows, joined with `label` and `patient_id`.
        baseline: the same, matched with the same manifest.
        name: of the baseline.

    Raises:
        ManifestError: if they have no labelled image in common, or disagree on the label of one.
    """
    here, there = scores.labelled(), baseline.labelled()
    a, b = _common(here.table, there.table), _common(there.table, here.table)
    if not len(a):
        raise ManifestError(
            f"the two sets of scores have no labelled image in common ({len(here.table):,} here, {len(there.table):,} "
            "in the baseline); give two scores of the same archive and split, with labels in the manifest"
        )
    if count := pc.sum(pc.not_equal(a["label"], b["label"])).as_py():
        raise ManifestError(
            f"{count:,} of {len(a):,} images have another label in the baseline; match both scores with one manifest"
        )
    label = a["label"].to_numpy().astype(np.int64)
    prob, prob_baseline = (table["prob_mean"].to_numpy().astype(np.float64) for table in (a, b))
    patients = a["patient_id"].to_pylist()
    here_by_patient, there_by_patient = (
        Predictions.of(label, p, threshold, patients)
        for p, threshold in ((prob, scores.threshold), (prob_baseline, baseline.threshold))
    )
    differences = {name: difference(name, here_by_patient, there_by_patient) for name in METHODS}
    wrong = (prob >= scores.threshold) != (label == 1)
    wrong_baseline = (prob_baseline >= baseline.threshold) != (label == 1)
    return Comparison(
        name=name,
        images=len(label),
        normal=int((label == 0).sum()),
        pneumonia=int((label == 1).sum()),
        patients=here_by_patient.num_patients,
        only_here=len(here.table) - len(a),
        only_baseline=len(there.table) - len(b),
        auc=AucComparison(delong(label, prob, prob_baseline), differences["auc"].interval),
        errors=ErrorComparison(
            threshold=scores.threshold,
            threshold_baseline=baseline.threshold,
            share=float(wrong.mean()),
            share_baseline=float(wrong_baseline.mean()),
            mcnemar=mcnemar(wrong, wrong_baseline),
        ),
        differences=differences,
    )


def _common(table: pa.Table, other: pa.Table) -> pa.Table:
    """Return the rows whose image the other table has too, by name."""
    shared = pc.is_in(table["image_id"], value_set=other["image_id"].combine_chunks())
    return table.filter(shared).sort_by("image_id").combine_chunks()


def delong(label: Ints, prob: Floats, prob_baseline: Floats) -> DeLong:
    """Test whether two correlated AUCs differ, in O(n log n).

    The placement of a positive is the number of negatives below it, ties half: its midrank among all images less its
    midrank among positives. The AUC is the mean placement over the number of negatives. With d the placement of a
    image here less its placement in the baseline, each as a share of the other class, the variance of the difference
    is var(d of m positives) / m + var(d of n negatives) / n: the contrast (1, -1) of the paper's covariance matrix,
    without its cancellation.

    Args:
        label: [n], 0 normal or 1 pneumonia.
        prob: [n], any score that rises with the evidence for pneumonia.
        prob_baseline: [n], of the same images.
    """
    m, n = int((label == 1).sum()), int((label == 0).sum())
    if not m or not n:
        return DeLong(None, None, None, None, None, None)
    placed, placed_baseline = (placements(label, p) for p in (prob, prob_baseline))
    here, baseline = (float(of_positives.mean()) / n for of_positives, _ in (placed, placed_baseline))
    # Halves of integers up to here, hence exact: equal rankings give a variance of exactly 0.
    of_positives, of_negatives = placed[0] - placed_baseline[0], placed[1] - placed_baseline[1]
    difference = float(of_positives.mean()) / n
    if m < 2 or n < 2:
        return DeLong(here, baseline, difference, None, None, None)
    variance = float(of_positives.var(ddof=1)) / n**2 / m + float(of_negatives.var(ddof=1)) / m**2 / n
    error = float(np.sqrt(variance))
    if error == 0:
        return DeLong(here, baseline, difference, 0.0, None, None)
    return DeLong(
        here=here,
        baseline=baseline,
        difference=difference,
        standard_error=error,
        interval=(difference - CRITICAL * error, difference + CRITICAL * error),
        p=float(2 * norm.sf(abs(difference) / error)),
    )


def mcnemar(wrong: Bools, wrong_baseline: Bools) -> McNemar:
    """Test whether two error rates on the same images differ.

    Under equal error rates b of b + c discordant images is binomial with probability 1/2, and
    (|b - c| - 1)^2 / (b + c) about chi-square with one degree of freedom (the corrected difference is at least 0).

    Args:
        wrong: [n], whether the decision here is an error.
        wrong_baseline: [n], of the same images.
    """
    b, c = int((~wrong & wrong_baseline).sum()), int((wrong & ~wrong_baseline).sum())
    if b + c < EXACT_BELOW:
        test, p = "exact binomial", float(binomtest(b, b + c).pvalue) if b + c else 1.0
    else:
        test, p = "chi-square with continuity correction", float(chi2.sf(max(abs(b - c) - 1, 0) ** 2 / (b + c), df=1))
    return McNemar(
        both_right=int((~wrong & ~wrong_baseline).sum()),
        only_here_right=b,
        only_baseline_right=c,
        both_wrong=int((wrong & wrong_baseline).sum()),
        test=test,
        p=p,
    )
