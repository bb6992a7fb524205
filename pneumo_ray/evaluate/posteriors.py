"""Several posteriors on the same images: does an uncertainty of one find errors, grow elsewhere, or mark unstable evidence?

Every set of scores has decisions, and so errors, of its own; an uncertainty is compared with the better one of two
of the plain probability of the same scores, which need no posterior (`WITHOUT_PASSES`). Differences are paired and by patient, and their
intervals hold all of them at once (Bonferroni), so that the best of many is not called a winner by chance.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import logit as log_odds
from scipy.stats import rankdata

from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.calibration import brier_score, expected_calibration_error
from pneumo_ray.evaluate.differences import difference
from pneumo_ray.evaluate.influence import Predictions
from pneumo_ray.evaluate.intervals import patient_intervals
from pneumo_ray.evaluate.map_reliability import MapReliability, map_reliability
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.posterior_records import (
    ErrorFinding,
    PosteriorComparison,
    PosteriorRecord,
    Shift,
    which_to_use,
)
from pneumo_ray.evaluate.sampling_error import SamplingError, sampling_error
from pneumo_ray.evaluate.scored import Scored, titles
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.evaluate.uncertainty import (
    WITHOUT_PASSES,
    error_detection,
    max_prob_uncertainty,
    referral_table,
    risk_coverage,
)
from pneumo_ray.model.calibrated import Calibration

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REFERRED = 0.1
"""Share of the images that is referred."""


def uncertainties_of(columns: Mapping[str, Floats], calibration: Calibration, threshold: float) -> dict[str, Floats]:
    """Return every uncertainty that some columns of scores allow, higher is less certain.

    Args:
        columns: `logit`, `logit_mean`, `logit_std`, `prob_std`, and where known `mutual_information` and `cam_std`.
        calibration: of the scores.
        threshold: on the calibrated probability.
    """
    plain = calibration.prob(columns["logit"])
    cut = calibration.temperature * (float(log_odds(np.clip(threshold, 1e-12, 1 - 1e-12))) - calibration.intercept)
    out = {
        **dict(zip(WITHOUT_PASSES, (max_prob_uncertainty(plain), -np.abs(plain - threshold)), strict=True)),
        "distance over its deviation": -np.abs(columns["logit_mean"] - cut) / np.maximum(columns["logit_std"], 1e-12),
        "prob_std": columns["prob_std"],
        "logit_std": columns["logit_std"],
    }
    return out | {name: columns[name] for name in ("mutual_information", "cam_std") if name in columns}


def compare_posteriors(
    sets: Sequence[Scored], elsewhere: Sequence[Scored] = (), seeds: Sequence[Scored] = ()
) -> PosteriorComparison:
    """Compare sets of scores on the labelled images that all of them have.

    Args:
        sets: the first is the reference.
        elsewhere: scores of other images; each is compared with the set of the same model, posterior and passes.
        seeds: none, or two sets of the same images by models that differ in their seed.

    Raises:
        ManifestError: if they have no labelled image in common, maps that cannot be compared, or one of `elsewhere` has no set.
    """
    aligned = _aligned([*(one.scores for one in sets), *(one.scores for one in seeds)])
    own, pair = aligned[: len(sets)], aligned[len(sets) :]
    label = own[0].table["label"].to_numpy().astype(np.int64)
    patients = own[0].table["patient_id"].to_pylist()
    all_found = [uncertainties_of(_columns(one), one.calibration, one.threshold) for one in own]
    comparisons = sum(len(found) - len(WITHOUT_PASSES) for found in all_found)
    shifts = {one.name: _shifts(one, scores, elsewhere) for one, scores in zip(sets, own, strict=True)}
    if unmatched := [one.name for one in elsewhere if not any(_same(one, other) for other in sets)]:
        raise ManifestError(
            f"the scores {unmatched[0]} are of none of the models, posteriors and passes that are compared; score them with the "
            "options of one of them"
        )
    records = []
    reference = Predictions.of(label, own[0].numbers("prob_mean"), own[0].threshold, patients)
    for one, title, scores, found in zip(sets, titles(sets), own, all_found, strict=True):
        prob = scores.numbers("prob_mean")
        here = Predictions.of(label, prob, scores.threshold, patients)
        wrong = (prob >= scores.threshold) != (label == 1)
        baseline = found[max(WITHOUT_PASSES, key=lambda name: error_detection(found[name], wrong) or 0.0)]
        values = classification_metrics(label, prob, scores.threshold)
        level = 1 - 0.05 / max(1, len(sets) - 1)
        brier = None if scores is own[0] else difference("brier", here, reference, level)
        records.append(
            PosteriorRecord(
                name=one.name,
                title=title,
                images=len(label),
                errors=int(wrong.sum()),
                auc=values.auc,
                brier=brier_score(prob, label),
                ece=expected_calibration_error(prob, label),
                brier_difference=None if brier is None else brier.difference,
                brier_difference_interval=None if brier is None else brier.interval,
                found=[
                    _finding(name, value, baseline, wrong, label, scores, patients, comparisons)
                    for name, value in found.items()
                ],
                shifts=shifts[one.name],
                maps=None if circular(one, seeds) else _reliability(scores, pair, patients),
                maps_left_out=circular(one, seeds),
                sampling=_sampling(one, scores, sets, own),
            )
        )
    known = {patient for patient in patients if patient is not None}
    count = len(known) + sum(patient is None for patient in patients)
    return PosteriorComparison(len(label), count, comparisons, records, which_to_use(records))


def circular(one: Scored, seeds: Sequence[Scored]) -> bool:
    """Return whether the spread of a set contains the very difference of the seeds that it is to predict."""
    return any(one.networks & seed.networks for seed in seeds)


def _sampling(one: Scored, scores: Scores, sets: Sequence[Scored], own: Sequence[Scores]) -> SamplingError | None:
    """Compare passes with the closed forms of the same model and posterior, where they are among the sets."""
    if one.is_exact:
        return None
    for other, exact in zip(sets, own, strict=True):
        if other.is_exact and (other.model_hash, other.posterior) == (one.model_hash, one.posterior):
            return sampling_error(scores, exact)
    return None


def _finding(
    name: str,
    value: Floats,
    baseline: Floats,
    wrong: Bools,
    label: NDArray[np.int64],
    scores: Scores,
    patients: list[str | None],
    comparisons: int,
) -> ErrorFinding:
    truth, prob = wrong.astype(np.int64), scores.numbers("prob_mean")
    ranks, ranks_of_baseline = (rankdata(v) / max(len(v), 1) for v in (value, baseline))
    here, there = (Predictions.of(truth, rank, 0.5, patients) for rank in (ranks, ranks_of_baseline))
    interval = patient_intervals(truth, ranks, 0.5, patients, ("auc",))["auc"]
    apart = None if name in WITHOUT_PASSES else difference("auc", here, there, 1 - 0.05 / max(1, comparisons))
    (referral,) = referral_table(value, label, prob, scores.threshold, (REFERRED,))
    return ErrorFinding(
        uncertainty=name,
        auroc=error_detection(value, wrong),
        interval=interval,
        area=risk_coverage(value, wrong).area,
        errors_referred=referral.errors_referred,
        above_baseline=None if apart is None else apart.difference,
        above_baseline_interval=None if apart is None else apart.interval,
    )


def _shifts(one: Scored, scores: Scores, elsewhere: Sequence[Scored]) -> list[Shift]:
    here = uncertainties_of(_columns(scores), scores.calibration, scores.threshold)
    patients = scores.table["patient_id"].to_pylist()
    shifts = []
    for other in elsewhere:
        if not _same(one, other):
            continue
        there = uncertainties_of(_columns(other.scores), other.scores.calibration, other.scores.threshold)
        count = len(other.scores.table)
        truth = np.repeat([0, 1], [len(patients), count]).astype(np.int64)
        auroc: dict[str, float | None] = {}
        interval = {}
        named = "patient_id" in other.scores.table.column_names
        all_patients = patients + (other.scores.table["patient_id"].to_pylist() if named else [None] * count)
        for name in (name for name in here if name in there):
            rank = rankdata(np.concatenate([here[name], there[name]])) / len(truth)
            auroc[name] = error_detection(rank, truth == 1)
            interval[name] = patient_intervals(truth, rank, 0.5, all_patients, ("auc",))["auc"]
        shifts.append(Shift(other.images, count, auroc, interval))
    return shifts


def _same(one: Scored, other: Scored) -> bool:
    return (one.model_hash, one.posterior, one.passes) == (other.model_hash, other.posterior, other.passes)


def _reliability(scores: Scores, pair: Sequence[Scores], patients: list[str | None]) -> MapReliability | None:
    if not pair:
        return None
    same = {(one.map_size, one.target) for one in (scores, *pair)}
    if len(same) > 1 or scores.target == "predicted":
        raise ManifestError(
            "maps can be compared where all explain one class and have one size; score all sets with --target pneumonia"
        )
    one, other = (own.maps("cam_mean") for own in pair)
    return map_reliability(scores.maps("cam_std"), scores.maps("cam_mean"), one, other, patients)


def _columns(scores: Scores) -> dict[str, Floats]:
    names = ("logit", "logit_mean", "logit_std", "prob_std", "mutual_information")
    there = scores.table.column_names
    found = {name: scores.numbers(name) for name in names if name in there}
    return found | ({"cam_std": scores.maps("cam_std").mean((1, 2)).astype(np.float64)} if "cam_std" in there else {})


def _aligned(sets: Sequence[Scores]) -> list[Scores]:
    """Return the labelled images that all sets have, each in the order of their names.

    Raises:
        ManifestError: if there are none.
    """
    labelled = [one.labelled() for one in sets]
    names = [np.array(one.table["image_id"].to_pylist(), dtype=object) for one in labelled]
    shared = set(names[0].tolist()).intersection(*(set(own.tolist()) for own in names[1:]))
    if not shared:
        raise ManifestError("the sets of scores have no labelled image in common; give scores of the same archive")
    aligned = []
    for one, own in zip(labelled, names, strict=True):
        places = {name: place for place, name in enumerate(own.tolist())}
        order = pa.array([places[name] for name in sorted(shared)])
        aligned.append(one.taken(order))
    return aligned
