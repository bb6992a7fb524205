"""The numbers of an evaluation, from scores that were joined with their manifest."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata, skew

from pneumo_ray.evaluate.calibration import brier_score
from pneumo_ray.evaluate.calibration_error import calibration_test
from pneumo_ray.evaluate.evaluation import (
    Evaluation,
    Measured,
    OperatingPoints,
    PredictiveValues,
    Reliability,
    Residual,
    Residuals,
    UncertaintyValue,
)
from pneumo_ray.evaluate.gaps import MEASURES, MeasuredGroup, measure_gaps
from pneumo_ray.evaluate.influence import Predictions
from pneumo_ray.evaluate.intervals import IntervalMethods, patient_intervals, with_intervals
from pneumo_ray.evaluate.metrics import ConfusionMetrics
from pneumo_ray.evaluate.paper import Paper
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.evaluate.soft_scores import against_readers
from pneumo_ray.evaluate.subgroups import Subgroup, measure_subgroups
from pneumo_ray.evaluate.uncertainty import (
    error_detection,
    flagged_shares,
    max_prob_uncertainty,
    referral_table,
    risk_coverage,
)

EXTREMES = 10
"""Most extreme residuals that are named, at each end."""

Floats = NDArray[np.float64]


def evaluate(scores: Scores, split: str | None, prevalence: float | None, seed: int = 0) -> Evaluation:
    """Return the evaluation of scored images.

    Args:
        scores: from `matching.match`.
        split: evaluate this split of the manifest; None takes all labelled images.
        prevalence: share of pneumonia where the model is to be used, to re-base the predictive values; None leaves them.
        seed: of the calibration test.
    """
    chosen = scores if split is None else scores.of_split(split)
    labelled = chosen.labelled()
    prob, label = labelled.numbers("prob_mean"), labelled.table["label"].to_numpy().astype(np.int64)
    return Evaluation(
        split=split,
        images=len(chosen.table),
        labelled=len(label),
        threshold=scores.threshold,
        temperature=scores.temperature,
        intercept=scores.intercept,
        paper=Paper(),
        measured=_measure(scores, split, labelled, label, prob, prevalence, seed) if len(label) else None,
    )


def _measure(
    scores: Scores,
    split: str | None,
    labelled: Scores,
    label: NDArray[np.int64],
    prob: Floats,
    prevalence: float | None,
    seed: int,
) -> Measured:
    patients = labelled.table["patient_id"].to_pylist()
    points = OperatingPoints(
        *(with_intervals(label, prob, threshold, patients, seed) for threshold in (scores.threshold, 0.5))
    )
    subgroups = measure_subgroups(labelled, label, prob, seed)
    return Measured(
        interval_methods=IntervalMethods(),
        metrics=points,
        predictive_values=predictive_values(points.stored.values, prevalence),
        calibration=_calibration(labelled, label, patients, seed),
        subgroups=subgroups,
        gaps=measure_gaps(_measured_groups(subgroups)),
        uncertainty=_uncertainty(scores, split, labelled, label, prob, patients),
        residuals=_residuals(labelled, label, prob),
        against_readers=against_readers(labelled, prob),
    )


def _measured_groups(subgroups: Sequence[Subgroup]) -> list[MeasuredGroup]:
    return [
        MeasuredGroup(
            group.column,
            group.value,
            group.patients,
            {name: group.measured.values[name] for name in MEASURES},
            {name: group.measured.intervals.get(name) for name in MEASURES},
        )
        for group in subgroups
        if group.measured is not None and group.value is not None and group.patients is not None
    ]


def predictive_values(metrics: ConfusionMetrics, prevalence: float | None) -> PredictiveValues:
    """Return the predictive values at a prevalence by Bayes' rule; None where sensitivity or specificity is.

    Args:
        metrics: of the images.
        prevalence: None takes that of the images themselves.
    """
    sensitivity, specificity = metrics.recall, metrics.specificity
    share = (metrics.tp + metrics.fn) / metrics.n if prevalence is None else prevalence
    if sensitivity is None or specificity is None:
        return PredictiveValues(share, None, None)
    ill, well = sensitivity * share, (1 - specificity) * (1 - share)
    missed, cleared = (1 - sensitivity) * share, specificity * (1 - share)
    return PredictiveValues(
        prevalence=share,
        positive=ill / (ill + well) if ill + well else None,
        negative=cleared / (cleared + missed) if cleared + missed else None,
    )


def probabilities(scores: Scores) -> dict[str, Floats]:
    """Return three probabilities of each image: of the plain logit, calibrated, and the mean over the passes.

    The names are older than the intercept: calibration was a temperature alone.
    """
    logit = scores.numbers("logit")
    return {
        "before_temperature": expit(logit),
        "after_temperature": scores.calibration.prob(logit),
        "monte_carlo_mean": scores.numbers("prob_mean"),
    }


def uncertainties(scores: Scores) -> dict[str, Floats]:
    """Return every uncertainty of each image, higher is less certain; `WITHOUT_PASSES` need no Monte Carlo."""
    plain = probabilities(scores)["after_temperature"]
    return {
        "1 - max(p, 1 - p)": max_prob_uncertainty(plain),
        "distance to the threshold": -np.abs(plain - scores.threshold),
        "mutual_information": scores.numbers("mutual_information"),
        "prob_std": scores.numbers("prob_std"),
        "mean of cam_std": scores.maps("cam_std").mean((1, 2)).astype(np.float64),
    }


def _calibration(
    labelled: Scores, label: NDArray[np.int64], patients: Sequence[str | None], seed: int
) -> dict[str, Reliability]:
    """Measure each probability."""
    out = {}
    for name, prob in probabilities(labelled).items():
        intervals = patient_intervals(label, prob, 0.5, patients, ("brier", "ece"), seed=seed)
        test = calibration_test(Predictions.of(label, prob, 0.5, patients), seed)
        assert test is not None
        out[name] = Reliability(
            brier=brier_score(prob, label),
            brier_interval=intervals["brier"],
            ece=test.error,
            ece_interval=intervals["ece"],
            ece_expected=test.expected,
            ece_p=test.p,
            mean_prob=float(prob.mean()),
            prevalence=float(label.mean()),
        )
    return out


def _uncertainty(
    scores: Scores,
    split: str | None,
    labelled: Scores,
    label: NDArray[np.int64],
    prob: Floats,
    patients: Sequence[str | None],
) -> dict[str, UncertaintyValue]:
    """Compare every uncertainty with those that need no Monte Carlo."""
    wrong = (prob >= labelled.threshold) != (label == 1)
    out = {}
    for name, value in uncertainties(labelled).items():
        ranks = rankdata(value) / max(len(value), 1)  # the same AUROC, within 0 and 1
        interval = patient_intervals(wrong.astype(np.int64), ranks, 0.5, patients, ("auc",))["auc"]
        # The threshold of the flags is chosen on validation.
        flags = split == "test" and name in ("mutual_information", "prob_std")
        out[name] = UncertaintyValue(
            error_auroc=error_detection(value, wrong),
            error_auroc_interval=interval,
            aurc=risk_coverage(value, wrong).area,
            referral=referral_table(value, label, prob, labelled.threshold),
            flagged=flagged_shares(scores, name) if flags else None,
        )
    return out


def _residuals(labelled: Scores, label: NDArray[np.int64], prob: Floats) -> Residuals:
    residual = label - prob
    order = np.argsort(residual, kind="stable")
    names = labelled.table["image_id"].to_pylist()
    ends = {"false_positives": order[:EXTREMES], "false_negatives": order[::-1][:EXTREMES]}
    return Residuals(
        mean=float(residual.mean()),
        skewness=float(skew(residual)) if np.ptp(residual) > 0 else None,
        most_extreme={
            end: [
                Residual(names[i], float(residual[i]), float(prob[i]))
                for i in rows
                if (prob[i] >= labelled.threshold) != (label[i] == 1)
                and (residual[i] < 0) == (end == "false_positives")
            ]
            for end, rows in ends.items()
        },
    )
