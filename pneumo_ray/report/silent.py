"""The weekly table of a silent trial: calls of the model, doubtful images, drift and, as labels come, its performance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.manifest import apply_labels, read_labels, read_manifest
from pneumo_ray.data.names import same_extension, slashed, stem
from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.drawing import save_figure
from pneumo_ray.evaluate.intervals import patient_intervals
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.number_text import percent_text
from pneumo_ray.evaluate.scores import Scores, read_scores
from pneumo_ray.report.drift import check_comparable, period, side_of, week_figure
from pneumo_ray.report.shell import made, render
from pneumo_ray.report.wording import percent_cell, with_range
from pneumo_ray.score.batches import batches_of, manifest_of, scores_of
from pneumo_ray.score.silent_config import SilentConfig
from pneumo_ray.site.drift import Drift, compare
from pneumo_ray.site.quantities import quantities

MEASURES = ("auc", "recall", "specificity", "brier", "ece")


@dataclass(frozen=True)
class Week:
    """A week of scoring; measures are None without labels of both classes, intervals of too few patients."""

    week: str
    images: int
    failed: int
    called: float | None
    """Share called pneumonia, at the site's threshold where there is a site.json."""
    doubtful: float | None
    """Share whose view is doubtful, that is outside the support of the training data, or on which the passes do not agree."""
    labelled: int
    values: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]
    drifted: tuple[str, ...]
    """Quantities with an alarm against the reference."""


def write_weeks(config: SilentConfig) -> list[Week]:
    """Write weeks.csv, weeks.json, silent.html and the figure of a silent trial.

    Raises:
        PneumoError: if there is nothing yet, or the scores, the labels or the reference do not fit.
    """
    scores, weeks_of, manifest = _all_scores(config)
    drift = _drift(config, scores, weeks_of)
    weeks = [_week(week, scores, weeks_of, manifest, drift, config) for week in [*sorted(set(weeks_of)), "all"]]
    out = storage.absolute(config.out)
    storage.write_json([asdict(week) for week in weeks], storage.join(out, "weeks.json"), allow_nan=False)
    storage.write_csv(_csv(weeks), storage.join(out, "weeks.csv"))
    figures = {} if drift is None else week_figure(drift)
    drawn = {name: save_figure(figure, storage.join(out, "figures"), name) for name, figure in figures.items()}
    storage.write_bytes(storage.join(out, "silent.html"), _page(weeks, config, drawn).encode("utf-8", "replace"))
    total = weeks[-1]
    log(
        f"{total.images:,} images in {len(weeks) - 1:,} week(s), {total.labelled:,} labelled; page {storage.join(out, 'silent.html')}"
    )
    return weeks


def _all_scores(config: SilentConfig) -> tuple[Scores, list[str], pa.Table]:
    """Return the latest score of every image, its week, and the manifest with the labels that have come."""
    names = batches_of(config.out)
    if not names:
        raise ConfigError(f"--out {config.out} has no scores yet; there was nothing to score")
    parts = [read_scores(scores_of(config.out, name)) for name in names]
    for part in parts[1:]:
        check_comparable(parts[0], part)
    table = pa.concat_tables([part.table for part in parts], promote_options="default")
    weeks = [period(name[:8]) for name, part in zip(names, parts, strict=True) for _ in range(len(part.table))]
    last = {image: row for row, image in enumerate(table["image_id"].to_pylist())}
    rows = sorted(last.values())
    scores = replace(parts[0], table=table.take(pa.array(rows)))
    manifests = pa.concat_tables([read_manifest(manifest_of(config.out, name)) for name in names])
    place = {image: row for row, image in enumerate(manifests["image_id"].to_pylist())}
    manifest = manifests.take(
        pa.array([place[image] for image in scores.table["image_id"].to_pylist()])
    ).combine_chunks()
    if config.labels is not None:
        come = _of_scored(read_labels(config.labels), manifest)
        manifest = apply_labels(manifest, come, config.labels) if len(come) else manifest
    return scores, [weeks[row] for row in rows], manifest


def _of_scored(labels: pa.Table, manifest: pa.Table) -> pa.Table:
    """Leave out rows of a label table that name an image which has not come yet."""

    def short(name: str) -> str:
        return stem(same_extension(slashed(name)).rpartition("/")[2])

    known = {short(name) for name in manifest["image_id"].to_pylist()}
    return labels.filter(
        pa.array([name is not None and short(name) in known for name in labels["image_id"].to_pylist()])
    )


def _drift(config: SilentConfig, scores: Scores, weeks_of: Sequence[str]) -> Drift | None:
    if config.reference is None:
        return None
    reference = read_scores(config.reference)
    check_comparable(reference, scores)
    return compare(side_of(reference, None, None, config.seed).found, quantities(scores), weeks_of, config.level)


