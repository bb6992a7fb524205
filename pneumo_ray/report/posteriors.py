"""The comparison of posteriors: read the further scores, measure, and lay out as tables."""

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.errors import PneumoError
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.matching import check_coverage, match
from pneumo_ray.evaluate.posterior_records import PosteriorComparison, PosteriorRecord
from pneumo_ray.evaluate.posteriors import REFERRED, compare_posteriors
from pneumo_ray.evaluate.scored import Scored
from pneumo_ray.evaluate.scores import Scores, fact, read_run, read_scores
from pneumo_ray.evaluate.tables import Rows
from pneumo_ray.evaluate.uncertainty import WITHOUT_PASSES
from pneumo_ray.images.corruptions import AS_IT_IS
from pneumo_ray.records import JsonObject
from pneumo_ray.report.sections import CellRows, Context
from pneumo_ray.report.wording import percent_cell, with_range, words_of


def posterior_sets(
    config: EvaluateConfig, chosen: Scores, run: JsonObject, manifest: pa.Table, split: str | None
) -> list[Scored]:
    """Return the scores and those of --posteriors, joined with the manifest; none where there is nothing to compare.

    Args:
        config: the evaluation.
        chosen: scores of the split, from `matching.match`.
        run: their `_run.json`.
        manifest: of the archive.
        split: None for all.

    Raises:
        ManifestError: if scores lack images of the split.
    """
    if not config.posteriors:
        return []
    assert config.scores is not None
    further = (_of_folder(folder, config, manifest, split) for folder in config.posteriors)
    return [Scored.of(config.scores, chosen, run), *further]


def measure_posteriors(
    config: EvaluateConfig, sets: Sequence[Scored], manifest: pa.Table, split: str | None
) -> PosteriorComparison | None:
    """Compare sets of scores; None where there are none.

    Args:
        config: the evaluation.
        sets: from `posterior_sets`.
        manifest: of the archive.
        split: None for all.

    Raises:
        ManifestError: if scores lack images of the split, or cannot be compared.
    """
    if not sets:
        return None
    seeds = [_of_folder(folder, config, manifest, split) for folder in config.other_seeds]
    shifted = [one for folder in config.shifted for one in scores_elsewhere(folder)]
    return compare_posteriors(sets, shifted, seeds)


def _of_folder(folder: str, config: EvaluateConfig, manifest: pa.Table, split: str | None) -> Scored:
    everything = read_scores(folder)
    check_coverage(everything, manifest, split, config.manifest)
    found = match(everything, manifest, config.manifest)
    return Scored.of(folder, found if split is None else found.of_split(split), read_run(folder))


def scores_elsewhere(folder: str) -> list[Scored]:
    """Return the scores of other images; of a folder of jobs/robustness.py those of every corruption at its highest severity.

    Raises:
        ManifestError: if it holds neither.
    """
    place = storage.absolute(folder)
    if not storage.exists(storage.join(place, "robustness.parquet")):
        run = read_run(folder)
        return [Scored.of(folder, _with_patients(read_scores(folder).ok(), run), run)]
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


def _with_patients(scores: Scores, run: JsonObject) -> Scores:
    """Return the scores with the patients of the manifest that they are of, where it can still be read."""
    manifest = fact(run, "config", "manifest")
    if not isinstance(manifest, str):
        return scores
    try:
        return scores.joined(read_manifest(storage.absolute(manifest)), ("patient_id",))
    except (PneumoError, OSError):
        return scores


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
            for name in ("of_std", "of_mean", "above_mean", "within_evidence"):
                estimate = getattr(record.maps, name)
                rows.append([*about, f"map: {name}", estimate.value, *_ends(estimate.interval), *blank])
        if record.sampling is not None:
            rows += [
                [*about, f"sampling error of {name}_std", getattr(record.sampling, name), None, None, *blank]
                for name in ("logit", "cell", "zone")
            ]
    return rows


def posterior_tables(found: PosteriorComparison | None) -> Context:
    """Return the tables of the page; without rows where nothing was compared."""
    records = [] if found is None else found.records
    shift_heads, shift_rows = _shift_table(records)
    return {
        "posterior_sentence": "" if found is None else found.sentence,
        "posterior_about": "" if found is None else _about(found),
        "posterior_rows": [
            [r.title, r.errors, r.auc, r.brier, with_range(r.brier_difference, r.brier_difference_interval), r.ece]
            for r in records
        ],
        "posterior_error_rows": [
            [record.title, words_of(one.uncertainty), with_range(one.auroc, one.interval), one.area,
             percent_cell(one.errors_referred), with_range(one.above_baseline, one.above_baseline_interval)]
            for record in records
            for one in record.found
        ],
        "posterior_shift_heads": shift_heads,
        "posterior_shift_rows": shift_rows,
        "posterior_map_rows": [
            [r.title, *(with_range(one.value, one.interval) for one in (m.of_std, m.of_mean, m.above_mean, m.within_evidence))]
            for r in records
            if (m := r.maps) is not None
        ],
        "posterior_maps_about": _left_out([r.title for r in records if r.maps_left_out]),
        "posterior_sampling_rows": [
            [r.title, *(percent_cell(value, 1) for value in (r.sampling.logit, r.sampling.cell, r.sampling.zone))]
            for r in records
            if r.sampling is not None
        ],
    }  # fmt: skip


def _about(found: PosteriorComparison) -> str:
    return (
        f"Sets of scores of the {found.images:,} labelled images that all have, of {found.patients:,} patients, each at its own threshold. "
        f"{' and '.join(WITHOUT_PASSES)} are of the plain probability and need no posterior. Intervals of differences hold all "
        f"{found.comparisons} comparisons at once. Errors referred: among the most uncertain {100 * REFERRED:.0f} % of the images."
    )


def _shift_table(records: Sequence[PosteriorRecord]) -> tuple[list[str], CellRows]:
    """Return a row for each archive and posterior, the posteriors of an archive below one another, and a column per uncertainty."""
    names = list(dict.fromkeys(name for record in records for shift in record.shifts for name in shift.auroc))
    places = list(dict.fromkeys(shift.where for record in records for shift in record.shifts))
    rows: CellRows = [
        [f"{where} ({shift.images:,})", record.title,
         *(with_range(shift.auroc.get(name), shift.interval.get(name)) for name in names)]
        for where in places
        for record in records
        for shift in record.shifts
        if shift.where == where
    ]  # fmt: skip
    return ["images", "posterior", *map(words_of, names)], rows


def _left_out(titles: Sequence[str]) -> str:
    if not titles:
        return ""
    return f"Left out because one of the two seeds is a member of it, so that its spread contains the difference: {', '.join(titles)}."


def _qualities(record: PosteriorRecord) -> list[tuple[str, float | None]]:
    return [("auc", record.auc), ("brier", record.brier), ("ece", record.ece)]


def _ends(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else interval
