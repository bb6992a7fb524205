"""Scoring at a site, on a real Ray: raw columns stay as they are, and a silent trial scores only what is new."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest

from pneumo_ray.errors import ConfigError
from pneumo_ray.model import load_bundle
from pneumo_ray.report.silent import write_weeks
from pneumo_ray.score.batches import batches_of
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.job import explain_archive
from pneumo_ray.score.silent import score_new
from pneumo_ray.score.silent_config import SilentConfig
from pneumo_ray.site.profile import COLUMNS, SiteProfile, write_profile
from pneumo_ray.site.recalibration import Recalibration

AGES = ("002Y", "011M", "095Y")


@pytest.fixture(scope="module")
def archive(dicom_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("who")
    rng = np.random.default_rng(0)
    for number, age in enumerate(AGES):
        dataset = pydicom.dcmread(io.BytesIO(dicom_file(rng.integers(0, 256, (90, 80), np.uint8))))
        dataset.PatientAge, dataset.PatientSex, dataset.ViewPosition, dataset.Manufacturer = age, "F", "AP", "Agfa"
        dataset.save_as(folder / f"{number}.dcm")
    (folder / "broken.dcm").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def profile(model, archive, tmp_path_factory) -> tuple[str, SiteProfile]:
    uri = str(tmp_path_factory.mktemp("site") / "site.json")
    made = SiteProfile(load_bundle(model).hash, {"seed": 0}, Recalibration("intercept", intercept=-1.0), 0.5, 0.4, 0.6)
    return uri, write_profile(made, {}, uri)


def rows(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))]).sort_by("image_id")


def test_a_site_adds_columns_and_changes_none(ray_cluster, model, archive, profile, tmp_path):
    plain = ExplainConfig(model=str(model), out=str(tmp_path / "plain"), archive=(str(archive),), amp="off")
    explain_archive(plain)
    explain_archive(replace(plain, out=str(tmp_path / "site"), site=profile[0]))
    before, after = rows(tmp_path / "plain"), rows(tmp_path / "site")
    assert before.drop_columns(list(COLUMNS)).equals(after.drop_columns(list(COLUMNS)))
    assert all(before[name].null_count == 4 for name in COLUMNS)
    ok = after.filter(pa.compute.equal(after["status"], "ok"))
    expected = profile[1].columns(ok["prob_mean"].to_numpy())
    for name in COLUMNS:
        assert ok[name].to_pylist() == pa.array(expected[name].tolist(), ok[name].type).to_pylist()
        assert after[name].null_count == 1  # the failed row
    assert json.loads((tmp_path / "site" / "_run.json").read_text())["site_hash"] == profile[1].hash
    assert ok["age_years"].to_pylist() == pytest.approx([2.0, 11 / 12, 90.0])
    assert ok["sex"].to_pylist() == ["F"] * 3
    assert ok["manufacturer"].to_pylist() == ["AGFA"] * 3
    assert ok["image_width"].to_pylist() == [80] * 3
    assert ok["contrast"].to_numpy().min() > 0.1
    with pytest.raises(ConfigError, match=r"another site\.json, or without one"):
        explain_archive(replace(plain, out=str(tmp_path / "site")))


def test_a_site_of_another_model_is_refused(ray_cluster, model, archive, tmp_path):
    uri = str(tmp_path / "site.json")
    write_profile(SiteProfile("other", {}, Recalibration(), 0.5, None, None), {}, uri)
    with pytest.raises(ConfigError, match="another model"):
        explain_archive(ExplainConfig(model=str(model), out=str(tmp_path / "o"), archive=(str(archive),), site=uri))
    assert not (tmp_path / "o").exists()


def test_a_silent_trial_scores_only_what_is_new(ray_cluster, model, archive, profile, tmp_path):
    growing = tmp_path / "archive"
    growing.mkdir()
    copy = lambda name: (growing / name).write_bytes((archive / name).read_bytes())  # noqa: E731
    copy("0.dcm")
    copy("broken.dcm")
    config = SilentConfig(archive=(str(growing),), model=str(model), out=str(tmp_path / "trial"), site=profile[0])
    assert score_new(config) == 2
    assert score_new(config) == 1  # the empty file may have been on its way
    copy("1.dcm")
    (growing / "broken.dcm").write_bytes((archive / "2.dcm").read_bytes())
    assert score_new(config) == 2
    assert score_new(config) == 0
    assert len(batches_of(config.out)) == 3
    table = tmp_path / "labels.csv"
    table.write_text("image_id,label\n0.dcm,0\n1.dcm,1\nnot-yet.dcm,1\n")
    weeks = write_weeks(replace(config, labels=str(table)))
    assert [(week.images, week.failed, week.labelled) for week in weeks] == [(3, 0, 2)] * 2
    with open(tmp_path / "trial" / "weeks.csv") as file:
        assert [row["images"] for row in csv.DictReader(file)] == ["3", "3"]
    assert "Silent trial" in (tmp_path / "trial" / "silent.html").read_text()


def test_a_silent_trial_scores_like_its_reference(ray_cluster, model, archive, profile, tmp_path):
    """What it cannot be compared with is refused before an image is scored."""
    reference = str(tmp_path / "reference")
    explain_archive(ExplainConfig(model=str(model), out=reference, archive=(str(archive),), target="pneumonia"))
    trial = SilentConfig(archive=(str(archive),), model=str(model), out=str(tmp_path / "trial"), reference=reference)
    with pytest.raises(ConfigError, match="passes 200 and not 20"):
        score_new(replace(trial, passes=20))
    assert score_new(trial) == 4
    assert write_weeks(trial)[-1].images == 4
    with pytest.raises(ConfigError, match=r"another site\.json, or without one"):
        score_new(replace(trial, site=profile[0]))
    with pytest.raises(ConfigError, match="passes 200 and not 20"):
        score_new(replace(trial, passes=20, reference=None))
    (name,) = batches_of(trial.out)
    begun = tmp_path / "trial" / "batches" / name / "scores" / "_job" / "job.json"
    begun.write_text(begun.read_text().replace('"pneumonia"', '"normal"'))
    with pytest.raises(ConfigError, match="target pneumonia, the trial with target normal"):
        score_new(trial)


@pytest.mark.faults
def test_an_interrupted_batch_is_finished_first(ray_cluster, model, archive, tmp_path):
    config = SilentConfig(archive=(str(archive),), model=str(model), out=str(tmp_path / "trial"))
    score_new(config)
    (name,) = batches_of(config.out)
    scores = tmp_path / "trial" / "batches" / name / "scores"
    before = rows(scores)
    (scores / "_run.json").unlink()
    next(scores.glob("part-*.parquet")).unlink()
    score_new(config)
    assert rows(scores).equals(before)
