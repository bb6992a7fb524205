"""The page of a commissioning: missed cases and false alarms to expect at the site, and what to do next."""

import math

from pneumo_ray.evaluate.number_text import number_text, percent_text
from pneumo_ray.evaluate.tables import ends_text
from pneumo_ray.report.shell import made, render
from pneumo_ray.report.wording import Cell, figure_text, interval_text, percents_text, with_range
from pneumo_ray.site.commission import Commissioning
from pneumo_ray.site.config import CommissionConfig
from pneumo_ray.site.groups import SiteGroup, differing
from pneumo_ray.site.labels import MIN_CLASS_PATIENTS
from pneumo_ray.site.prevalence import PredictiveValues
from pneumo_ray.site.profile import SiteProfile
from pneumo_ray.site.threshold import Share
from pneumo_ray.site.triage import NoTriage, Triage

_MAPS = {
    "none": "none: the probabilities stay as they are",
    "intercept": "intercept: all probabilities move by the same odds",
    "intercept_and_slope": "intercept and slope (Platt)",
    "isotonic": "isotonic regression",
}
_SOURCES = {
    "unlabelled": "estimated from the probabilities of the {:,} images without a label; this assumes that pneumonia looks alike on "
    "them and on the images with a label",
    "labelled": "counted among the labelled patients ({:,} images); where these were chosen by their class, give --prevalence",
    "given": "given with --prevalence",
}
_COLUMNS = {"age_years": "age in years", "view_position": "view"}
FEW = 100
"""Labelled patients of a class below which the page points to the intervals."""
_WIDE = 0.15
"""Width of an interval from which more labels are the first thing to do."""


def render_site(found: Commissioning, profile: SiteProfile, config: CommissionConfig, figures: dict[str, str]) -> str:
    """Return the page.

    Args:
        found: the commissioning.
        profile: as it was written.
        config: what was asked for.
        figures: SVG elements by name.
    """
    point, triage = found.point, found.triage
    data = found.images.labelled
    groups = [("groups", "Groups")] if found.groups else []
    context = {
        "title": f"Commissioning{f': {config.name}' if config.name else ''}",
        "subtitle": f"Model {profile.model_hash[:12]} on {config.scores}; site.json {profile.hash[:12]}",
        "sections": [
            ("summary", "Summary"), ("thousand", "1,000 patients"), ("threshold", "Threshold"), *groups, ("triage", "Triage"),
            ("calibration", "Calibration"), ("prevalence", "Prevalence"), ("labels", "More labels"), ("origin", "Origin"),
        ],
        "figures": figures,
        "numbers_shown": [
            _number("AUC here", figure_text(found.before["auc"].value), interval_text(found.before["auc"].interval)),
            _number("sensitivity here", percent_text(point.expected_sensitivity), _range(point.sensitivity)),
            _number("specificity here", percent_text(point.specificity.value), _range(point.specificity)),
            _number("share of pneumonia", percent_text(found.prevalence.value), percents_text((found.prevalence.low, found.prevalence.high))),
            _number("called by triage", percent_text(triage.called_share) if isinstance(triage, Triage) else "none",
                    "of all images" if isinstance(triage, Triage) else "every image is to be read"),
        ],
        "about": [
            f"{len(found.images.prob):,} images of this site, {len(data):,} of them with a label, of {data.num_patients:,} patients: "
            f"{data.patients_of_class(1):,} with pneumonia, {data.patients_of_class(0):,} without. " + _sentence(found),
        ],
        "warnings": _warnings(found),
        "steps": _steps(found, config),
        "thousand_about": f"At a share of pneumonia of {percent_text(found.prevalence.value)} ({percents_text((found.prevalence.low, found.prevalence.high))}).",
        "thousand_rows": _thousand_rows(found),
        "threshold_about": _threshold_about(found, config),
        "threshold_rows": [
            _threshold_row(f"{point.threshold:.4g} (this site)", point.sensitivity, point.specificity, point.expected_sensitivity),
            _threshold_row(f"{found.own_threshold:.4g} (the model's own)", found.sensitivity_before, found.specificity_before, found.sensitivity_before.value),
        ],
        "groups_rows": [
            [_COLUMNS.get(group.column, group.column), group.value, *_group_cells(group.sensitivity), *_group_cells(group.specificity)]
            for group in found.groups
        ],
        "triage_about": _triage_about(triage),
        "triage_rows": [
            [name, calls.images, calls.called, calls.wrong, percent_text(calls.error_at_most)]
            for name, calls in (("with pneumonia", triage.pneumonia), ("without", triage.normal))
        ] if isinstance(triage, Triage) else [],
        "calibration_about": f"The map that the labels support: {_MAPS[found.choice.chosen.method]}. Column prob_site holds the result.",
        "calibration_rows": [
            [words, with_range(found.before[name].value, found.before[name].interval),
             with_range(found.after[name].value, found.after[name].interval)]
            for name, words in (("brier", "Brier score"), ("ece", "expected calibration error"),
                                ("log_loss", "log loss (nats)"), ("auc", "AUC"))
        ],
        "tried_rows": [[_MAPS[tried.method], tried.log_loss, tried.excess, tried.excess_se] for tried in found.choice.tried],
        "prevalence_about": f"The share of pneumonia is {percent_text(found.prevalence.value)} "
        f"({percents_text((found.prevalence.low, found.prevalence.high))}), {_SOURCES[found.prevalence.source].format(found.prevalence.images)}.",
        "predictive_rows": _predictive_rows(found.values),
        "labels_rows": [
            [row.patients, *(Cell(width, f"{100 * width:.0f} points") for width in (row.sensitivity_width, row.specificity_width)),
             Cell(float(row.triage_possible), "yes" if row.triage_possible else "no")]
            for row in found.needed
        ],
        "origin_rows": [
            ["model", profile.model_hash],
            ["scores (sha256 of names and probabilities)", found.images.scores_hash],
            ["labels (sha256 of names and labels)", found.images.labels_hash],
            ["site.json (sha256)", profile.hash],
            ["manifest", config.manifest],
        ],
        "made": made(),
    }  # fmt: skip
    return render("site.html", context)


