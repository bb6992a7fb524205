"""The page: one HTML file that works offline. Jinja2 escapes all text that comes from data."""

from collections.abc import Mapping, Sequence

from pneumo_ray.config import flatten
from pneumo_ray.evaluate.intervals import MIN_PATIENTS
from pneumo_ray.evaluate.zone_table import OUTCOMES
from pneumo_ray.records import JsonObject
from pneumo_ray.report.cases import UNKNOWN, Seen, outcomes
from pneumo_ray.report.cautions import cautions
from pneumo_ray.report.embedded import script_data
from pneumo_ray.report.evidence import box_table, lung_table
from pneumo_ray.report.items import reporting_items
from pneumo_ray.report.posteriors import posterior_tables
from pneumo_ray.report.sections import (
    Context,
    ErrorRecord,
    comparison,
    error_rows,
    errors_about,
    failed_rows,
    measured_sections,
    paper_confusions,
    paper_rows,
    robustness,
)
from pneumo_ray.report.shell import made, render
from pneumo_ray.report.side_by_side import ABOUT, for_page
from pneumo_ray.report.subject import Subject
from pneumo_ray.report.wording import passes_text, plain_text


def render_page(
    subject: Subject,
    figures: dict[str, str],
    shown: Sequence[int],
    images: Sequence[Seen | None],
    errors: Sequence[ErrorRecord],
    right_quality: tuple[float, float] | None,
    prevalence: float | None,
    sheets: Mapping[str, bytes],
) -> str:
    """Return the report as HTML.

    Args:
        subject: content of the report.
        figures: name and SVG element of each figure.
        shown: rows of `subject.chosen` for the gallery.
        images: of those rows; None where a file cannot be read any more.
        errors: records of misclassified.csv.
        right_quality: median sharpness and contrast of right answers; None where none was read.
        prevalence: share of pneumonia that the predictive values begin with; None for that of the images.
        sheets: PNG: `posteriors` from `sheet_of` and `lungs` from `lung_sheet`, as far as there are any.
    """
    numbers = subject.numbers
    lungs, boxes = lung_table(numbers.lungs), box_table(numbers.localisation)
    context: Context = {
        "title": f"Pneumonia scores: {numbers.split or 'all images'}",
        "subtitle": _subtitle(subject),
        "labelled": numbers.measured is not None,
        "about": _about(subject),
        "warnings": cautions(subject),
        "figures": figures,
        "numbers_shown": [],
        "threshold": numbers.threshold,
        "temperature": numbers.temperature,
        "intercept": numbers.intercept,
        "origins": _origins(subject),
        "gallery_about": _gallery_about(subject, len(shown)),
        "gallery_outcomes": [name for name in (*OUTCOMES, UNKNOWN) if name in set(outcomes(subject.chosen)[list(shown)])],
        "num_cases": len(shown),
        "error_rows": [], "errors_about": "",
        "failed_rows": failed_rows(subject),
        "lung_rows": lungs.rows, "lungs_about": lungs.about, "box_rows": boxes.rows, "boxes_about": boxes.about,
        **robustness(subject.robustness),
        **posterior_tables(numbers.posteriors),
        "sheets": {name: for_page(sheet) for name, sheet in sheets.items()},
        "posterior_sheet_about": ABOUT,
        "comparison": comparison(numbers.comparison),
        "paper_note": numbers.paper.note,
        "paper_rows": paper_rows(numbers),
        "paper_confusions": paper_confusions(numbers),
        "hyperparameters": [[name, plain_text(value)] for name, value in flatten(subject.training).items()],
        "items": reporting_items(subject),
        "made": _made(subject),
        "data": script_data(subject, shown, images),
    }  # fmt: skip
    if (measured := numbers.measured) is not None:
        context |= measured_sections(measured, subject.zones, exact=subject.fact("config", "passes") == "exact")
        context["prevalence"] = measured.predictive_values.prevalence if prevalence is None else prevalence
        context["error_rows"] = error_rows(errors)
        context["errors_about"] = errors_about(measured.metrics.stored.values, right_quality)
    context["sections"] = _sections(context)
    return render("report.html", context, ("maps.js", "report.js"))


def _origins(subject: Subject) -> dict[str, str]:
    """Return what is known of how the threshold and the calibration were chosen."""
    rule = subject.fact("operating_point", "rule")
    fitted = subject.provenance("validation") is not None
    return {
        "threshold": "how it was chosen is not known" if rule is None else f"it was chosen on validation ({rule})",
        "calibration": "were fitted on validation"
        if fitted
        else "came with the model; how they were fitted is not known",
    }


def _unit(subject: Subject) -> str:
    """Return a sentence on the units that the intervals treat as independent."""
    unknown = subject.chosen.table["patient_id"].null_count
    few = f"of fewer than {MIN_PATIENTS} patients there is none"
    if not unknown:
        return f"Intervals are 95 % and take whole patients as the units; {few}."
    return (
        f"Intervals are 95 % and {few}; {unknown:,} images have no patient and count as separate patients, which makes the intervals too narrow "
        "if some show the same patient."
    )


def _sections(context: Context) -> list[tuple[str, str]]:
    measured = [
        ("operating", "Threshold"), ("discrimination", "Discrimination"), ("calibration", "Calibration"),
        ("subgroups", "Subgroups"), ("uncertainty", "Uncertainty"), ("residuals", "Residuals"), ("zones", "Zones"),
    ]  # fmt: skip
    boxes = [("boxes", "Boxes")] if context["box_rows"] else []
    compared = [("comparison", "Comparison")] if context["comparison"] else []
    return [
        ("summary", "Summary"), *(measured if context["labelled"] else []), *boxes, ("gallery", "Images"),
        ("failures", "Failures"), ("robustness", "Robustness"), *compared, ("paper", "Paper"), ("training", "Training"),
        ("items", "Items"),
    ]  # fmt: skip


def _subtitle(subject: Subject) -> str:
    return (
        f"Model {subject.fact('model', 'architecture') or 'unknown'} {str(subject.fact('model', 'hash') or '')[:12]}, "
        f"{passes_text(subject.fact('config', 'passes'))}, on {subject.manifest_name}"
    )


def _about(subject: Subject) -> list[str]:
    numbers = subject.numbers
    patients = subject.chosen.table["patient_id"].drop_null().unique()
    lines = [
        f"{numbers.images:,} images of the split {numbers.split or 'all'}"
        + (f" of {len(patients):,} known patients" if len(patients) else "")
        + f", {numbers.labelled:,} of them labelled. {_unit(subject)}"
    ]
    if numbers.measured is not None:
        m = numbers.measured.metrics.stored.values
        lines.append(
            f"At the threshold {numbers.threshold:.3f}, stored with the model, {m.tp:,} of {m.tp + m.fn:,} pneumonias are found, "
            f"and {m.fp:,} of {m.fp + m.tn:,} normal images are called pneumonia."
        )
    return lines


def _gallery_about(subject: Subject, count: int) -> str:
    return (
        f"{count:,} of {len(subject.chosen.table):,} images: errors first, then the most uncertain, then right answers spread over the "
        "probabilities. Each with the evidence that BayesGrad-CAM finds, its standard deviation, and the evidence that is "
        "left two standard deviations lower. The colour scale of each image is its own: colours show where, not how much. "
        "The interval beside a probability describes the uncertainty of the weights, not the true class."
    )


def _versions(subject: Subject) -> JsonObject:
    found = subject.fact("versions")
    return found if isinstance(found, dict) else {}


def _made(subject: Subject) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in _versions(subject).items())
    return made(f"; scored with {versions or 'unknown versions'}")
