"""The page of agreement: how far the labels can be relied on, and whether the model differs from readers as they do from each other."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pneumo_ray.evaluate.drawing import INK, NORMAL, PNEUMONIA, THIRD, house_style
from pneumo_ray.evaluate.intervals import MIN_PATIENTS
from pneumo_ray.evaluate.number_text import number_text, percent_text
from pneumo_ray.readers.agreement import Agreement, Estimate
from pneumo_ray.readers.comparison import Against, Comparison
from pneumo_ray.readers.config import AgreeConfig
from pneumo_ray.report.shell import made, render
from pneumo_ray.report.wording import (
    Cell,
    CellValue,
    figure_text,
    interval_text,
    percents_text,
    with_range,
)

FEW_PATIENTS = 50
"""Patients below which the page points to the intervals."""
LONGEST_NAME = 28
"""Characters of a reader's name in a figure."""


def render_agreement(found: Comparison, config: AgreeConfig, figures: dict[str, str]) -> str:
    """Return the page.

    Args:
        found: the comparison.
        config: what was asked for.
        figures: SVG elements by name.
    """
    alpha, all_read = found.krippendorff, found.fleiss
    sections = [("summary", "Summary"), ("pairs", "Pairs"), ("readers", "Readers")]
    sections += [("groups", "Classes")] if found.groups else []
    sections += [("again", "Read again")] if found.repeated else []
    sections += [("model", "Model")] if found.model else []
    context = {
        "title": "Agreement of readers",
        "subtitle": f"{len(found.readers)} readers, {found.images:,} images; readings {', '.join(config.readings)}",
        "sections": [*sections, ("method", "Method")],
        "figures": figures,
        "numbers_shown": [
            _number("readers", f"{len(found.readers)}", f"{found.answers:,} answers"),
            _number("images", f"{found.images:,}", f"of {found.patients:,} patients"),
            _number("pairs of answers that are equal", percent_text(alpha.observed.value), percents_text(alpha.observed.interval)),
            _number("Krippendorff's alpha", figure_text(alpha.coefficient.value), interval_text(alpha.coefficient.interval)),
            _number("Fleiss' kappa", figure_text(all_read.coefficient.value), interval_text(all_read.coefficient.interval)),
        ],
        "about": [_about(found)],
        "warnings": _warnings(found),
        "all_rows": [
            ["Krippendorff's alpha, images with two answers or more", *_cells(alpha)],
            ["Fleiss' kappa, images that all readers answered", *_cells(all_read)],
        ],
        "pair_rows": [[" and ".join(pair.readers), *_cells(pair.agreement)] for pair in found.pairs],
        "reader_rows": [
            [row.reader, row.images, row.cannot_say, _percent(row.positive_share), row.median_seconds, row.unblinded]
            for row in found.readers
        ],
        "other_rows": [[row.who, *_against_cells(row)] for row in found.others],
        "group_rows": [[f"{row.column} {row.value}", *_cells(row.agreement)] for row in found.groups],
        "again_rows": [[row.reader, *_cells(row.agreement)] for row in found.repeated],
        "model_rows": [[row.truth, *_against_cells(row), with_range(row.auc.value, row.auc.interval)] for row in found.model],
        "model_about": _model_about(found),
        "agreement_heads": ["images", "equal", "by chance", "coefficient", "PABAK", "given pneumonia", "given normal"],
        "made": made(),
    }  # fmt: skip
    return render("agreement.html", context)


def kappa_figure(found: Comparison) -> Figure:
    """Draw Cohen's kappa of each pair of readers, of each reader with itself, and of the model, with intervals."""
    rows: list[tuple[str, Estimate, str]] = [
        (" and ".join(map(_short, pair.readers)), pair.agreement.coefficient, NORMAL) for pair in found.pairs
    ]
    rows += [(f"{_short(row.reader)}, read again", row.agreement.coefficient, THIRD) for row in found.repeated]
    rows += [(f"model and {_short(row.truth)}", row.kappa, PNEUMONIA) for row in found.model]
    lines = [(name, e.value, e.interval, colour) for name, e, colour in rows if e.value is not None][:60]
    with house_style():
        figure = Figure(figsize=(7.5, 0.9 + 0.27 * max(len(lines), 1)), layout="constrained")
        axes = figure.subplots()
        for place, (_, value, interval, colour) in enumerate(lines):
            if interval is not None:
                axes.plot(interval, [place, place], color=colour, lw=2.5, solid_capstyle="butt")
            axes.plot(value, place, "o", color=colour, ms=6)
        axes.set_yticks(range(len(lines)), [line[0] for line in lines])
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.axvline(0, color=INK, lw=0.8)
        lows = [value if interval is None else min(value, interval[0]) for _, value, interval, _ in lines]
        axes.set_xlim(min([0.0, *lows]) - 0.03, 1.03)
        axes.set_xlabel("Cohen's kappa: 0 chance, 1 full agreement")
    return figure


