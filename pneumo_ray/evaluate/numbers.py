"""All the numbers of an evaluation, from scores and a manifest: plain JSON values, None where something is undefined."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import skew

from pneumo_ray.data.manifest import RESERVED_COLUMNS, SCHEMA
from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.attention import flagged_shares
from pneumo_ray.evaluate.calibration import brier_score, expected_calibration_error
from pneumo_ray.evaluate.metrics import bootstrap_intervals, classification_metrics
from pneumo_ray.evaluate.paper import CONFUSIONS, NOTE, TABLE_TWO
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.evaluate.uncertainty import doubt, error_detection, referral_table, risk_coverage

MIN_SUBGROUP = 20
"""Pictures below which a subgroup is named and not measured."""
MAX_VALUES = 20
"""Values above which a column of the manifest is not a grouping."""
EXTREMES = 10
"""Most extreme residuals that are named, at each end."""

Floats = NDArray[np.float64]


def match(scores: Scores, manifest: pa.Table, name: str) -> Scores:
    """Return the scores of the pictures that did not fail, with what the manifest knows of them.

    Args:
        scores: of an archive.
        manifest: of the same archive.
        name: of the manifest, for the sentence.

    Raises:
        ManifestError: if pictures of the scores are not in the manifest, or a probability is not a number.
    """
    unknown = pc.invert(pc.is_in(scores.table["image_id"], value_set=manifest["image_id"].combine_chunks()))
    if count := pc.sum(unknown).as_py():
        example = scores.table["image_id"].filter(unknown)[0].as_py()
        raise ManifestError(
            f"{count:,} of {len(scores.table):,} scored pictures are not in {name}, such as {example!r}; give the manifest of the same archive"
        )
    good = scores.ok()
    prob = good.table["prob_mean"]
    if count := prob.null_count + (pc.sum(pc.is_nan(prob)).as_py() or 0):
        raise ManifestError(f"{count} scored picture(s) have no probability; score the archive again")
    extra = [column for column in manifest.column_names if column not in (*SCHEMA.names, *RESERVED_COLUMNS)]
    columns = ("label", "split", "subtype", "patient_id", "width", "height", *extra)
    return good.joined(manifest, columns)


def evaluate(scores: Scores, split: str | None, prevalence: float | None, seed: int = 0) -> dict[str, Any]:
    """Return everything that can be said of some scored pictures.

    Args:
        scores: from `match`.
        split: evaluate this split of the manifest; None takes all labelled pictures.
        prevalence: share of pneumonia where the model is to be used, to re-base the predictive values; None leaves them.
        seed: of the bootstrap.
    """
    chosen = scores if split is None else scores.of_split(split)
    labelled = chosen.labelled()
    prob, label = labelled.numbers("prob_mean"), labelled.table["label"].to_numpy().astype(np.int64)
    out: dict[str, Any] = {
        "split": split,
        "pictures": len(chosen.table),
        "labelled": len(label),
        "threshold": scores.threshold,
        "temperature": scores.temperature,
        "paper": {"table": list(TABLE_TWO), "confusion_matrices": list(CONFUSIONS), "note": NOTE},
    }
    if not len(label):
        return out
    patients = labelled.table["patient_id"].to_pylist()
    points = {"stored": scores.threshold, "half": 0.5}
    out["metrics"] = {
        name: _with_intervals(label, prob, threshold, patients, seed) for name, threshold in points.items()
    }
    out["predictive_values"] = predictive_values(out["metrics"]["stored"]["values"], prevalence)
    out["calibration"] = _calibration(labelled, label)
    out["subgroups"] = _subgroups(labelled, label, prob, seed)
    out["uncertainty"] = _uncertainty(scores, labelled, label, prob)
    out["residuals"] = _residuals(labelled, label, prob)
    return out


def _with_intervals(
    label: NDArray[np.int64], prob: Floats, threshold: float, patients: Sequence[str | None], seed: int
) -> dict[str, Any]:
    return {
        "threshold": threshold,
        "values": classification_metrics(label, prob, threshold),
        "intervals": bootstrap_intervals(label, prob, threshold, patients, seed=seed),
    }


def predictive_values(metrics: dict[str, Any], prevalence: float | None) -> dict[str, Any]:
    """Return the predictive values at a prevalence by Bayes' rule; None where sensitivity or specificity is.

    Args:
        metrics: with `recall`, `specificity`, `tp`, `fn`, `n`.
        prevalence: None takes that of the pictures themselves.
    """
    sensitivity, specificity = metrics["recall"], metrics["specificity"]
    share = (metrics["tp"] + metrics["fn"]) / metrics["n"] if prevalence is None else prevalence
    if sensitivity is None or specificity is None:
        return {"prevalence": share, "positive": None, "negative": None}
    ill, well = sensitivity * share, (1 - specificity) * (1 - share)
    missed, cleared = (1 - sensitivity) * share, specificity * (1 - share)
    return {
        "prevalence": share,
        "positive": ill / (ill + well) if ill + well else None,
        "negative": cleared / (cleared + missed) if cleared + missed else None,
    }


def _calibration(labelled: Scores, label: NDArray[np.int64]) -> dict[str, Any]:
    logit = labelled.numbers("logit")
    ways = {
        "before_temperature": expit(logit),
        "after_temperature": expit(logit / labelled.temperature),
        "monte_carlo_mean": labelled.numbers("prob_mean"),
    }
    return {
        name: {"brier": brier_score(prob, label), "ece": expected_calibration_error(prob, label)}
        for name, prob in ways.items()
    }


def _subgroups(labelled: Scores, label: NDArray[np.int64], prob: Floats, seed: int) -> list[dict[str, Any]]:
    """Measure each subtype against the shared normals, and each value of every further column of the manifest."""
    patients = np.array(labelled.table["patient_id"].to_pylist(), dtype=object)
    groups: list[tuple[str, str, NDArray[np.bool_]]] = []
    subtype = np.array(labelled.table["subtype"].to_pylist(), dtype=object)
    for value in sorted({value for value in subtype[label == 1] if value}):
        groups.append(("subtype", f"{value} against all normals", (subtype == value) | (label == 0)))
    known = {"label", "split", "subtype", "patient_id", "width", "height"}
    own = set(labelled.table.column_names[labelled.num_score_columns :]) - known
    for column in sorted(own):
        values = np.array(labelled.table[column].to_pylist(), dtype=object)
        distinct = sorted({str(value) for value in values if value is not None})
        if 1 < len(distinct) <= MAX_VALUES:
            groups += [(column, value, np.array([str(v) == value for v in values])) for value in distinct]
    records = []
    for column, value, rows in groups:
        record: dict[str, Any] = {"column": column, "value": value, "n": int(rows.sum())}
        if record["n"] >= MIN_SUBGROUP:
            record |= _with_intervals(label[rows], prob[rows], labelled.threshold, patients[rows].tolist(), seed)
        records.append(record)
    return records


def _uncertainty(scores: Scores, labelled: Scores, label: NDArray[np.int64], prob: Floats) -> dict[str, dict[str, Any]]:
    """Hold every uncertainty against the baseline that needs no Monte Carlo."""
    wrong = (prob >= labelled.threshold) != (label == 1)
    measures = {
        "1 - max(p, 1 - p)": doubt(prob),
        "distance to the threshold": -np.abs(prob - labelled.threshold),
        "mutual_information": labelled.numbers("mutual_information"),
        "prob_std": labelled.numbers("prob_std"),
        "mean of cam_std": labelled.maps("cam_std").mean((1, 2)).astype(np.float64),
    }
    out: dict[str, dict[str, Any]] = {}
    for name, value in measures.items():
        out[name] = {
            "error_auroc": error_detection(value, wrong),
            "aurc": risk_coverage(value, wrong).area,
            "referral": referral_table(value, label, prob, labelled.threshold),
        }
    for column in ("mutual_information", "prob_std"):
        shares = asdict(flagged_shares(scores, column))
        out[column]["flagged"] = {key: None if isinstance(v, float) and np.isnan(v) else v for key, v in shares.items()}
    return out


def _residuals(labelled: Scores, label: NDArray[np.int64], prob: Floats) -> dict[str, Any]:
    """Return `label - probability`: near -1 a confident false positive, near +1 a confident false negative."""
    residual = label - prob
    order = np.argsort(residual, kind="stable")
    names = labelled.table["image_id"].to_pylist()
    ends = {"false_positives": order[:EXTREMES], "false_negatives": order[::-1][:EXTREMES]}
    return {
        "mean": float(residual.mean()),
        "skewness": float(skew(residual)) if np.ptp(residual) > 0 else None,
        "most_extreme": {
            end: [
                {"image_id": names[i], "residual": float(residual[i]), "prob_mean": float(prob[i])}
                for i in rows
                if (prob[i] >= labelled.threshold) != (label[i] == 1)
                and (residual[i] < 0) == (end == "false_positives")
            ]
            for end, rows in ends.items()
        },
    }