def _number(name: str, value: str, interval: str) -> dict[str, str]:
    return {"name": name, "value": value, "interval": interval}


def _range(share: Share) -> str:
    return percents_text((share.low, share.high))


def _of_hundred(value: float | None) -> str:
    return "an unknown share" if value is None else f"{number_text(100 * value, 0, 100.0)} of 100"


def _whole(least: float) -> int:
    """Return how many of 100 a share is at least: rounded down, so that what is promised is not more than what holds."""
    return math.floor(100 * least + 1e-9)


def _sentence(found: Commissioning) -> str:
    point, before = found.point, found.sensitivity_before
    return (
        f"At the threshold for this site, {point.threshold:.3g}, the model is expected to find {_of_hundred(point.expected_sensitivity)} new "
        f"patients with pneumonia (at least {_whole(point.sensitivity.at_least)}, with 95 % confidence) and to call "
        f"{_of_hundred(1 - (point.specificity.value or 0.0))} without it pneumonia (at most {100 - _whole(point.specificity.at_least)}). At its "
        f"own threshold, {found.own_threshold:.3g}, it is {_of_hundred(before.value)} and {_of_hundred(1 - (found.specificity_before.value or 0.0))}."
    )


def _warnings(found: Commissioning) -> list[str]:
    data, lines = found.images.labelled, []
    auc = found.before["auc"]
    if auc.interval is not None and auc.interval[0] <= 0.5:
        lines.append("The model does not order these images better than chance: do not use it here.")
    elif auc.value is not None and auc.value < 0.8:
        lines.append(
            f"The model orders these images poorly (AUC {auc.value:.2f}): no threshold and no calibration mends that."
        )
    if found.seen_in_training:
        lines.append(
            f"{found.seen_in_training:,} of the labelled images trained or chose the model: the numbers are too good. Give --split test."
        )
    if found.images.without_patient:
        lines.append(
            f"{found.images.without_patient:,} image(s) name no patient and count as one each: intervals and promises are too good "
            "if some show the same patient."
        )
    lines += [
        f"At the threshold for this site the {measure} is {percent_text(low.share(measure).value)} in one group ({_name(low)}) and "
        f"{percent_text(high.share(measure).value)} in another ({_name(high)}): one threshold does not serve both."
        for measure, low, high in differing(found.groups)
    ]
    few = [f"{count:,} {words}" for words, count in (("with pneumonia", data.patients_of_class(1)),
                                                    ("without", data.patients_of_class(0))) if count < FEW]  # fmt: skip
    if few:
        lines.append(
            f"Only {' and '.join(few)} among the labelled patients: rely on the intervals, not on the estimates."
        )
    lines.append(
        "Everything here is about images like the labelled ones. If these were picked (the interesting ones, one ward, one device), "
        "it does not hold for the rest."
    )
    return lines


