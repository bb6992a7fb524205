"""The evaluation as files: metrics.json with everything, and CSV tables for spreadsheets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.console import say
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.numbers import evaluate, match
from pneumo_ray.evaluate.scores import Scores, read_scores

OUTCOMES = ("true negative", "false positive", "false negative", "true positive")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure scores against the labels of a manifest. Reads Parquet only: no model, no Ray."""

    scores: str
    """Folder that jobs/explain.py wrote."""
    manifest: str
    """manifest.parquet of the same archive."""
    out: str
    """Folder for metrics.json and the CSV tables."""
    split: str = "test"
    """Split of the manifest to measure; `all` takes every labelled picture, those that were trained on included."""
    prevalence: float | None = None
    """Share of pneumonia where the model is to be used; predictive values are re-based to it."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise ConfigError(f"prevalence must lie between 0 and 1, got {self.prevalence}")
        if self.split not in ("train", "val", "test", "all"):
            raise ConfigError(f"split must be train, val, test or all, got {self.split!r}")


def write_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate and write the files; return what metrics.json holds.

    Raises:
        PneumoError: one sentence, if scores and manifest do not fit together or nothing is there to measure.
    """
    everything = read_scores(config.scores)
    scores = match(everything, read_manifest(storage.absolute(config.manifest)), config.manifest)
    split = None if config.split == "all" else config.split
    chosen = scores if split is None else scores.of_split(split)
    if not len(chosen.table):
        raise ConfigError(
            f"the scores have no readable picture in the split {config.split}; choose another --split, or all"
        )
    out = storage.absolute(config.out)
    storage.require_writable(out)
    numbers = evaluate(scores, split, config.prevalence, config.seed)
    numbers["failed_files"] = len(everything.table) - len(scores.table)
    storage.write_json(numbers, storage.join(out, "metrics.json"), allow_nan=False)
    tables = {"failures.csv": _failures(everything)}
    if "metrics" in numbers:
        tables |= {
            "metrics.csv": _metric_rows(numbers),
            "subgroups.csv": _subgroup_rows(numbers),
            "referral.csv": _referral_rows(numbers),
            "zones.csv": _zone_rows(chosen.labelled()),
        }
    for name, rows in tables.items():
        storage.write_csv(rows, storage.join(out, name))
    for line in summary_lines(numbers):
        say(line)
    say(f"wrote {', '.join(['metrics.json', *tables])} to {out}")
    return numbers


def summary_lines(numbers: dict[str, Any]) -> list[str]:
    """Return the five numbers that matter, with their intervals, in plain text."""
    about = f"{numbers['labelled']:,} labelled of {numbers['pictures']:,} pictures, split {numbers['split'] or 'all'}"
    if "metrics" not in numbers:
        return [f"{about}: no labels, so nothing can be measured"]
    stored = numbers["metrics"]["stored"]
    lines = [f"{about}; threshold {stored['threshold']:.3f}"]
    for name in ("auc", "accuracy", "recall", "specificity", "brier"):
        lines.append(f"  {name:<12}{_with_interval(stored['values'][name], stored['intervals'][name])}")
    lines.append(f"  {'ece':<12}{_number(stored['values']['ece'])}")
    best = max(
        (
            (name, found["error_auroc"])
            for name, found in numbers["uncertainty"].items()
            if found["error_auroc"] is not None
        ),
        key=lambda item: item[1],
        default=None,
    )
    base = numbers["uncertainty"]["1 - max(p, 1 - p)"]["error_auroc"]
    if best is not None:
        lines.append(
            f"  errors are found best by {best[0]} (AUROC {best[1]:.3f}; without Monte Carlo, 1 - max(p, 1 - p): {base:.3f})"
        )
    return lines


def _metric_rows(numbers: dict[str, Any]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [("operating_point", "threshold", "metric", "value", "low", "high")]
    for point, found in numbers["metrics"].items():
        for name, value in found["values"].items():
            rows.append((point, found["threshold"], name, value, *(found["intervals"].get(name) or (None, None))))
    return rows


def _subgroup_rows(numbers: dict[str, Any]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [("column", "value", "n", "metric", "estimate", "low", "high")]
    for group in numbers["subgroups"]:
        head = (group["column"], group["value"], group["n"])
        if "values" not in group:
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


def _zone_rows(labelled: Scores) -> list[Sequence[Any]]:
    """Return the mean zone activation by class and by outcome, of the class that the maps explain."""
    label = labelled.table["label"].to_numpy()
    called = labelled.table["predicted"].to_numpy()
    groups = {"normal": label == 0, "pneumonia": label == 1}
    groups |= {name: (label == number // 2) & (called == [0, 1, 0, 1][number]) for number, name in enumerate(OUTCOMES)}
    rows: list[Sequence[Any]] = [("pictures", "explained class", "n", "zone", "mean", "std")]
    for name, chosen in groups.items():
        for zone in labelled.zones:
            values = labelled.numbers(f"zone_mean_{zone}")[chosen]
            values = values[np.isfinite(values)]
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            rows.append(
                (name, labelled.target, len(values), zone, float(values.mean()) if len(values) else None, spread)
            )
    return rows


def _failures(scores: Scores) -> list[Sequence[Any]]:
    failed = scores.table.filter(pc.equal(scores.table["status"], "failed"))
    rows = [failed[name].to_pylist() for name in ("image_id", "error_stage", "error")]
    return [("image_id", "error_stage", "error"), *zip(*rows, strict=True)]


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    return _number(value) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
