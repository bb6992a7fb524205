"""What the report warns of, and what it fills into the reporting items."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.data.manifest import fingerprint, read_manifest
from pneumo_ray.evaluate.matching import match
from pneumo_ray.evaluate.numbers import evaluate
from pneumo_ray.evaluate.scores import Scores, read_run, read_scores
from pneumo_ray.explain import ZONES
from pneumo_ray.report.cautions import cautions
from pneumo_ray.report.items import NOT_AVAILABLE, reporting_items
from pneumo_ray.report.subject import Subject


@pytest.fixture(scope="module")
def subject(drawn, write_scores, write_truth, tmp_path_factory) -> Subject:
    folder = tmp_path_factory.mktemp("cautions")
    path = str(write_truth(folder / "m.parquet", drawn[0]))
    everything = read_scores(str(write_scores(folder / "s", drawn[1])))
    manifest = read_manifest(path)
    scores = match(everything, manifest, path)
    return Subject(
        chosen=scores.of_split("test"),
        manifest=manifest,
        manifest_name=path,
        manifest_fingerprint=fingerprint(manifest),
        numbers=evaluate(scores, "test", None),
        run=read_run(str(folder / "s")),
        failed=everything.failed().joined(manifest, ("label", "split")).table.slice(0, 0),
        history=[],
        zones=[],
    )


def said(subject: Subject, words: str) -> bool:
    return any(words in line for line in cautions(subject))


def with_provenance(subject: Subject, **facts) -> Subject:
    return replace(subject, run=subject.run | {"model": subject.run["model"] | {"provenance": facts}})


def with_column(subject: Subject, **columns) -> Subject:
    """The same with other values in the manifest, with which the model was trained."""
    table = subject.manifest
    for name, values in columns.items():
        index = table.column_names.index(name)
        table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    scores = Scores(subject.chosen.table, (2, 2), ZONES, 0.4, "pneumonia")
    scores = replace(scores, table=scores.table.select(scores.table.column_names[: scores.num_score_columns]))
    trained = replace(subject, manifest=table, manifest_fingerprint=fingerprint(table), chosen=scores.joined(table))
    return with_provenance(trained, manifest={"fingerprint": fingerprint(table), "protocol": "grouped"})


def test_a_large_fall_from_validation_is_a_warning(subject):
    now = subject.numbers.measured.metrics.stored.values.specificity
    assert said(with_provenance(subject, validation={"specificity": now + 0.11}), "The specificity at the stored")
    assert not said(with_provenance(subject, validation={"specificity": now + 0.09}), "The specificity")
    assert not said(subject, "was")


def test_training_images_are_a_warning(subject):
    trained = with_column(subject, split=["train"] * 240 + [None])
    whole = replace(trained, numbers=replace(subject.numbers, split=None))
    assert said(whole, "trained on 240 of these")
    assert said(with_provenance(whole), "another manifest")
    chosen = with_column(subject, split=["val"] * 240 + [None])
    assert said(replace(chosen, numbers=replace(subject.numbers, split="val")), "chosen on these images")
    paper = with_column(subject)
    print_of_it = paper.run["model"]["provenance"]["manifest"]["fingerprint"]
    assert said(with_provenance(paper, manifest={"fingerprint": print_of_it, "protocol": "paper"}), "not patients")
    assert not said(subject, "too good")
    assert not said(replace(subject, numbers=replace(subject.numbers, split=None)), "trained")


def test_patients_and_images_on_both_sides_are_counted(subject):
    sides = ["train" if i % 2 else "test" for i in range(240)] + [None]
    both = with_column(subject, split=sides)
    assert said(replace(both, chosen=both.chosen.of_split("test")), "120 patient(s)")
    copies = [f"{i // 2}" if i < 20 else f"own {i}" for i in range(241)]
    patients = [f"{i}" for i in range(241)]
    alike = with_column(subject, split=sides, patient_id=patients, content_sha256=copies)
    alike = replace(alike, chosen=alike.chosen.of_split("test"))
    assert said(alike, "10 image(s), byte for byte")
    assert not said(alike, "patient(s)")


def test_shortcuts_calibration_and_failures_are_said(subject):
    for auc, warned in ((0.83, True), (0.6, False), (None, False)):
        found = replace(subject, robustness={"metadata_only": {"auc": auc}})
        assert said(found, "sees only the size") == warned
    one = subject.chosen.table.slice(0, 1)
    kind = "1 pneumonia, 0 normal" if one["label"][0].as_py() else "0 pneumonia, 1 normal"
    assert said(replace(subject, failed=one), f"1 image(s) of this split could not be scored ({kind})")
    for error, p, warned in ((0.2, 0.01, True), (0.2, 0.06, False), (0.04, 0.001, False)):
        measured = subject.numbers.measured
        found = replace(measured.calibration["monte_carlo_mean"], ece=error, ece_p=p)
        numbers = replace(subject.numbers, measured=replace(measured, calibration={"monte_carlo_mean": found}))
        assert said(replace(subject, numbers=numbers), "not as probabilities") == warned


def test_unknown_items_are_not_available(subject):
    items = dict(reporting_items(subject))
    for name in (
        "Intended population and setting",
        "Demographics (age, sex, ethnicity)",
        "External validation",
        "Training",
    ):
        assert items[name] == NOT_AVAILABLE, name
    positives = int((np.array(subject.manifest["label"].to_pylist()[:-1]) == 1).sum())
    assert items["Sample sizes"] == f"test: {240 - positives} normal, {positives} pneumonia"
    assert "1 unreadable" in items["Flow of exclusions"]
    assert "240 of the split test measured here" in items["Flow of exclusions"]
    assert "64 x 64" in items["Preprocessing"]


def test_a_foreign_bundle_cannot_break_items(subject):
    for provenance in ({}, {"config": {}}, {"config": {"optim": 3}}, {"config": "x"}, {"manifest": 7}, {"epochs": []}):
        strange = with_provenance(subject, **provenance)
        assert dict(reporting_items(strange))["Training"] == NOT_AVAILABLE
        cautions(strange)
