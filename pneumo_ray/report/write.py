"""Write the report: choose and read the images, draw the figures, fill the page."""

from dataclasses import astuple

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.evaluate.calibration import reliability_table
from pneumo_ray.evaluate.curves import learning_figure
from pneumo_ray.evaluate.drawing import save_figure
from pneumo_ray.evaluate.number_text import number_text
from pneumo_ray.evaluate.numbers import probabilities, uncertainties
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.evaluate.tables import Rows
from pneumo_ray.evaluate.uncertainty import WITHOUT_PASSES, risk_coverage
from pneumo_ray.report import figures
from pneumo_ray.report.cases import Chosen, Seen, choose, crops, outcomes, read_images
from pneumo_ray.report.galleries import draw_galleries, lung_sheet
from pneumo_ray.report.page import render_page
from pneumo_ray.report.sections import ERROR_COLUMNS, MAX_ERRORS, ErrorRecord
from pneumo_ray.report.side_by_side import sheet_of
from pneumo_ray.report.subject import Subject
from pneumo_ray.report.wording import interval_text, words_of


def write_report(subject: Subject, out: str, gallery: int, prevalence: float | None, seed: int) -> Rows:
    """Write `figures/` and `report.html`; return the rows of misclassified.csv, the header first.

    Args:
        subject: content of the report.
        out: folder of the report.
        gallery: images on the page, at most.
        prevalence: share of pneumonia that the predictive values begin with; None for that of the images.
        seed: of the bootstrap.
    """
    chosen = choose(subject.chosen, gallery)
    wanted = np.unique(np.concatenate([chosen.rows, chosen.errors[: min(gallery, MAX_ERRORS)]]))
    seen = _read(subject, wanted)
    folder = storage.join(out, "figures")
    drawn = {name: save_figure(figure, folder, name) for name, figure in _figures(subject, seed).items()}
    shown = chosen.rows.tolist()
    of_shown = [seen.get(row) for row in shown]
    for name, data in draw_galleries(subject.chosen, shown, of_shown).items():
        storage.write_bytes(storage.join(folder, f"gallery-{name}.png"), data, durable=False)
    made = {"posteriors": sheet_of(subject, seen), "lungs": lung_sheet(subject, seed) if gallery else None}
    sheets = {name: sheet for name, sheet in made.items() if sheet is not None}
    for name, sheet in sheets.items():
        storage.write_bytes(storage.join(folder, f"gallery-{name}.png"), sheet, durable=False)
    errors = _errors(subject.chosen, chosen, seen)
    quality = _right_quality(subject.chosen, seen)
    page = render_page(subject, drawn, shown, of_shown, errors, quality, prevalence, sheets)
    storage.write_bytes(storage.join(out, "report.html"), page.encode("utf-8", "replace"))
    return [ERROR_COLUMNS, *map(astuple, errors)]


def _read(subject: Subject, wanted: NDArray[np.int64]) -> dict[int, Seen]:
    """Read the wanted rows; unreadable images are left out and reported."""
    resize_size, image_size = (subject.fact("model", "preprocessing", name) for name in ("resize_size", "image_size"))
    if not len(wanted):
        return {}
    if not isinstance(resize_size, int) or not isinstance(image_size, int) or not 0 < image_size <= resize_size:
        log("the scores lack the preprocessing of their images, so the page shows maps without images")
        return {}
    names = subject.chosen.table["image_id"].take(pa.array(wanted)).to_pylist()
    read = read_images(subject.manifest, names, resize_size, image_size, crops(subject.chosen, wanted))
    if gone := sum(image is None for image in read):
        log(f"{gone:,} of {len(read):,} images for the gallery cannot be read any more; the page shows their maps")
    return {row: image for row, image in zip(wanted.tolist(), read, strict=True) if image is not None}


def _right_quality(scores: Scores, seen: dict[int, Seen]) -> tuple[float, float] | None:
    """Return median sharpness and contrast of the right answers that were read; None if there are none."""
    outcome = outcomes(scores)
    right = [found for row, found in seen.items() if outcome[row].startswith("true")]
    if not right:
        return None
    return float(np.median([found.sharpness for found in right])), float(np.median([found.contrast for found in right]))


def _figures(subject: Subject, seed: int) -> dict[str, Figure]:
    """Draw the possible figures: none without labels, no curves with one class."""
    drawn: dict[str, Figure] = {}
    if subject.history:
        drawn["learning"] = learning_figure(subject.history)
    if (measured := subject.numbers.measured) is None:
        return drawn
    labelled, threshold = subject.chosen.labelled(), subject.numbers.threshold
    label, prob = labelled.table["label"].to_numpy().astype(np.int64), labelled.numbers("prob_mean")
    stored, half = measured.metrics.stored, measured.metrics.half
    if stored.values.auc is not None and stored.values.average_precision is not None:
        text = number_text(stored.values.auc)
        if stored.intervals["auc"] is not None:
            text += f" ({interval_text(stored.intervals['auc'])})"
        patients = labelled.table["patient_id"].to_pylist()
        drawn["roc"] = figures.roc_figure(label, prob, patients, threshold, text, seed)
        drawn["precision_recall"] = figures.precision_recall_figure(
            label, prob, threshold, stored.values.average_precision
        )
    drawn["confusion"] = figures.confusion_figure(
        {f"stored threshold {threshold:.3f}": stored.values, "threshold 0.5": half.values}
    )
    ways = {words_of(name): reliability_table(p, label) for name, p in probabilities(labelled).items()}
    drawn["reliability"] = figures.reliability_figure(ways)
    drawn["residuals"] = figures.residual_figure(label, prob, threshold)
    wrong = (prob >= threshold) != (label == 1)
    curves = {name: risk_coverage(value, wrong) for name, value in uncertainties(labelled).items()}
    shown = (*WITHOUT_PASSES, "mutual_information", "prob_std", "mean of cam_std")
    drawn["risk_coverage"] = figures.risk_coverage_figure({words_of(name): curves[name] for name in shown})
    if subject.zones:
        drawn["zones"] = figures.zone_figure(subject.zones, subject.chosen.zones)
    return drawn


def _errors(scores: Scores, chosen: Chosen, seen: dict[int, Seen]) -> list[ErrorRecord]:
    """Return a record for each misclassified image, the largest residual first."""
    outcome = outcomes(scores)
    table = scores.table.select(["image_id", "label", "prob_mean", "mutual_information"]).take(pa.array(chosen.errors))
    records = []
    for number, row in zip(chosen.errors.tolist(), table.to_pylist(), strict=True):
        found = seen.get(number)
        records.append(
            ErrorRecord(
                image_id=row["image_id"],
                outcome=str(outcome[number]),
                prob_mean=row["prob_mean"],
                residual=row["label"] - row["prob_mean"],
                mutual_information=row["mutual_information"],
                sharpness=None if found is None else found.sharpness,
                contrast=None if found is None else found.contrast,
            )
        )
    return records
