"""Contact sheets: the most confident cases of each outcome, four panels per case; and the lungs that were found."""

from collections.abc import Sequence

import pyarrow.compute as pc

from pneumo_ray.console import log
from pneumo_ray.data.lung_sheet import draw_lungs
from pneumo_ray.data.prepare import cache_of
from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.explain.case import Case, scored_case
from pneumo_ray.explain.render import draw_panels
from pneumo_ray.report.cases import Seen, outcomes
from pneumo_ray.report.subject import Subject

PER_SHEET = 3
"""Cases on a sheet."""

_SHEETS = {
    "false positive": ("false-positives", "False positives, the most confident first"),
    "false negative": ("false-negatives", "False negatives, the most confident first"),
    "true positive": ("true-positives", "True positives, the most confident first"),
    "true negative": ("true-negatives", "True negatives, the most confident first"),
}


def draw_galleries(scores: Scores, rows: Sequence[int], images: Sequence[Seen | None]) -> dict[str, bytes]:
    """Return a PNG for each outcome that occurs, and one of the most uncertain cases.

    Args:
        scores: of images that did not fail, joined with `label`.
        rows: of it, those that were read.
        images: of those rows; None where a file cannot be read any more.

    Returns:
        Name of the file without extension, and its content.
    """
    read = [(row, image) for row, image in zip(rows, images, strict=True) if image is not None]
    outcome, prob = outcomes(scores), scores.numbers("prob_mean")
    information = scores.numbers("mutual_information")
    sheets: dict[str, tuple[str, list[tuple[int, Seen]]]] = {}
    for kind, (name, title) in _SHEETS.items():
        members = [pair for pair in read if outcome[pair[0]] == kind]
        members.sort(key=lambda pair: prob[pair[0]], reverse=kind.endswith("positive"))
        sheets[name] = (title, members)
    sheets["most-uncertain"] = (
        "The most uncertain, by mutual information",
        sorted(read, key=lambda pair: -information[pair[0]]),
    )
    return {
        name: draw_panels([case_of(scores, row, image) for row, image in members[:PER_SHEET]], title)
        for name, (title, members) in sheets.items()
        if members
    }


def case_of(scores: Scores, row: int, seen: Seen) -> Case:
    """Return an image that could be read with the numbers and maps of its scores, ready to be drawn."""
    one = scores.table.slice(row, 1).to_pylist()[0]
    calibration = scores.calibration
    return scored_case(
        one,
        seen.image,
        scores.map_size,
        calibration.temperature,
        scores.threshold,
        one["label"],
        intercept=calibration.intercept,
        window=seen.window,
        lungs=seen.lungs,
        lung_zones=scores.zone_mode == "lungs",
    )


def lung_sheet(subject: Subject, seed: int) -> bytes | None:
    """Return the sheet of `draw_lungs` of the images of a report; None where its manifest has no lungs, or an image is gone.

    Args:
        subject: content of the report.
        seed: of the choice.
    """
    manifest = subject.manifest
    if not {"lung_quality", "lung_mask"} <= set(manifest.column_names):
        return None
    measured = pc.is_in(manifest["image_id"], value_set=subject.chosen.table["image_id"].combine_chunks())
    try:
        return draw_lungs(manifest.filter(measured), cache_of(manifest, subject.manifest_name), seed)
    except ManifestError as error:
        log(f"the report shows no outlines of lungs: {error}")
        return None
