"""Commissioning: from the scores of a site and the labels of some of its images to what the model is worth there."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.config import as_plain
from pneumo_ray.data.manifest import fingerprint, read_manifest
from pneumo_ray.data.person import person_columns
from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.intervals import patient_intervals
from pneumo_ray.evaluate.matching import match
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.scores import Scores, fact, read_run, read_scores
from pneumo_ray.records import JsonObject
from pneumo_ray.site.config import CommissionConfig
from pneumo_ray.site.groups import SiteGroup, groups_at
from pneumo_ray.site.labels import Floats, Labelled, SiteImages, site_images
from pneumo_ray.site.labels_needed import LabelsRow, labels_needed
from pneumo_ray.site.prevalence import (
    PredictiveValues,
    Prevalence,
    counted_prevalence,
    estimate_prevalence,
    predictive_values,
)
from pneumo_ray.site.profile import SiteProfile
from pneumo_ray.site.recalibration_fit import Choice, choose
from pneumo_ray.site.threshold import Share, SiteThreshold, at_threshold, choose_threshold
from pneumo_ray.site.triage import NoTriage, Triage, find_triage

MEASURES = ("auc", "brier", "ece", "log_loss")


@dataclass(frozen=True)
class Measure:
    """A measure with its 95 % interval over patients, where there are enough."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Commissioning:
    """All that commissioning found."""

    images: SiteImages
    own_threshold: float
    """That of the model, on `prob_mean`."""
    sensitivity_before: Share
    """At the model's own threshold."""
    specificity_before: Share
    before: dict[str, Measure]
    """Of `prob_mean`."""
    after: dict[str, Measure]
    """Of the cross-fitted probabilities of the chosen recalibration."""
    choice: Choice
    point: SiteThreshold
    triage: Triage | NoTriage
    prevalence: Prevalence
    values: PredictiveValues
    """At the site's threshold and prevalence."""
    values_before: PredictiveValues
    """At the model's own threshold and the site's prevalence."""
    groups: tuple[SiteGroup, ...]
    """At the threshold for the site, by age, sex, view position and manufacturer as far as they are known."""
    needed: tuple[LabelsRow, ...]
    seen_in_training: int
    """Labelled images that are in the split train or val of the manifest that the model was trained with."""


def read_site(config: CommissionConfig) -> tuple[Scores, JsonObject, pa.Table]:
    """Read and join the scores and the manifest of a commissioning.

    Returns:
        Scores with `label` and `patient_id`, `_run.json`, and the manifest.

    Raises:
        PneumoError: if they do not fit together, or hold what is not a number.
    """
    everything, run = read_scores(config.scores), read_run(config.scores)
    manifest = read_manifest(storage.absolute(config.manifest))
    scores = match(everything, manifest, config.manifest)
    if config.split != "all":
        scores = scores.of_split(config.split)
    if not len(scores.table):
        raise ConfigError(f"--scores {config.scores} has no readable image in the split {config.split}")
    return scores, run, manifest


def commission(scores: Scores, run: JsonObject, manifest: pa.Table, config: CommissionConfig) -> Commissioning:
    """Measure what the model is worth at a site, before and after recalibration.

    Args:
        scores: from `read_site`.
        run: `_run.json` of the scores.
        manifest: of the same images.
        config: what is asked for.

    Raises:
        ConfigError: if there are too few labels, with the number that is missing; or the model has seen the images.
    """
    images = site_images(scores)
    data = images.labelled
    data.check_enough()
    seen = _seen_in_training(scores, run, manifest)
    if seen == len(data):
        raise ConfigError(
            "the model was trained or chosen on every labelled image of this manifest, so nothing about a site can be learned "
            "from them; give --split test, or the manifest of another site"
        )
    single = data.one_per_patient(config.seed)
    choice = choose(data, config.seed)
    point = choose_threshold(single, config.operating_point, config.seed)
    triage = find_triage(single, images.prob, config.triage.alpha, config.triage.delta)
    prevalence = _prevalence(config, images, single, choice)
    own = at_threshold(single, scores.threshold)
    return Commissioning(
        images=images,
        own_threshold=scores.threshold,
        sensitivity_before=own[0],
        specificity_before=own[1],
        before=_measures(data, data.prob, config.seed),
        after=_measures(data, choice.cross_fitted.prob, config.seed),
        choice=choice,
        point=point,
        triage=triage,
        prevalence=prevalence,
        values=predictive_values(point.sensitivity, point.specificity, prevalence, point.expected_sensitivity),
        values_before=predictive_values(*own, prevalence),
        groups=groups_at(data, _persons(scores, manifest), point.threshold, config.seed),
        needed=labels_needed(point, config.triage.alpha, config.triage.delta),
        seen_in_training=seen,
    )


