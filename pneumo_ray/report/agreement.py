"""The job that measures agreement: readings, and what is known of their images, in; numbers and a page out."""

from dataclasses import dataclass

import numpy as np

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.drawing import save_figure
from pneumo_ray.evaluate.intervals import LEVEL, MIN_PATIENTS
from pneumo_ray.evaluate.scores import Scores, read_scores
from pneumo_ray.readers.agreement import Estimate
from pneumo_ray.readers.comparison import Comparison, Facts, compare_readers
from pneumo_ray.readers.config import AgreeConfig
from pneumo_ray.readers.readings import Readings, read_readings
from pneumo_ray.records import json_of
from pneumo_ray.report.agreement_page import kappa_figure, render_agreement
from pneumo_ray.report.wording import figure_text, interval_text

GROUPS = ("label", "subtype")
"""Columns of the manifest by whose values agreement is measured."""
_CLASSES = {0: "normal", 1: "pneumonia"}


@dataclass(frozen=True)
class Methods:
    """Description of the numbers in agreement.json."""

    level: float = LEVEL
    unit: str = "patient"
    min_patients: int = MIN_PATIENTS
    coefficients: str = (
        "krippendorff: alpha, nominal, of images with two answers or more; fleiss: of images that all readers answered; "
        "pairs, repeated: Cohen's kappa; groups: Krippendorff's alpha; pabak = 2 observed - 1"
    )
    intervals: str = (
        "coefficients: jackknife over patients with Student's t, on Fisher's z; observed and pabak: exact binomial "
        "(Clopper-Pearson) on the effective sample size of the patients (Korn-Graubard); others and model: as metrics.json"
    )


def write_agreement(config: AgreeConfig) -> Comparison:
    """Measure the agreement of readers and write agreement.json, agreement.html and the figure.

    Raises:
        PneumoError: if the readings cannot be used, name unknown images, or are of one reader alone.
    """
    readings = read_readings(config.readings)
    readings, facts = _known(readings, config)
    found = compare_readers(readings, facts)
    out = storage.absolute(config.out)
    storage.require_writable(out)
    values = json_of(found) | {"methods": json_of(Methods())}
    storage.write_json(values, storage.join(out, "agreement.json"))
    drawn = {"kappas": save_figure(kappa_figure(found), storage.join(out, "figures"), "kappas")}
    page = storage.join(out, "agreement.html")
    storage.write_bytes(page, render_agreement(found, config, drawn).encode("utf-8", "replace"))
    for line in _summary(found):
        log(line)
    log(f"wrote {storage.join(out, 'agreement.json')}; page {page}")
    return found


def _known(readings: Readings, config: AgreeConfig) -> tuple[Readings, Facts]:
    """Return the readings with the names of the manifest's images, and what is known of these images."""
    if config.manifest is None:
        scores = None if config.scores is None else read_scores(config.scores).ok()
        image_ids = readings.image_ids
        return readings, Facts(image_ids, prob=_probabilities(scores, image_ids), threshold=_threshold(scores))
    manifest = read_manifest(config.manifest)
    readings = readings.matched(manifest["image_id"].to_pylist(), "--readings")
    read = set(readings.image_ids)
    manifest = manifest.filter([name in read for name in manifest["image_id"].to_pylist()])
    scores = None if config.scores is None else read_scores(config.scores).ok()
    image_ids = tuple(manifest["image_id"].to_pylist())
    groups = {name: manifest[name].to_pylist() for name in GROUPS}
    groups["label"] = [_CLASSES.get(label) for label in groups["label"]]
    return readings, Facts(
        image_ids, manifest["patient_id"].to_pylist(), groups, _probabilities(scores, image_ids), _threshold(scores)
    )


def _threshold(scores: Scores | None) -> float:
    return 0.5 if scores is None else scores.threshold


def _probabilities(scores: Scores | None, image_ids: tuple[str, ...]) -> np.ndarray | None:
    if scores is None:
        return None
    of_image = dict(zip(scores.table["image_id"].to_pylist(), scores.numbers("prob_mean").tolist(), strict=True))
    prob = np.array([of_image.get(name, np.nan) for name in image_ids])
    if np.isnan(prob).all():
        raise ManifestError("--scores have none of the images that were read; give the scores of this archive")
    return prob


def _summary(found: Comparison) -> list[str]:
    def text(estimate: Estimate) -> str:
        interval = f" ({interval_text(estimate.interval)})" if estimate.interval else ""
        return figure_text(estimate.value) + interval

    lines = [
        f"{found.answers:,} answers of {len(found.readers)} readers about {found.images:,} images of {found.patients:,} patients",
        f"  {'agreement':<14}observed {text(found.krippendorff.observed)}, Krippendorff's alpha {text(found.krippendorff.coefficient)}, "
        f"Fleiss' kappa {text(found.fleiss.coefficient)}",
    ]
    lines += [f"  {'again':<14}{row.reader}: kappa {text(row.agreement.coefficient)}" for row in found.repeated]
    if found.model:
        row = found.model[0]
        lines.append(f"  {'model':<14}against {row.truth}: kappa {text(row.kappa)}, AUC {text(row.auc)}")
    return lines
