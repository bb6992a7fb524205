"""Change of the scores under each condition, from Parquet files: one record per condition."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from pneumo_ray.evaluate.differences import difference
from pneumo_ray.evaluate.influence import Predictions
from pneumo_ray.evaluate.intervals import Interval, patient_intervals
from pneumo_ray.evaluate.metrics import Metrics, classification_metrics
from pneumo_ray.evaluate.number_text import number_text
from pneumo_ray.evaluate.shortcuts import MetadataBaseline
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


@dataclass(frozen=True)
class ConditionRecord:
    """The scores of a split under one condition; None where undefined."""

    condition: str
    severity: int
    description: str
    n: int
    """Images that were scored."""
    failed: int
    values: Metrics
    intervals: dict[str, Interval | None]
    """95 %, over patients, of `INTERVALS`."""
    auc_difference: float | None = None
    """To the image as it is, over the images that were scored both ways; negative: worse."""
    auc_difference_interval: Interval | None = None
    """95 %, paired, over patients; None where no rank changed."""
    decisions_changed: float | None = None
    """Share of these images that change their predicted class."""


def measure_conditions(table: pa.Table, threshold: float, seed: int = 0) -> list[ConditionRecord]:
    """Return a record for each condition that the table holds, in the order of `CONDITIONS`.

    Args:
        table: of `SCHEMA`.
        threshold: pneumonia is predicted where `prob_mean >= threshold`.
        seed: of the calibration test.
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
        auc_difference, interval, changed = _against(plain, good, threshold)
        records.append(
            ConditionRecord(
                condition=condition.name,
                severity=condition.severity,
                description=condition.description,
                n=len(good),
                failed=len(rows) - len(good),
                values=classification_metrics(label, prob, threshold),
                intervals=of_measure,
                auc_difference=auc_difference,
                auc_difference_interval=interval,
                decisions_changed=changed,
            )
        )
    return records


def _of(table: pa.Table, condition: Condition) -> pa.Table:
    same = pc.and_(pc.equal(table["condition"], condition.name), pc.equal(table["severity"], condition.severity))
    return table.filter(same)


def _ok(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["status"], "ok")).combine_chunks()


def _against(plain: pa.Table, good: pa.Table, threshold: float) -> tuple[float | None, Interval | None, float | None]:
    """Return the difference in AUC to the unchanged images, its interval, and the share of decisions that change."""
    place = pc.index_in(good["image_id"], value_set=plain["image_id"].combine_chunks()).combine_chunks()
    both = pc.is_valid(place)
    good, plain = good.filter(both), plain.take(place.filter(both))
    label = good["label"].to_numpy().astype(np.int64)
    before, after = (rows["prob_mean"].to_numpy().astype(np.float64) for rows in (plain, good))
    if not len(label):
        return None, None, None
    decisions = float(np.mean((before >= threshold) != (after >= threshold)))
    if not 0 < label.sum() < len(label):
        return None, None, decisions
    patients = good["patient_id"].to_pylist()
    changed, as_it_is = (Predictions.of(label, prob, threshold, patients) for prob in (after, before))
    worse = float(roc_auc_score(label, after) - roc_auc_score(label, before))
    return worse, difference("auc", changed, as_it_is).interval, decisions


def condition_rows(records: Sequence[ConditionRecord]) -> list[Sequence[object]]:
    """Return one row per condition for a spreadsheet, after a header; an empty cell is undefined."""
    measures = [(name, *((f"{name}_low", f"{name}_high") if name in INTERVALS else ())) for name in TABLE]
    header = ["condition", "severity", "description", "n", "failed", "decisions_changed", "auc_difference"]
    ends = ["auc_difference_low", "auc_difference_high"]
    rows: list[Sequence[object]] = [[*header, *ends, *(cell for cells in measures for cell in cells)]]
    for r in records:
        cells = [r.condition, r.severity, r.description, r.n, r.failed, r.decisions_changed, r.auc_difference]
        cells += r.auc_difference_interval or (None, None)
        for name in TABLE:
            cells.append(r.values[name])
            if name in INTERVALS:
                cells += r.intervals[name] or (None, None)
        rows.append(cells)
    return rows


def summary_line(records: Sequence[ConditionRecord], baseline: MetadataBaseline) -> str:
    """Return a one-sentence summary: the worst corruption, the blackened images and the metadata baseline."""
    found = {(record.condition, record.severity): record for record in records}
    auc = {key: record.values.auc for key, record in found.items()}
    parts = [f"AUC {number_text(auc.get((AS_IT_IS.name, AS_IT_IS.severity)))} on the unchanged images"]
    graded = [(value, key) for key, value in auc.items() if key[1] and value is not None]
    if graded:
        value, (name, severity) = min(graded)
        specificity = found[name, severity].values.specificity
        parts.append(f"{number_text(value)} at worst ({name} {severity}, specificity {number_text(specificity)})")
    for name, words in (("lungs_black", "with the lungs black"), ("only_lungs", "with all but the lungs black")):
        if (name, 0) in auc:
            parts.append(f"{number_text(auc[name, 0])} {words}")
    parts.append(f"{number_text(baseline.auc)} from metadata alone")
    return "; ".join(parts)