def profile_of(found: Commissioning, scores: Scores) -> SiteProfile:
    """Return what scoring applies."""
    triage = found.triage if isinstance(found.triage, Triage) else None
    facts = scores.table.schema.metadata or {}
    return SiteProfile(
        model_hash=facts.get(b"model_hash", b"").decode(),
        method=json.loads(facts[b"method"]),
        recalibration=found.choice.chosen,
        threshold=found.point.threshold,
        triage_low=None if triage is None else triage.low,
        triage_high=None if triage is None else _finite(triage.high),
    )


def facts_of(found: Commissioning, config: CommissionConfig, run: JsonObject, manifest: pa.Table) -> JsonObject:
    """Return the rest of site.json: numbers, hashes and versions as plain JSON values."""
    data = found.images.labelled
    return {
        "made": {
            "by": f"pneumo_ray {version('pneumo_ray')}, jobs/commission.py",
            "on": datetime.now(UTC).isoformat(timespec="seconds"),
            "site": config.name or None,
            "config": as_plain(config),
            "model_architecture": fact(run, "model", "architecture"),
        },
        "from": {
            "scores_sha256": found.images.scores_hash,
            "labels_sha256": found.images.labels_hash,
            "manifest_fingerprint": fingerprint(manifest),
            "images": len(found.images.prob),
            "labelled": len(data),
            "labelled_patients": data.num_patients,
            "patients_with_pneumonia": data.patients_of_class(1),
            "patients_without_pneumonia": data.patients_of_class(0),
            "images_without_patient": found.images.without_patient,
        },
        "calibration": {
            "tried": [
                {name: value for name, value in vars(tried).items() if name != "prob"} for tried in found.choice.tried
            ],
            "before": {name: asdict(measure) for name, measure in found.before.items()},
            "after_cross_fitted": {name: asdict(measure) for name, measure in found.after.items()},
        },
        "threshold": {
            "rule": found.point.rule,
            "threshold_prob_site": float(found.choice.chosen.prob(np.array([found.point.threshold]))[0]),
            "cross_fitted": found.point.cross_fitted,
            "sensitivity": _share(found.point.sensitivity) | {"expected": found.point.expected_sensitivity},
            "specificity": _share(found.point.specificity),
            "own": {
                "threshold": found.own_threshold,
                "sensitivity": _share(found.sensitivity_before),
                "specificity": _share(found.specificity_before),
            },
        },
        "triage": asdict(found.triage)
        | ({"high": _finite(found.triage.high)} if isinstance(found.triage, Triage) else {}),
        "prevalence": asdict(found.prevalence),
        "at_this_prevalence": asdict(found.values),
        "groups": [
            {
                "column": group.column,
                "value": group.value,
                "sensitivity": _share(group.sensitivity),
                "specificity": _share(group.specificity),
            }
            for group in found.groups
        ],
        "labels_needed": [asdict(row) for row in found.needed],
        "use": "research use only",
    }


def _prevalence(config: CommissionConfig, images: SiteImages, single: Labelled, choice: Choice) -> Prevalence:
    if config.prevalence is not None:
        return Prevalence(config.prevalence, config.prevalence, config.prevalence, "given", 0)
    estimated = estimate_prevalence(
        images.unlabelled, images.unlabelled_patient_of, images.labelled, choice.chosen, config.seed
    )
    return estimated or counted_prevalence(single)


def _persons(scores: Scores, manifest: pa.Table) -> dict[str, pa.Array]:
    """Return who is on the labelled images, in their order."""
    names = scores.table["image_id"].filter(scores.table["label"].is_valid())
    place = pc.index_in(names, value_set=manifest["image_id"].combine_chunks()).combine_chunks()
    return {name: values.take(place) for name, values in person_columns(manifest).items()}


def _measures(data: Labelled, prob: Floats, seed: int) -> dict[str, Measure]:
    values = classification_metrics(data.label, prob, 0.5)
    intervals = patient_intervals(data.label, prob, 0.5, data.patient_of, MEASURES, seed=seed)
    return {name: Measure(values[name], intervals[name]) for name in MEASURES}


def _seen_in_training(scores: Scores, run: JsonObject, manifest: pa.Table) -> int:
    if fact(run, "model", "provenance", "manifest", "fingerprint") != fingerprint(manifest):
        return 0
    split, label = (scores.table[name].to_pylist() for name in ("split", "label"))
    return sum(s in ("train", "val") and y is not None for s, y in zip(split, label, strict=True))


def _share(found: Share) -> dict[str, float | int | None]:
    return {**asdict(found), "value": found.value}


def _finite(value: float) -> float:
    """Return a threshold as JSON can hold it: 2 for one that no probability reaches."""
    return min(value, 2.0)
