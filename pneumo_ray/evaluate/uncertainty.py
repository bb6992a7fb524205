"""Value of an uncertainty: whether it finds errors, and the metrics after referral of uncertain images.

In the binary case predictive entropy ranks by `|p - 0.5|`, so `1 - max(p, 1 - p)` is the baseline for
all others (El-Yaniv and Wiener 2010 for risk and coverage).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pneumo_ray.evaluate.metrics import Metrics, classification_metrics
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.records import INLINE

Floats = NDArray[np.float64]
WITHOUT_PASSES = ("1 - max(p, 1 - p)", "distance to the threshold")
"""Uncertainties of the calibrated probability without dropout: what Monte Carlo must beat."""
REFERRED = (0.0, 0.05, 0.10, 0.20)
"""Shares of the images that the referral table sends to a person."""


def max_prob_uncertainty(prob: Floats) -> Floats:
    """Return `1 - max(p, 1 - p)`, the baseline uncertainty."""
    return np.minimum(prob, 1 - prob)


def error_detection(uncertainty: Floats, wrong: NDArray[np.bool_]) -> float | None:
    """Return the AUROC of an uncertainty for finding the errors; None where nothing, or everything, is wrong."""
    return float(roc_auc_score(wrong, uncertainty)) if 0 < wrong.sum() < len(wrong) else None


@dataclass(frozen=True)
class RiskCoverage:
    """The share of errors among the images that are kept, from the most certain one to all."""

    coverage: Floats
    """[n], share of the images that are kept."""
    risk: Floats
    """[n], share of errors among them."""

    @property
    def area(self) -> float:
        """Mean risk over all coverages (AURC): lower is better; an uncertainty without information gives the error rate."""
        return float(self.risk.mean())


def risk_coverage(uncertainty: Floats, wrong: NDArray[np.bool_]) -> RiskCoverage:
    """Return the risk-coverage curve. Errors are spread evenly over images of equal uncertainty, so that their order has no effect.

    Args:
        uncertainty: [n], higher is less certain.
        wrong: [n], whether the decision is an error.
    """
    order = np.argsort(uncertainty, kind="stable")
    _, first, count = np.unique(uncertainty[order], return_index=True, return_counts=True)
    shared = np.repeat(np.add.reduceat(wrong[order].astype(float), first) / count, count) if len(order) else np.zeros(0)
    kept = np.arange(1, len(order) + 1)
    return RiskCoverage(kept / max(len(order), 1), np.cumsum(shared) / kept)


@dataclass(frozen=True)
class Referral:
    """Metrics of the images that remain after referral of a share of them."""

    referred: float
    """Share of the images."""
    errors_referred: float | None
    """Share of all errors; None without errors."""
    kept: Metrics = field(metadata=INLINE)


def referral_table(
    uncertainty: Floats, label: NDArray[np.int64], prob: Floats, threshold: float, shares: Sequence[float] = REFERRED
) -> list[Referral]:
    """Return the metrics of the images that remain after referral of the most uncertain ones.

    Args:
        uncertainty: [n], higher is less certain; where many are equal, the later rows are referred first.
        label: [n], 0 normal or 1 pneumonia.
        prob: [n].
        threshold: an image is called pneumonia where `prob >= threshold`.
        shares: of the images to refer.

    Returns:
        One record per share.
    """
    order = np.argsort(uncertainty, kind="stable")
    wrong = (prob >= threshold) != (label == 1)
    records = []
    for share in shares:
        kept, sent = np.split(order, [len(order) - round(share * len(order))])
        caught = float(wrong[sent].sum() / wrong.sum()) if wrong.any() else None
        records.append(Referral(share, caught, classification_metrics(label[kept], prob[kept], threshold)))
    return records


@dataclass(frozen=True)
class FlaggedShares:
    """Shares of images flagged by a threshold that flags a given share of the true positives of validation; None of no images."""

    threshold: float | None
    true_positives: float | None
    """Share flagged among the true positives of the test."""
    false_positives: float | None
    num_true_positives: int
    num_false_positives: int


def flagged_shares(scores: Scores, column: str, share: float = 0.12) -> FlaggedShares:
    """Measure what arXiv 2507.18647 reports as 83 % of false and 12 % of true positives with high uncertainty.

    The paper gives neither threshold nor measure. Here the threshold flags `share` of the true positives of validation,
    and is then applied to the test.

    Args:
        scores: joined with `label` and `split` of the manifest.
        column: the uncertainty, such as `mutual_information` or `prob_std`.
        share: of true positives to flag.
    """
    table = scores.table
    value = scores.numbers(column)
    label = pc.fill_null(table["label"], -1).to_numpy()
    split = np.array(table["split"].to_pylist(), dtype=object)
    called = pc.fill_null(table["predicted"], 0).to_numpy() == 1
    chosen_on = value[called & (label == 1) & (split == "val")]
    threshold = float(np.quantile(chosen_on, 1 - share)) if len(chosen_on) else None
    true = value[called & (label == 1) & (split == "test")]
    false = value[called & (label == 0) & (split == "test")]
    # Without a threshold, nothing is flagged.
    of_true, of_false = (
        float((values > (np.inf if threshold is None else threshold)).mean()) if len(values) else None
        for values in (true, false)
    )
    return FlaggedShares(threshold, of_true, of_false, len(true), len(false))