def _steps(found: Commissioning, config: CommissionConfig) -> list[str]:
    steps = []
    if isinstance(found.triage, NoTriage):
        steps.append(f"There is no triage. {found.triage.reason}")
    for measure, words, share in (
        ("sensitivity", "with", found.point.sensitivity),
        ("specificity", "without", found.point.specificity),
    ):
        if (width := share.high - share.low) > _WIDE:
            steps.append(
                f"Label more images {words} pneumonia: the interval of the {measure} is {100 * width:.0f} points wide."
            )
    steps += [
        f"Score with jobs/explain.py --site {config.out.rstrip('/')}/site.json: columns prob_site, predicted_site and triage.",
        "Run a silent trial (jobs/silent.py) for some weeks, with nothing shown to anybody, before a person sees a score.",
        "Compare later scores with these ones (jobs/drift.py); after an alarm, label again and commission again.",
    ]
    return steps


def _threshold_about(found: Commissioning, config: CommissionConfig) -> str:
    rule, options = found.point.rule, config.operating_point
    words = {
        "sensitivity": f"The highest threshold that finds {100 * options.sensitivity:g} % of the labelled patients with pneumonia.",
        "youden": "The threshold of the largest sensitivity + specificity on the labels.",
        "cost": f"The threshold of the smallest cost, where a missed pneumonia costs {options.false_negative_cost:g} false alarms.",
    }[rule]
    how = (
        "Both classes chose it, so the counts of the first row are those of thresholds that were chosen without the patient."
        if found.point.cross_fitted
        else f"As these labels chose it, it finds {found.point.sensitivity.found:,} of {found.point.sensitivity.of:,} of them by construction, which is no "
        f"measurement: for new patients {percent_text(found.point.expected_sensitivity)} is to be expected, and the lower ends are what it reaches at least."
    )
    return f"{words} {how} An image is called pneumonia where prob_mean reaches it (predicted_site)."


def _threshold_row(name: str, sensitivity: Share, specificity: Share, expected: float | None) -> list[object]:
    cells: list[object] = [name]
    for share, value in ((sensitivity, expected), (specificity, specificity.value)):
        cells += [
            Cell(value, f"{percent_text(value)}\n({_range(share)})"),
            f"{share.found:,} of {share.of:,}",
            percent_text(share.at_least),
        ]
    return cells


def _group_cells(share: Share) -> list[object]:
    """Return the share with its interval, if there are enough patients, and the counts."""
    enough = share.of >= MIN_CLASS_PATIENTS
    cell = Cell(share.value, f"{percent_text(share.value)}\n({_range(share)})") if enough else Cell(None, "too few")
    return [cell, f"{share.found:,} of {share.of:,}"]


def _name(group: SiteGroup) -> str:
    return f"{_COLUMNS.get(group.column, group.column)} {group.value}"


def _thousand_rows(found: Commissioning) -> list[list[object]]:
    rows: list[list[object]] = []
    for words, value, interval in (
        ("pneumonia that is missed", "missed", "missed_interval"),
        ("false alarms", "alarms", "alarms_interval"),
    ):
        cells = []
        for values in (found.values, found.values_before):
            low, high = getattr(values, interval)
            cells.append(
                Cell(
                    getattr(values, value),
                    f"{number_text(getattr(values, value), 0, 1000.0)}\n({ends_text((low, high), 0, 1000.0)})",
                )
            )
        rows.append([words, *cells])
    return rows


def _triage_about(triage: Triage | NoTriage) -> str:
    if isinstance(triage, NoTriage):
        return f"There is no triage. {triage.reason}"
    high = f"at {triage.high:.4g} or more" if triage.high <= 1 else "never"
    return (
        f"Below {triage.low:.4g} an image is called negative, {high} positive, in between it is to be read by a person. That calls "
        f"{percent_text(triage.called_share)} of all images. The promise: of the patients with pneumonia whose image is called, at most "
        f"{100 * triage.alpha:g} % are called negative, and of those without, at most {100 * triage.alpha:g} % are called positive, "
        f"with {100 * (1 - triage.delta):g} % confidence."
    )


def _predictive_rows(values: PredictiveValues) -> list[list[str]]:
    return [
        ["called pneumonia: share that has it (positive predictive value)", f"{percent_text(values.positive)} ({percents_text(values.positive_interval)})"],
        ["called normal: share without it (negative predictive value)", f"{percent_text(values.negative)} ({percents_text(values.negative_interval)})"],
    ]  # fmt: skip
