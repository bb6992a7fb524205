"""The evaluation job: from scores and a manifest to numbers, tables, figures and a report, without a model or Ray."""

import json
from dataclasses import dataclass, replace

import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.manifest import fingerprint, read_manifest
from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.attention import localisation_line, measure_localisation
from pneumo_ray.evaluate.boxes import read_boxes
from pneumo_ray.evaluate.compare import Comparison, compare
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.evaluation import Evaluation
from pneumo_ray.evaluate.lung_evidence import lung_evidence
from pneumo_ray.evaluate.matching import check_coverage, match
from pneumo_ray.evaluate.number_text import percent_text
from pneumo_ray.evaluate.numbers import evaluate
from pneumo_ray.evaluate.robustness import FORMAT
from pneumo_ray.evaluate.scores import Scores, fact, read_run, read_scores
from pneumo_ray.evaluate.tables import Rows, summary_lines, tables_of
from pneumo_ray.evaluate.zone_table import zone_table
from pneumo_ray.records import JsonObject, json_of
from pneumo_ray.report.history import read_history
from pneumo_ray.report.posteriors import csv_rows, measure_posteriors, posterior_sets
from pneumo_ray.report.subject import Subject
from pneumo_ray.report.write import write_report


@dataclass(frozen=True)
class _Sources:
    """What an evaluation reads."""

    everything: Scores
    """All rows of the scores, failed ones included."""
    run: JsonObject
    """`_run.json` of the scores."""
    manifest: pa.Table
    scores: Scores
    """Images that did not fail, of all splits, joined with the manifest."""
    split: str | None
    """None for all images."""
    chosen: Scores
    """Those of the split."""


def _sources(config: EvaluateConfig) -> _Sources:
    """Read scores and manifest, and join them.

    Raises:
        PneumoError: if they do not fit together, or there is nothing to measure.
    """
    assert config.scores is not None
    everything, run = read_scores(config.scores), read_run(config.scores)
    manifest = read_manifest(storage.absolute(config.manifest))
    scores = match(everything, manifest, config.manifest)
    split = None if config.split == "all" else config.split
    check_coverage(everything, manifest, split, config.manifest)
    chosen = scores if split is None else scores.of_split(split)
    if not len(chosen.table):
        raise ConfigError(
            f"the scores have no readable image in the split {config.split}; choose another --split, or all"
        )
    return _Sources(everything, run, manifest, scores, split, chosen)


def write_evaluation(config: EvaluateConfig) -> Evaluation:
    """Evaluate and write the files; return what metrics.json holds, as a record.

    Raises:
        PneumoError: if scores and manifest do not fit together or there is nothing to measure.
    """
    sources = _sources(config)
    run, manifest, split, chosen = sources.run, sources.manifest, sources.split, sources.chosen
    out = storage.absolute(config.out)
    storage.require_writable(out)
    with_masks = chosen.joined(manifest, ("lung_mask",)) if "lung_mask" in manifest.column_names else chosen
    localisation, localised = None, Rows()
    if config.boxes is not None:
        boxes = read_boxes(storage.absolute(config.boxes), manifest)
        localisation, localised = measure_localisation(sources.scores, split, boxes, run)
    sets = posterior_sets(config, chosen, run, manifest, split)
    numbers = replace(
        evaluate(sources.scores, split, config.prevalence, config.seed),
        failed_files=len(sources.everything.table) - len(sources.scores.table),
        comparison=None if config.baseline is None else _compared(config, chosen, manifest, split),
        lungs=lung_evidence(with_masks),
        localisation=localisation,
        posteriors=measure_posteriors(config, sets, manifest, split),
    )
    storage.write_json(json_of(numbers), storage.join(out, "metrics.json"), allow_nan=False)
    failed = sources.everything.failed().joined(manifest, ("label", "split")).table
    zones = [] if numbers.measured is None else zone_table(chosen)
    tables = tables_of(numbers, zones, failed)
    if localisation is not None:
        tables["localisation.csv"] = localised
    for line in summary_lines(numbers):
        log(line)
    if numbers.posteriors is not None:
        tables["posteriors.csv"] = csv_rows(numbers.posteriors)
        log(f"  {numbers.posteriors.sentence}")
    if localisation is not None:
        log(localisation_line(localisation))
    if numbers.comparison is not None:
        log(_comparison_line(numbers.comparison))
    written = ["metrics.json", *tables]
    if config.report:
        seen = fingerprint(manifest)
        subject = Subject(
            chosen=chosen,
            manifest=manifest,
            manifest_name=config.manifest,
            manifest_fingerprint=seen,
            numbers=numbers,
            run=run,
            failed=failed,
            history=read_history(run),
            zones=zones,
            sets=sets,
            robustness=_robustness(out, run, config.split, numbers.threshold, seen),
        )
        tables["misclassified.csv"] = write_report(subject, out, config.gallery, config.prevalence, config.seed)
        written += ["misclassified.csv", "figures/"]
    for name, rows in tables.items():
        storage.write_csv(rows, storage.join(out, name))
    log(f"wrote {', '.join(written)} to {out}")
    if config.report:
        log(f"report {storage.join(out, 'report.html')}")
    return numbers


def _compared(config: EvaluateConfig, chosen: Scores, manifest: pa.Table, split: str | None) -> Comparison:
    assert config.baseline is not None
    other = match(read_scores(config.baseline), manifest, config.manifest)
    return compare(chosen, other if split is None else other.of_split(split), config.baseline)


def _comparison_line(found: Comparison) -> str:
    auc, errors = found.auc.delong, found.errors
    of_auc, of_accuracy = (found.differences[name].p for name in ("auc", "accuracy"))
    if auc.difference is None:
        ranked = "AUC undefined, a class is missing"
    elif auc.p is None:
        ranked = f"AUC differs by {auc.difference:+.4f} (no test, they rank alike)"
    else:
        ranked = f"AUC differs by {auc.difference:+.4f} ({_by_patient(of_auc)}; DeLong p {auc.p:.3g})"
    return (
        f"against {found.name} on {found.images:,} images: {ranked}; errors {percent_text(errors.share)} against "
        f"{percent_text(errors.share_baseline)} ({_by_patient(of_accuracy)}; McNemar p {errors.mcnemar.p:.3g}); DeLong and McNemar "
        "assume independent images"
    )


def _by_patient(p: float | None) -> str:
    return "no p by patient" if p is None else f"p by patient {p:.3g}"


def check_same_model(scores: str, model: str) -> None:
    """Refuse to measure the robustness of another model than the one that the scores are of.

    Raises:
        ConfigError: if they are not of one model.
    """
    try:
        found = json.loads(storage.read_bytes(storage.join(storage.absolute(model), "model.json")))["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # load_bundle reports the reason
    if found != fact(read_run(scores), "model", "hash"):
        raise ConfigError(
            f"--scores {scores} are not of --model {model}; give the scores of that model, or leave them out"
        )


def _robustness(out: str, run: JsonObject, split: str, threshold: float, manifest: str) -> JsonObject | None:
    """Return robustness.json of the report's folder, if it is of this model, manifest, split and threshold."""
    try:
        found = json.loads(storage.read_bytes(storage.join(out, "robustness.json")))
    except (OSError, ValueError):
        return None
    expected = {
        "format": FORMAT,
        "model_hash": fact(run, "model", "hash"),
        "manifest_fingerprint": manifest,
        "split": split,
        "threshold": threshold,
    }
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in expected.items()):
        log("robustness.json is of another model, manifest or split and is not in the report; repeat --robustness")
        return None
    return found
