"""The evaluation as tables for spreadsheets, and as a few lines for the terminal."""

from collections.abc import Sequence
from dataclasses import astuple, fields

import pyarrow as pa

from pneumo_ray.evaluate.evaluation import Evaluation, Measured
from pneumo_ray.evaluate.gaps import Gap
from pneumo_ray.evaluate.intervals import Interval
from pneumo_ray.evaluate.number_text import number_text
from pneumo_ray.evaluate.uncertainty import WITHOUT_PASSES
from pneumo_ray.evaluate.zone_table import ZoneRecord
from pneumo_ray.records import json_of

Rows = list[Sequence[object]]
"""The rows of a CSV file, the first of them the header."""

GAP_COLUMNS = tuple(field.name for field in fields(Gap))


def tables_of(numbers: Evaluation, zones: Sequence[ZoneRecord], failed: pa.Table) -> dict[str, Rows]:
    """Return the CSV tables by the names of their files.

    Args:
        numbers: from `numbers.evaluate`.
        zones: from `zone_table`.
        failed: rows of the scores that failed, of all splits.
    """
    tables = {"failures.csv": _failures(failed)}
    if (measured := numbers.measured) is not None:
        tables |= {
            "metrics.csv": _metric_rows(measured),
            "subgroups.csv": _subgroup_rows(measured),
            "gaps.csv": [GAP_COLUMNS, *(astuple(gap) for gap in measured.gaps)],
            "referral.csv": _referral_rows(measured),
            "zones.csv": _zone_rows(zones),
        }
    return tables


def _zone_rows(zones: Sequence[ZoneRecord]) -> Rows:
    records = [json_of(zone) for zone in zones]
    return [tuple(records[0]), *(tuple(record.values()) for record in records)] if records else [("pictures",)]


def summary_lines(numbers: Evaluation) -> list[str]:
    """Return the five main numbers with their intervals as plain text."""
    about = f"{numbers.labelled:,} labelled of {numbers.images:,} images, split {numbers.split or 'all'}"
    if numbers.measured is None:
        return [f"{about}: no labels, so nothing can be measured"]
    stored = numbers.measured.metrics.stored
    lines = [f"{about}; threshold {stored.threshold:.3f}"]
    for name in ("auc", "accuracy", "recall", "specificity", "brier", "ece"):
        lines.append(f"  {name:<12}{_with_interval(stored.values[name], stored.intervals[name])}")
    if (compared := best_uncertainties(numbers.measured)) is not None:
        (best, best_auroc), (plain, plain_auroc) = compared
        lines.append(
            f"  the passes find errors with an AUROC of {number_text(best_auroc)} ({best}), without them "
            f"with {number_text(plain_auroc)} ({plain})"
        )
    return lines


def best_uncertainties(measured: Measured) -> tuple[tuple[str, float], tuple[str, float]] | None:
    """Return the uncertainty that finds the errors best, of those of the passes and of those without: name and AUROC.

    None where nothing, or everything, is wrong.
    """
    found = {name: value.error_auroc for name, value in measured.uncertainty.items() if value.error_auroc is not None}
    if len(found) < len(measured.uncertainty):
        return None
    plain = max(WITHOUT_PASSES, key=lambda name: found[name])
    best = max((name for name in found if name not in WITHOUT_PASSES), key=lambda name: found[name])
    return (best, found[best]), (plain, found[plain])


def _metric_rows(measured: Measured) -> Rows:
    rows: Rows = [("operating_point", "threshold", "metric", "value", "low", "high", "method")]
    methods = measured.interval_methods.methods
    for point, found in (("stored", measured.metrics.stored), ("half", measured.metrics.half)):
        for name, value in json_of(found.values).items():
            low, high = found.intervals.get(name) or (None, None)
            rows.append((point, found.threshold, name, value, low, high, None if low is None else methods[name]))
    return rows


def _subgroup_rows(measured: Measured) -> Rows:
    rows: Rows = [("column", "value", "n", "metric", "estimate", "low", "high")]
    for group in measured.subgroups:
        head = (group.column, group.value, group.n)
        if group.measured is None:
            reason = "too few to measure" if group.left_out is None else f"left out: {group.left_out}"
            rows.append((*head, reason, None, None, None))
            continue
        for name, interval in group.measured.intervals.items():
            rows.append((*head, name, group.measured.values[name], *(interval or (None, None))))
    return rows


def _referral_rows(measured: Measured) -> Rows:
    names = ("n", "accuracy", "recall", "specificity", "auc")
    rows: Rows = [("uncertainty", "referred", "errors_referred", *names)]
    for measure, found in measured.uncertainty.items():
        rows += [(measure, r.referred, r.errors_referred, *(r.kept[name] for name in names)) for r in found.referral]
    return rows


def _failures(failed: pa.Table) -> Rows:
    rows = [failed[name].to_pylist() for name in ("image_id", "error_stage", "error")]
    return [("image_id", "error_stage", "error"), *zip(*rows, strict=True)]


def _with_interval(value: float | None, interval: Interval | None) -> str:
    return number_text(value) + (f" ({ends_text(interval)})" if interval else "")


def ends_text(interval: Sequence[float], decimals: int = 3, full: float = 1.0) -> str:
    """Return an interval as `low to high`, without an end rounded to 0 or to all that is not exactly there.

    Args:
        interval: low and high.
        decimals: of an end, as for `number_text`.
        full: likewise.
    """
    low, high = (number_text(end, decimals, full) for end in interval)
    return f"{low} to {high}"