def _week(
    week: str, scores: Scores, weeks_of: Sequence[str], manifest: pa.Table, drift: Drift | None, config: SilentConfig
) -> Week:
    rows = np.array([week in (found, "all") for found in weeks_of])
    part = replace(scores, table=scores.table.filter(pa.array(rows)))
    label = manifest["label"].filter(pa.array(rows))
    patients = manifest["patient_id"].filter(pa.array(rows))
    ok = pc.equal(part.table["status"], "ok")
    known = pc.and_(ok, pc.is_valid(label))
    good = part.where(ok)
    predicted = "predicted_site" if config.site else "predicted"
    values: dict[str, float | None] = dict.fromkeys(MEASURES)
    intervals: dict[str, tuple[float, float] | None] = dict.fromkeys(MEASURES)
    truth = label.filter(known).to_numpy().astype(np.int64)
    if 0 < truth.sum() < len(truth):
        labelled = part.where(known)
        prob, called = labelled.numbers("prob_site" if config.site else "prob_mean"), labelled.numbers(predicted)
        of = patients.filter(known).to_pylist()
        found, decided = classification_metrics(truth, prob, 0.5), classification_metrics(truth, called, 0.5)
        ends = patient_intervals(truth, prob, 0.5, of, ("auc", "brier", "ece"), seed=config.seed)
        ends |= patient_intervals(truth, called, 0.5, of, ("recall", "specificity"))
        values = {name: (decided if name in ("recall", "specificity") else found)[name] for name in MEASURES}
        intervals = {name: ends[name] for name in MEASURES}
    return Week(
        week=week,
        images=len(part.table),
        failed=len(part.table) - len(good.table),
        called=float(good.numbers(predicted).mean()) if len(good.table) else None,
        doubtful=_doubtful(good),
        labelled=len(truth),
        values=values,
        intervals=intervals,
        drifted=() if drift is None else tuple(c.quantity for c in drift.alarms if week in (c.group, "all")),
    )


def _doubtful(good: Scores) -> float | None:
    if not len(good.table):
        return None
    doubtful = pc.or_(
        pc.fill_null(pc.equal(good.table["view"], "doubtful"), False), pc.is_valid(good.table["outside_support"])
    )
    return float(pc.mean(pc.cast(pc.or_(doubtful, pc.fill_null(good.table["refer"], False)), pa.int8())).as_py())


def _csv(weeks: Sequence[Week]) -> list[Sequence[object]]:
    head = ("week", "images", "failed", "called", "doubtful", "labelled")
    ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    rows: list[Sequence[object]] = [(*head, *ends, "drifted")]
    for week in weeks:
        cells = [cell for name in MEASURES for cell in (week.values[name], *(week.intervals[name] or (None, None)))]
        rows.append((*(getattr(week, name) for name in head), *cells, " ".join(week.drifted)))
    return rows


def _named(quantities: Sequence[str]) -> str:
    """Return quantities in words, once each."""
    return ", ".join(name.replace("_", " ") for name in dict.fromkeys(quantities))


def _page(weeks: Sequence[Week], config: SilentConfig, figures: dict[str, str]) -> str:
    total = weeks[-1]
    compared = config.reference is not None
    context = {
        "title": "Silent trial",
        "subtitle": f"Model {config.model if isinstance(config.model, str) else ' '.join(config.model)} on {' '.join(config.archive)}",
        "sections": [("summary", "Summary"), ("weeks", "Weeks"), ("labels", "Labels")],
        "figures": figures,
        "numbers_shown": [
            {"name": "images", "value": f"{total.images:,}", "interval": f"{total.failed:,} could not be scored"},
            {"name": "labelled", "value": f"{total.labelled:,}", "interval": "as far as labels have come"},
            {"name": "called pneumonia", "value": percent_text(total.called), "interval": ""},
            {"name": "doubtful", "value": percent_text(total.doubtful), "interval": "view, support or passes"},
            {"name": "quantities with an alarm", "value": str(len(set(total.drifted))) if compared else "not compared",
             "interval": "against the reference" if compared else "give --reference"},
        ],
        "about": [
            "Nothing was written back to the archive. Weeks are those in which the images were scored. An image is doubtful where its view is unusual, "
            "where it lies outside what the model was trained on, or where the passes do not agree on the call.",
        ],
        "warnings": [
            f"{week.week} differs from the reference in {_named(week.drifted)}. Its images or scores are of another kind, which does "
            "not say that the model is worse: only labels can."
            for week in weeks[:-1] if week.drifted
        ],
        "week_rows": [
            [week.week, week.images, week.failed, percent_cell(week.called), percent_cell(week.doubtful),
             len(set(week.drifted)) if compared else "not compared"]
            for week in weeks
        ],
        "measure_rows": [
            [week.week, week.labelled, *(with_range(week.values[name], week.intervals[name]) for name in MEASURES)] for week in weeks
        ],
        "made": made(),
    }  # fmt: skip
    return render("silent.html", context)
