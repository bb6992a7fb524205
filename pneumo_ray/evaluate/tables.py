"""The evaluation as tables for spreadsheets, and as a few lines for the terminal."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa

from pneumo_ray.evaluate.gaps import Gap
from pneumo_ray.evaluate.numbers import WITHOUT_PASSES

GAP_COLUMNS = tuple(field.name for field in fields(Gap))


def tables_of(
    numbers: dict[str, Any], zones: Sequence[dict[str, Any]], failed: pa.Table
) -> dict[str, list[Sequence[Any]]]:
    """Return the CSV tables: name of the file and rows, the first of them the header.

    Args:
        numbers: from `numbers.evaluate`.
        zones: from `zone_table`.
        failed: rows of the scores that failed, of all splits.
    """
    tables = {"failures.csv": _failures(failed)}
    if "metrics" in numbers:
        tables |= {
            "metrics.csv": _metric_rows(numbers),
            "subgroups.csv": _subgroup_rows(numbers),
            "gaps.csv": [GAP_COLUMNS, *(tuple(gap[name] for name in GAP_COLUMNS) for gap in numbers["gaps"])],
            "referral.csv": _referral_rows(numbers),
            "zones.csv": [tuple(zones[0]), *(tuple(record.values()) for record in zones)] if zones else [("pictures",)],
        }
    return tables


def summary_lines(numbers: dict[str, Any]) -> list[str]:
    """Return the five main numbers with their intervals as plain text."""
    about = f"{numbers['labelled']:,} labelled of {numbers['pictures']:,} images, split {numbers['split'] or 'all'}"
    if "metrics" not in numbers:
        return [f"{about}: no labels, so nothing can be measured"]
    stored = numbers["metrics"]["stored"]
    lines = [f"{about}; threshold {stored['threshold']:.3f}"]
    for name in ("auc", "accuracy", "recall", "specificity", "brier", "ece"):
        lines.append(f"  {name:<12}{_with_interval(stored['values'][name], stored['intervals'][name])}")
    found = {name: record["error_auroc"] for name, record in numbers["uncertainty"].items()}
    if all(value is not None for value in found.values()):
        plain = max(WITHOUT_PASSES, key=lambda name: found[name])
        best = max((name for name in found if name not in WITHOUT_PASSES), key=lambda name: found[name])
        lines.append(
            f"  the passes find errors with an AUROC of {found[best]:.3f} ({best}), without them with {found[plain]:.3f} ({plain})"
        )
    return lines


def _metric_rows(numbers: dict[str, Any]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [("operating_point", "threshold", "metric", "value", "low", "high", "method")]
    methods = numbers["interval_methods"]["methods"]
    for point, found in numbers["metrics"].items():
        for name, value in found["values"].items():
            low, high = found["intervals"].get(name) or (None, None)
            rows.append((point, found["threshold"], name, value, low, high, None if low is None else methods[name]))
    return rows


def _subgroup_rows(numbers: dict[str, Any]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [("column", "value", "n", "metric", "estimate", "low", "high")]
    for group in numbers["subgroups"]:
        head = (group["column"], group["value"], group["n"])
        if "left_out" in group:
            rows.append((*head, f"left out: {group['left_out']}", None, None, None))
        elif "values" not in group:
            rows.append((*head, "too few to measure", None, None, None))
        for name, interval in group.get("intervals", {}).items():
            rows.append((*head, name, group["values"][name], *(interval or (None, None))))
    return rows


def _referral_rows(numbers: dict[str, Any]) -> list[Sequence[Any]]:
    names = ("referred", "errors_referred", "n", "accuracy", "recall", "specificity", "auc")
    rows: list[Sequence[Any]] = [("uncertainty", *names)]
    for measure, found in numbers["uncertainty"].items():
        rows += [(measure, *(record[name] for name in names)) for record in found["referral"]]
    return rows


def _failures(failed: pa.Table) -> list[Sequence[Any]]:
    rows = [failed[name].to_pylist() for name in ("image_id", "error_stage", "error")]
    return [("image_id", "error_stage", "error"), *zip(*rows, strict=True)]


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    return number_text(value) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def number_text(value: float | None) -> str:
    """Return a measure as the terminal shows it."""
    return "undefined" if value is None else f"{value:.3f}"
