"""The comparison of posteriors: read the further scores, measure, and lay out as tables."""

import json

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.matching import check_coverage, match
from pneumo_ray.evaluate.posterior_records import BASELINE, PosteriorComparison, PosteriorRecord
from pneumo_ray.evaluate.posteriors import REFERRED, Scored, compare_posteriors
from pneumo_ray.evaluate.scores import Scores, read_run, read_scores
from pneumo_ray.evaluate.tables import Rows
from pneumo_ray.images.corruptions import AS_IT_IS
from pneumo_ray.records import JsonObject
from pneumo_ray.report.sections import CellRows, Context
from pneumo_ray.report.wording import percent_cell, with_range, words_of


def measure_posteriors(
    config: EvaluateConfig, chosen: Scores, run: JsonObject, manifest: pa.Table, split: str | None
) -> PosteriorComparison | None:
    """Compare the scores with those of --posteriors; None where there are none.

    Args:
        config: the evaluation.
        chosen: scores of the split, from `matching.match`.
        run: their `_run.json`.
        manifest: of the archive.
        split: None for all.

    Raises:
        ManifestError: if scores lack images of the split, or cannot be compared.
    """
    if not config.posteriors:
        return None
    assert config.scores is not None

    def of_folder(folder: str) -> Scored:
        everything = read_scores(folder)
        check_coverage(everything, manifest, split, config.manifest)
        found = match(everything, manifest, config.manifest)
        return Scored.of(folder, found if split is None else found.of_split(split), read_run(folder))

    sets = [Scored.of(config.scores, chosen, run), *(of_folder(folder) for folder in config.posteriors)]
    seeds = [of_folder(folder) for folder in config.other_seeds]
    shifted = [one for folder in config.shifted for one in _elsewhere(folder)]
    return compare_posteriors(sets, shifted, seeds)


def _elsewhere(folder: str) -> list[Scored]:
    """Return the scores of other images; of a folder of jobs/robustness.py those of every corruption at its highest severity.

    Raises:
        ManifestError: if it holds neither.
    """
    place = storage.absolute(folder)
    if not storage.exists(storage.join(place, "robustness.parquet")):
        return [Scored.of(folder, read_scores(folder).ok(), read_run(folder))]
    facts = json.loads(storage.read_bytes(storage.join(place, "robustness.json")))
    table = storage.read_table(storage.join(place, "robustness.parquet"))
    table = table.filter(pc.equal(table["status"], "ok"))
    run = {"config": facts["method"], "model": {"hash": facts["model_hash"]}}
    calibration = {"temperature": facts["temperature"], "intercept": facts.get("intercept", 0.0)}
    highest: dict[str, int] = {}
    for condition, severity in zip(table["condition"].to_pylist(), table["severity"].to_pylist(), strict=True):
        highest[condition] = max(severity, highest.get(condition, 0))
    sets = []
    for condition, severity in highest.items():
        if condition != AS_IT_IS.name:
            rows = table.filter(pc.and_(pc.equal(table["condition"], condition), pc.equal(table["severity"], severity)))
            scores = Scores(rows, (1, 1), (), facts["threshold"], "predicted", **calibration)
            sets.append(Scored.of(words_of(condition), scores, run))
    return sets


HEADER = ("scores", "posterior", "images", "errors", "measure", "value", "low", "high", "above_baseline",
          "above_baseline_low", "above_baseline_high", "area", "errors_referred")  # fmt: skip
"""Columns of posteriors.csv."""


def csv_rows(found: PosteriorComparison) -> Rows:
    """Return the rows of posteriors.csv, the header first."""
    rows: Rows = [HEADER]
    for record in found.records:
        about = [record.name, record.title, record.images, record.errors]
        blank = (None,) * 5
        rows += [[*about, name, value, None, None, *blank] for name, value in _qualities(record)]
        for one in record.found:
            rows.append(
                [*about, f"errors: {one.uncertainty}", one.auroc, *_ends(one.interval), one.above_baseline,
                 *_ends(one.above_baseline_interval), one.area, one.errors_referred]
            )  # fmt: skip
        for shift in record.shifts:
            rows += [
                [*about, f"shift to {shift.where}: {name}", value, *_ends(shift.interval[name]), *blank]
                for name, value in shift.auroc.items()
            ]
        if record.maps is not None:
            for name in ("of_std", "of_mean", "above_mean"):
                estimate = getattr(record.maps, name)
                rows.append([*about, f"map: {name}", estimate.value, *_ends(estimate.interval), *blank])
    return rows


def posterior_tables(found: PosteriorComparison | None) -> Context:
    """Return the tables of the page; without rows where nothing was compared."""
    keys = ("posterior_rows", "posterior_error_rows", "posterior_shift_rows", "posterior_map_rows")
    if found is None:
        return dict.fromkeys(keys, ()) | {"posterior_sentence": "", "posterior_about": ""}
    rows: CellRows = []
    errors: CellRows = []
    shifts: CellRows = []
    maps: CellRows = []
    for record in found.records:
        rows.append(
            [record.title, record.errors, record.auc, record.brier,
             with_range(record.brier_difference, record.brier_difference_interval), record.ece]
        )  # fmt: skip
        for one in record.found:
            errors.append(
                [record.title, words_of(one.uncertainty), with_range(one.auroc, one.interval), one.area,
                 percent_cell(one.errors_referred), with_range(one.above_baseline, one.above_baseline_interval)]
            )  # fmt: skip
        for shift in record.shifts:
            shifts += [
                [
                    record.title,
                    f"{shift.where} ({shift.images:,})",
                    words_of(name),
                    with_range(value, shift.interval[name]),
                ]
                for name, value in shift.auroc.items()
            ]
        if record.maps is not None:
            estimates = (record.maps.of_std, record.maps.of_mean, record.maps.above_mean)
            maps.append([record.title, *(with_range(one.value, one.interval) for one in estimates)])
    about = (
        f"Sets of scores of the {found.images:,} labelled images that all have, of {found.patients:,} patients, each at its own threshold. "
        f"The {BASELINE} is that of the plain probability and needs no posterior. Intervals of differences hold all "
        f"{found.comparisons} comparisons at once. Errors referred: among the most uncertain {100 * REFERRED:.0f} % of the images."
    )
    return {
        **dict(zip(keys, (rows, errors, shifts, maps), strict=True)),
        "posterior_sentence": found.sentence,
        "posterior_about": about,
    }


def _qualities(record: PosteriorRecord) -> list[tuple[str, float | None]]:
    return [("auc", record.auc), ("brier", record.brier), ("ece", record.ece)]


def _ends(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else interval
