"""The sections of the page as rows of tables and sentences."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from pneumo_ray.evaluate.compare import Comparison
from pneumo_ray.evaluate.evaluation import Evaluation, Measured
from pneumo_ray.evaluate.metrics import Metrics
from pneumo_ray.evaluate.subgroups import MIN_CLASS, MIN_SUBGROUP
from pneumo_ray.evaluate.zone_table import CAUTION, NO_CLASSES, ZONES_OF, ZoneRecord
from pneumo_ray.records import JsonObject
from pneumo_ray.report.subject import Subject
from pneumo_ray.report.wording import (
    Cell,
    CellValue,
    figure_text,
    interval_text,
    percent_cell,
    range_cell,
    readers_text,
    with_range,
    words_of,
)

METRICS = (
    ("auc", "AUC"), ("average_precision", "average precision"), ("accuracy", "accuracy"),
    ("recall", "sensitivity (recall)"), ("specificity", "specificity"), ("precision", "precision"), ("f1", "F1"),
    ("kappa", "Cohen's kappa"), ("mcc", "Matthews' coefficient"), ("brier", "Brier score"),
    ("ece", "expected calibration error"), ("log_loss", "log loss (nats)"),
)  # fmt: skip
HEADLINE = (("auc", "AUC"), ("accuracy", "accuracy"), ("recall", "sensitivity"), ("specificity", "specificity"),
            ("brier", "Brier score"))  # fmt: skip
_GAPS = {"auc": "AUC", "recall": "sensitivity", "specificity": "specificity"}
_CONDITIONS = {"lungs_black": "lungs black", "only_lungs": "all but the lungs black"}
MAX_ERRORS = 200
"""Largest number of misclassified images on the page; the CSV file has all."""

CellRows = list[list[CellValue]]
"""The rows of a table of the page."""
Context = dict[str, object]
"""Variables of the template, by name."""


@dataclass(frozen=True)
class ErrorRecord:
    """A misclassified image: a row of misclassified.csv."""

    image_id: str
    outcome: str
    prob_mean: float
    residual: float
    mutual_information: float
    sharpness: float | None
    """None, like `contrast`, where the file was not read."""
    contrast: float | None


ERROR_COLUMNS = tuple(spec.name for spec in fields(ErrorRecord))


def measured_sections(numbers: Measured, zones: Sequence[ZoneRecord], *, exact: bool) -> Context:
    """Return the data of the sections that need labels."""
    stored, half = numbers.metrics.stored, numbers.metrics.half
    return {
        "numbers_shown": [
            {
                "name": words,
                "value": figure_text(stored.values[name]),
                "interval": interval_text(stored.intervals[name]),
            }
            for name, words in HEADLINE
        ],
        "stored": stored.values,
        "predictive": numbers.predictive_values,
        "auc_text": figure_text(stored.values.auc),
        "ap_text": figure_text(stored.values.average_precision),
        "metric_rows": [
            [words, stored.values[name], range_cell(stored.intervals.get(name)), half.values[name],
             range_cell(half.intervals.get(name)), numbers.interval_methods.methods[name]]
            for name, words in METRICS
        ],
        "calibration_rows": [
            [words_of(name), with_range(found.brier, found.brier_interval), with_range(found.ece, found.ece_interval),
             found.ece_expected, found.ece_p, found.mean_prob, found.prevalence]
            for name, found in numbers.calibration.items()
        ],
        "readers_about": readers_text(numbers.against_readers),
        "min_subgroup": MIN_SUBGROUP,
        "min_class": MIN_CLASS,
        "subgroup_rows": _subgroup_rows(numbers),
        "gap_rows": [
            [gap.column, f"{gap.value} less {gap.other}", _GAPS[gap.measure],
             with_range(gap.gap, (gap.low, gap.high)), "yes" if gap.low > 0 or gap.high < 0 else "no"]
            for gap in numbers.gaps
        ],
        "uncertainty_rows": [
            [words_of(name), with_range(found.error_auroc, found.error_auroc_interval), found.aurc]
            for name, found in numbers.uncertainty.items()
        ],
        "referral_rows": [
            [words_of(name), percent_cell(r.referred), percent_cell(r.errors_referred), r.kept.n, r.kept.accuracy,
             r.kept.recall, r.kept.specificity, r.kept.auc]
            for name, found in numbers.uncertainty.items()
            for r in found.referral
        ],
        "flagged_rows": [
            [words_of(name), percent_cell(f.true_positives), f.num_true_positives,
             percent_cell(f.false_positives), f.num_false_positives]
            for name, found in numbers.uncertainty.items()
            if (f := found.flagged) is not None and f.threshold is not None
        ],
        "residuals": numbers.residuals,
        "caution": CAUTION,
        **_zones(zones, exact=exact),
    }  # fmt: skip


def _zones(records: Sequence[ZoneRecord], *, exact: bool) -> Context:
    """Return the zones as a table with a row per zone and a column per group of images."""
    groups = {record.images: record.n for record in records}
    cells = {(r.zone, r.images): r for r in records}
    rows: CellRows = []
    for zone, paper_zone in dict.fromkeys((r.zone, r.paper_zone) for r in records):
        row: list[CellValue] = [zone.replace("_", " "), paper_zone]
        for name in groups:
            r = cells[zone, name]
            bounds = None if r.low is None or r.high is None else (r.low, r.high)
            row.append(with_range(r.mean, bounds if r.patients >= MIN_SUBGROUP else None))
        rows.append(row)
    heads = [
        "zone (the patient's side)",
        "the paper's name",
        *(f"{name} ({count:,})" for name, count in groups.items()),
    ]
    by_class = any(record.images == "normal" for record in records)
    zones_of = ZONES_OF[records[0].zones_of] if records else ""
    notes = [_common_error(records)] if records and not exact else []
    if not by_class:
        notes.append(f"By outcome only: {NO_CLASSES}.")
    return {"zone_rows": rows, "zone_heads": heads, "zones_of": zones_of, "zones_note": " ".join(notes)}


def _common_error(records: Sequence[ZoneRecord]) -> str:
    """Return what has to be known of the Monte Carlo error that all images have in common."""
    shares = [
        r.monte_carlo_error / r.mean
        for r in records
        if r.monte_carlo_error is not None and r.mean is not None and r.mean > 0 and r.n >= MIN_SUBGROUP
    ]
    if shares:
        return (
            "All images share the dropout masks of the passes, so the Monte Carlo error is common to them and no number of images "
            f"averages it out: its standard error is at most {100 * max(shares):.2g} % of a mean here, and the intervals contain it."
        )
    return (
        "All images share the dropout masks of the passes, so the Monte Carlo error is common to them; it is not known here, and the "
        "intervals leave it out."
    )


def _subgroup_rows(numbers: Measured) -> CellRows:
    rows: CellRows = []
    for group in numbers.subgroups:
        if group.left_out is not None:
            rows.append([group.column, f"left out: {group.left_out}", None, None, None, None, None])
            continue
        row: list[CellValue] = [group.column, group.value, group.normal, group.pneumonia]
        for name in ("auc", "recall", "specificity"):
            if group.measured is None or group.measured.values[name] is None:
                row.append(Cell(None, "too few"))
            else:
                row.append(with_range(group.measured.values[name], group.measured.intervals[name]))
        rows.append(row)
    return rows


def error_rows(errors: Sequence[ErrorRecord]) -> CellRows:
    """Return the misclassified images, those of the largest residual."""
    return [list(astuple(error)) for error in errors[:MAX_ERRORS]]


def errors_about(m: Metrics, quality: tuple[float, float] | None) -> str:
    """Return the introduction to the list of misclassified images.

    Args:
        m: at the stored threshold.
        quality: median sharpness and contrast of right answers; None where none was read.
    """
    total = m.fp + m.fn
    if not total:
        return "No image is misclassified at the stored threshold."
    listed = f" The page lists the first {MAX_ERRORS}, misclassified.csv all of them." if total > MAX_ERRORS else ""
    text = (
        f"{total:,} images are misclassified at the stored threshold ({m.fp:,} false positives, {m.fn:,} false negatives).{listed} "
        "Sharpness is the variance of the Laplacian, contrast the standard deviation of the grey levels, both of the file at one size."
    )
    if quality is not None:
        text += f" The correct predictions in the gallery have a median sharpness of {quality[0]:.1f} and a median contrast of {quality[1]:.3f}."
    return text


def failed_rows(subject: Subject) -> CellRows:
    """Return the files that could not be scored, by stage and kind of failure, the most frequent first."""
    reasons: dict[tuple[str, str], list[str]] = {}
    columns = (subject.failed[name].to_pylist() for name in ("image_id", "error_stage", "error"))
    for name, stage, error in zip(*columns, strict=True):
        kind = (error or "").split(":", 1)[0]
        reasons.setdefault((stage or "", kind), []).append(f"{name}: {error}")
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return [[stage, kind.replace("_", " "), len(found), found[0]] for (stage, kind), found in ordered]


def robustness(found: JsonObject | None) -> Context:
    """Return the section on shortcuts and robustness from robustness.json."""
    if found is None:
        return {"robustness_rows": []}
    rows: CellRows = []
    for c in found["conditions"]:
        v = c["values"]
        name = _CONDITIONS.get(c["condition"], c["condition"].replace("_", " "))
        rows.append(
            [f"{name}, severity {c['severity']}" if c["severity"] else name, with_range(v["auc"], c["intervals"]["auc"]),
             with_range(c["auc_difference"], c["auc_difference_interval"]), v["recall"], v["specificity"],
             with_range(v["ece"], c["intervals"].get("ece")),
             percent_cell(c["decisions_changed"])]
        )  # fmt: skip
    shortcut, boxes = found["metadata_only"], found["lung_boxes"]
    if shortcut["auc"] is None:
        text = f"A model that sees no pixel could not be measured: {shortcut['reason']}. "
    else:
        text = (
            "A model that sees only width, height, aspect, bytes per pixel and mode of the files, and no pixel, reaches an AUC of "
            f"{figure_text(shortcut['auc'])} ({interval_text(shortcut['interval'])}). This is the information in how the files were "
            "made; bytes per pixel is not neutral, because a hazy lung compresses better than a clear one. "
        )
    text += (
        f"{found['pictures']:,} images, {found['failed']:,} of them unreadable. The lungs that are blackened are those of a mask for "
        f"{boxes.get('masks', 0):,}, the manifest's box for {boxes['manifest']:,}, and for {boxes['central']:,} a central part of the "
        "image that includes the heart."
    )
    meanings = [[row[0], c["description"]] for row, c in zip(rows, found["conditions"], strict=True)]
    return {"robustness_rows": rows, "shortcut_text": text, "conditions": meanings}


def comparison(found: Comparison | None) -> Context | None:
    """Return the comparison with other scores; None where there is none."""
    if found is None:
        return None
    auc, errors = found.auc.delong, found.errors
    return {
        "about": f"These scores and those of {found.name}, on the {found.images:,} labelled images that both have "
        f"({found.only_here:,} only here, {found.only_baseline:,} only there), of {found.patients:,} patients. The p-values of DeLong and McNemar "
        "assume independent images and are too small where patients have several; the differences by patient do not.",
        "difference_rows": [
            [words, d.here, d.baseline, with_range(d.difference, d.interval), d.p]
            for name, words in METRICS
            if (d := found.differences[name]).difference is not None
        ],
        "difference_method": found.difference_method,
        "rows": [
            ["AUC here", auc.here],
            ["AUC of the other", auc.baseline],
            ["difference", auc.difference],
            ["95 % interval (DeLong, assumes independent images)", interval_text(auc.interval) or "undefined"],
            ["95 % interval over patients", interval_text(found.auc.interval_by_patient) or "undefined"],
            ["p (DeLong, two-sided, assumes independent images)", auc.p],
            ["share of errors here, at its own threshold", errors.share],
            ["share of errors of the other, at its own threshold", errors.share_baseline],
            ["right only here", errors.mcnemar.only_here_right],
            ["right only there", errors.mcnemar.only_baseline_right],
            [f"p (McNemar, {errors.mcnemar.test}, assumes independent images)", errors.mcnemar.p],
        ],
    }


def paper_rows(numbers: Evaluation) -> CellRows:
    """Return the published metrics, followed by those of this model."""
    names = ("accuracy", "precision", "recall", "f1", "auc", "kappa", "mcc")
    rows: CellRows = [
        [p.model, p.n, p.accuracy, p.precision, p.recall, p.f1, p.auc, p.kappa, p.mcc] for p in numbers.paper.table
    ]
    return rows + [[words, m.n, *(m[name] for name in names)] for words, m in _own(numbers)]


def paper_confusions(numbers: Evaluation) -> CellRows:
    """Return the confusion matrices of the paper, followed by those of this model."""
    published = [(entry.what, entry.metrics) for entry in numbers.paper.confusion_matrices]
    return [
        [words, m.tn, m.fp, m.fn, m.tp, m.accuracy, m.specificity, m.kappa] for words, m in (*published, *_own(numbers))
    ]


def _own(numbers: Evaluation) -> list[tuple[str, Metrics]]:
    if numbers.measured is None:
        return []
    points = numbers.measured.metrics
    return [
        ("this model, stored threshold", points.stored.values),
        ("this model, threshold 0.5", points.half.values),
    ]