def _short(name: str) -> str:
    # A dollar sign would begin a formula.
    return (name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…").replace("$", r"\$")


def _number(name: str, value: str, below: str) -> dict[str, str]:
    return {"name": name, "value": value, "interval": below}


def _percent(value: float | None) -> Cell:
    return Cell(value, percent_text(value))


def _share(estimate: Estimate) -> Cell:
    below = percents_text(estimate.interval)
    return Cell(estimate.value, percent_text(estimate.value) + (f"\n({below})" if below else ""))


def _cells(agreement: Agreement) -> list[CellValue]:
    coefficient, pabak = agreement.coefficient, agreement.pabak
    return [
        agreement.images,
        _share(agreement.observed),
        _percent(agreement.expected),
        with_range(coefficient.value, coefficient.interval),
        with_range(pabak.value, pabak.interval),
        _percent(agreement.positive),
        _percent(agreement.negative),
    ]


def _against_cells(row: Against) -> list[CellValue]:
    return [row.images, with_range(row.kappa.value, row.kappa.interval), _share(row.recall), _share(row.specificity)]


def _about(found: Comparison) -> str:
    observed, alpha = found.krippendorff.observed.value, found.krippendorff.coefficient.value
    if observed is None:
        return "No image has two answers."
    sentence = f"Of two readers of the same image, {number_text(100 * observed, 0, 100.0)} of 100 give the same answer"
    expected = found.krippendorff.expected or 0.0
    sentence += (
        f"; chance alone would make it {number_text(100 * expected, 0, 100.0)}."
        if alpha is not None
        else "; all answers are equal."
    )
    return sentence


def _warnings(found: Comparison) -> list[str]:
    lines = []
    if found.patients < MIN_PATIENTS:
        lines.append(
            f"Fewer than {MIN_PATIENTS} patients were read: there are no intervals, and the numbers are uncertain."
        )
    elif found.patients < FEW_PATIENTS:
        lines.append(f"Only {found.patients:,} patients were read: rely on the intervals, not on the estimates.")
    expected = found.krippendorff.expected
    if expected is not None and expected > 0.8:
        lines.append(
            "Nearly all answers are of one class, where any kappa is small however well readers agree: look at PABAK and at the "
            "agreement given pneumonia and given normal."
        )
    unblinded = sum(row.unblinded for row in found.readers)
    if unblinded:
        lines.append(
            f"{unblinded:,} of {found.answers:,} answers were given with the model's view visible: readers who see the same view "
            "agree more with each other. These answers do not judge the model."
        )
    doubtful = sum(row.cannot_say for row in found.readers)
    if doubtful > 0.05 * found.answers:
        lines.append(
            f"{doubtful:,} of {found.answers:,} answers are `cannot say`, and count for nothing: agreement is that of the easier images."
        )
    if found.fleiss.images < found.krippendorff.images / 2:
        lines.append(
            f"Only {found.fleiss.images:,} of {found.krippendorff.images:,} images have an answer of every reader: Fleiss' kappa is of "
            "these alone."
        )
    return lines


def _model_about(found: Comparison) -> str:
    if not found.model:
        return ""
    pairs = [pair.agreement.coefficient.value for pair in found.pairs]
    readers = _range([value for value in pairs if value is not None])
    model = _range([row.kappa.value for row in found.model[1:] if row.kappa.value is not None])
    if not readers or not model:
        return "The answers of each reader, and of their majority, are taken for the truth in turn."
    return (
        f"Kappa of the model with a reader: {model}; of two readers: {readers}. A model within the range of the readers differs from "
        "them as they differ from each other. The answers of each reader, and of their majority, are taken for the truth in turn."
    )


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
