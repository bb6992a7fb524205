"""Change of the scores under each condition, from Parquet files: one record per condition."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from pneumo_ray.evaluate.influence import Predictions
from pneumo_ray.evaluate.intervals import difference, patient_intervals
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.shortcuts import MetadataBaseline
from pneumo_ray.evaluate.tables import number_text
from pneumo_ray.images.corruptions import AS_IT_IS, CONDITIONS, Condition

FORMAT = "pneumo_ray.robustness 1"

NUMBERS = ("logit", "prob_mean", "prob_std", "logit_mean", "logit_std")
"""Columns of the scores that are kept; units as in the scores of jobs/explain.py."""

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("condition", pa.string(), nullable=False),
        pa.field("severity", pa.int8(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        ("error_stage", pa.string()),
        ("error", pa.string()),
        ("label", pa.int8()),
        ("patient_id", pa.string()),
        *((name, pa.float32()) for name in NUMBERS),
        ("lungs", pa.string()),
    ]
)
"""A row for every image and condition, failed ones included; `severity` is 0 where there are no grades, `lungs` is what is
taken for the lungs: a mask, the manifest's box, or the central part of the image (mask, box, central)."""

INTERVALS = ("auc", "recall", "specificity", "accuracy", "brier", "ece")
"""Measures that have an interval over patients."""
TABLE = ("auc", "recall", "specificity", "accuracy", "brier", "ece")
"""Measures of a row of the CSV file."""


def measure_conditions(table: pa.Table, threshold: float, seed: int = 0) -> list[dict[str, Any]]:
    """Return a record for each condition that the table holds, in the order of `CONDITIONS`.

    Args:
        table: of `SCHEMA`.
        threshold: pneumonia is predicted where `prob_mean >= threshold`.
        seed: of the calibration test.

    Returns:
        Of each: `condition`, `severity`, `description`, `n` images that were scored, `failed`, `values` (as
        `classification_metrics`), `intervals` (95 %, over patients), and, over the images that were scored both ways,
        `auc_difference` to the image as it is (negative: worse), `auc_difference_interval` (95 %, paired, over
        patients; None where no rank changed), and `decisions_changed`, the share of images that change their predicted
        class. None where undefined.
    """
    plain = _ok(_of(table, AS_IT_IS))
    records = []
    for condition in CONDITIONS:
        rows = _of(table, condition)
        if not len(rows):
            continue
        good = _ok(rows)
        prob, label = good["prob_mean"].to_numpy().astype(np.float64), good["label"].to_numpy()
        patients = good["patient_id"].to_pylist()
        of_measure = patient_intervals(label.astype(np.int64), prob, threshold, patients, INTERVALS, seed=seed)
        records.append(
            {
                "condition": condition.name,
                "severity": condition.severity,
                "description": condition.description,
                "n": len(good),
                "failed": len(rows) - len(good),
                "values": classification_metrics(label, prob, threshold),
                "intervals": of_measure,
                **_against(plain, good, threshold),
            }
        )
    return records


def _of(table: pa.Table, condition: Condition) -> pa.Table:
    same = pc.and_(pc.equal(table["condition"], condition.name), pc.equal(table["severity"], condition.severity))
    return table.filter(same)


def _ok(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["status"], "ok")).combine_chunks()


def _against(plain: pa.Table, good: pa.Table, threshold: float) -> dict[str, Any]:
    """Compare a condition with the unchanged images, image by image."""
    place = pc.index_in(good["image_id"], value_set=plain["image_id"].combine_chunks()).combine_chunks()
    both = pc.is_valid(place)
    good, plain = good.filter(both), plain.take(place.filter(both))
    label = good["label"].to_numpy().astype(np.int64)
    before, after = (rows["prob_mean"].to_numpy().astype(np.float64) for rows in (plain, good))
    compared: dict[str, Any] = {"auc_difference": None, "auc_difference_interval": None, "decisions_changed": None}
    if len(label):
        compared["decisions_changed"] = float(np.mean((before >= threshold) != (after >= threshold)))
    if 0 < label.sum() < len(label):
        compared["auc_difference"] = float(roc_auc_score(label, after) - roc_auc_score(label, before))
        patients = good["patient_id"].to_pylist()
        changed, as_it_is = (Predictions.of(label, prob, threshold, patients) for prob in (after, before))
        compared["auc_difference_interval"] = difference("auc", changed, as_it_is)["interval"]
    return compared


def condition_rows(records: Sequence[dict[str, Any]]) -> list[Sequence[Any]]:
    """Return one row per condition for a spreadsheet, after a header; an empty cell is undefined."""
    measures = [(name, *((f"{name}_low", f"{name}_high") if name in INTERVALS else ())) for name in TABLE]
    header = ["condition", "severity", "description", "n", "failed", "decisions_changed", "auc_difference"]
    ends = ["auc_difference_low", "auc_difference_high"]
    rows: list[Sequence[Any]] = [[*header, *ends, *(cell for cells in measures for cell in cells)]]
    for record in records:
        cells = [record[name] for name in header]
        cells += record["auc_difference_interval"] or (None, None)
        for name in TABLE:
            cells.append(record["values"][name])
            if name in INTERVALS:
                cells += record["intervals"][name] or (None, None)
        rows.append(cells)
    return rows


def summary_line(records: Sequence[dict[str, Any]], baseline: MetadataBaseline) -> str:
    """Return a one-sentence summary: the worst corruption, the blackened images and the metadata baseline."""
    found = {(record["condition"], record["severity"]): record for record in records}
    auc = {key: record["values"]["auc"] for key, record in found.items()}
    parts = [f"AUC {number_text(auc.get((AS_IT_IS.name, AS_IT_IS.severity)))} on the unchanged images"]
    graded = [(value, key) for key, value in auc.items() if key[1] and value is not None]
    if graded:
        value, (name, severity) = min(graded)
        specificity = found[name, severity]["values"]["specificity"]
        parts.append(f"{number_text(value)} at worst ({name} {severity}, specificity {number_text(specificity)})")
    for name, words in (("lungs_black", "with the lungs black"), ("only_lungs", "with all but the lungs black")):
        if (name, 0) in auc:
            parts.append(f"{number_text(auc[name, 0])} {words}")
    parts.append(f"{number_text(baseline.auc)} from metadata alone")
    return "; ".join(parts)
