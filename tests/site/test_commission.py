"""Commissioning from files to files, and every input that it must refuse."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.data.manifest import fingerprint
from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.report.commissioning import write_commissioning
from pneumo_ray.site.commission import commission, read_site
from pneumo_ray.site.config import CommissionConfig
from pneumo_ray.site.profile import COLUMNS, SiteProfile, check_model, read_profile, write_profile
from pneumo_ray.site.recalibration import Recalibration
from pneumo_ray.site.triage import NoTriage, Triage

N, LABELLED = 1000, 500
METHOD = {"passes": 20, "seed": 0, "target": "pneumonia"}


@pytest.fixture(scope="module")
def site(write_scores, write_truth, tmp_path_factory):
    """Scores that are too high and too flat, half of them with a label."""
    rng = np.random.default_rng(0)
    label = (rng.random(N) < 0.4).astype(int)
    logit = 2 * (0.7 * (3.4 * label - 1.7 + rng.normal(size=N)) + 0.8)
    known = np.where(np.arange(N) < LABELLED, label, -1)
    folder = tmp_path_factory.mktemp("site")
    write_scores(folder / "scores", logit)
    write_truth(folder / "m.parquet", known, n=N)
    return folder, label


def config(folder, out, **changes) -> CommissionConfig:
    return CommissionConfig(
        **{"scores": str(folder / "scores"), "manifest": str(folder / "m.parquet"), "out": str(out)} | changes
    )


@pytest.fixture(scope="module")
def found(site):
    asked = config(site[0], site[0] / "x")
    return commission(*read_site(asked), asked)


def test_the_commissioning_fits_the_unlabelled_rest(site, found):
    """Half of the images were labelled; the others hold the promises, the threshold and the prevalence to account."""
    label, rest = site[1][LABELLED:], found.images.prob[LABELLED:]
    assert isinstance(found.triage, Triage)
    low, high = rest < found.triage.low, rest >= found.triage.high
    for c, wrong in ((0, high), (1, low)):
        called = (low | high) & (label == c)
        assert (wrong & called).sum() <= 0.05 * called.sum() + 2
    assert np.mean(rest[label == 1] >= found.point.threshold) >= found.point.sensitivity.at_least - 0.03
    assert found.prevalence.source == "unlabelled"
    assert found.prevalence.low <= label.mean() <= found.prevalence.high
    assert found.after["log_loss"].value < found.before["log_loss"].value - 0.05
    site_prob = found.choice.chosen.prob(rest)
    assert site_prob.mean() == pytest.approx(label.mean(), abs=0.04)


def test_the_file_says_what_was_found(site, found, tmp_path, capsys):
    profile = write_commissioning(config(site[0], tmp_path, name="A <b>site"))
    assert read_profile(str(tmp_path / "site.json")) == profile
    text = (tmp_path / "site.json").read_text()
    plain = json.loads(text)
    assert plain["applied"]["threshold"] == found.point.threshold
    assert plain["from"]["labelled"] == LABELLED
    assert plain["triage"]["called_share"] == found.triage.called_share
    assert "p12" not in text  # no patient
    assert "12.jpg" not in text  # and no image
    page = (tmp_path / "site.html").read_text()
    assert "A &lt;b&gt;site" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "triage" in capsys.readouterr().out


def test_the_columns_are_those_of_the_profile():
    profile = SiteProfile("m", METHOD, Recalibration("intercept", intercept=-1.0), 0.6, 0.25, 0.875, "abc")
    columns = profile.columns(np.array([0.1, 0.25, 0.6, 0.875], np.float32))
    assert tuple(columns) == COLUMNS
    assert columns["triage"].tolist() == ["negative", "read", "read", "positive"]
    assert columns["predicted_site"].tolist() == [0, 0, 1, 1]  # 0.6 as a float32 is above 0.6
    odds = np.exp(-1.0) * 0.1 / 0.9
    assert columns["prob_site"][0] == pytest.approx(odds / (1 + odds), abs=1e-6)


def test_without_guarantee_every_image_is_read():
    profile = SiteProfile("m", METHOD, Recalibration(), 0.5, None, None, "abc")
    assert profile.columns(np.array([0.0, 1.0], np.float32))["triage"].tolist() == ["read", "read"]


def test_a_changed_file_is_refused(tmp_path):
    uri = str(tmp_path / "site.json")
    written = write_profile(SiteProfile("m", METHOD, Recalibration(), 0.5, None, None), {"use": "x"}, uri)
    assert read_profile(uri) == written
    (tmp_path / "site.json").write_text(
        (tmp_path / "site.json").read_text().replace('"threshold": 0.5', '"threshold": 0.4')
    )
    with pytest.raises(ConfigError, match="changed"):
        read_profile(uri)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "pneumo_ray.site 2"}', "nonsense"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "site.json").write_text(text)
    with pytest.raises(ConfigError, match="--site"):
        read_profile(str(tmp_path / "site.json"))


def test_another_model_or_other_passes_are_refused():
    profile = SiteProfile("model-a", METHOD, Recalibration(), 0.5, None, None, "abc")
    check_model(profile, "site.json", "model-a", METHOD | {"target": "normal", "amp": "off"})
    with pytest.raises(ConfigError, match="another model"):
        check_model(profile, "site.json", "model-b", METHOD)
    with pytest.raises(ConfigError, match="passes 20 and not 200"):
        check_model(profile, "site.json", "model-a", METHOD | {"passes": 200})


def test_scores_that_name_no_posterior_are_of_dropout():
    profile = SiteProfile("model-a", METHOD, Recalibration(), 0.5, None, None, "abc")
    check_model(profile, "site.json", "model-a", METHOD | {"posterior": "dropout"})
    with pytest.raises(ConfigError, match="posterior dropout and not laplace"):
        check_model(profile, "site.json", "model-a", METHOD | {"posterior": "laplace"})


def relabelled(site, tmp_path, label, **columns):
    """Return a copy of the site's folder with other labels, or other columns of the manifest."""
    table = pq.read_table(site[0] / "m.parquet")
    changed = {"label": pa.array([*label, None], pa.int8())} | columns
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    pq.write_table(table, tmp_path / "m.parquet")
    return config(site[0], tmp_path / "out", manifest=str(tmp_path / "m.parquet"))


def few(label: np.ndarray, rows) -> list:
    keep = set(rows)
    return [int(value) if row in keep else None for row, value in enumerate(label)]


def refused(asked: CommissionConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        write_commissioning(asked)
    return str(caught.value)


def test_scores_without_labels_are_refused(site, tmp_path):
    assert "no scored image has a label" in refused(relabelled(site, tmp_path, [None] * N))


def test_ten_labels_are_refused_with_the_missing_number(site, tmp_path):
    asked = relabelled(site, tmp_path, few(site[1], range(0, 20, 2)))
    assert "label images of 5 more patient(s)" in refused(asked)


def test_one_class_is_refused_with_the_missing_number(site, tmp_path):
    asked = relabelled(site, tmp_path, few(site[1], np.flatnonzero(site[1] == 0)[:200]))
    assert "at least 5 with pneumonia" in refused(asked)


def test_one_patient_is_refused(site, tmp_path):
    asked = relabelled(site, tmp_path, few(site[1], range(LABELLED)), patient_id=pa.array(["p"] * (N + 1)))
    assert "of 1 patient(s)" in refused(asked)


def test_few_labels_give_the_missing_number(site, tmp_path):
    asked = relabelled(site, tmp_path, few(site[1], range(0, 120, 2)))
    found = commission(*read_site(asked), asked)
    assert isinstance(found.triage, NoTriage)
    ill = int(site[1][:120:2].sum())
    assert found.triage.missing == {"normal": 72 - (60 - ill), "pneumonia": 72 - ill}


def test_labels_of_other_images_are_refused(site, write_truth, tmp_path):
    manifest = write_truth(tmp_path / "m.parquet", site[1], n=N, names=[f"other-{i}.jpg" for i in range(N)])
    with pytest.raises(ManifestError, match="are not in"):
        write_commissioning(config(site[0], tmp_path / "out", manifest=str(manifest)))


def test_a_probability_that_is_no_number_is_refused(site, write_scores, tmp_path):
    prob = np.full(N, 0.5, np.float32)
    prob[3] = np.nan
    write_scores(tmp_path / "scores", np.zeros(N), prob_mean=prob)
    with pytest.raises(ManifestError, match="invalid prob_mean"):
        write_commissioning(config(site[0], tmp_path / "out", scores=str(tmp_path / "scores")))


def test_images_that_trained_the_model_are_refused(site, tmp_path):
    asked = config(site[0], tmp_path / "out")
    scores, run, manifest = read_site(asked)
    train = manifest.set_column(manifest.column_names.index("split"), "split", pa.array(["train"] * (N + 1)))
    own = run | {"model": run["model"] | {"provenance": {"manifest": {"fingerprint": fingerprint(train)}}}}
    table = scores.table.set_column(scores.table.column_names.index("split"), "split", pa.array(["train"] * N))
    with pytest.raises(ConfigError, match="trained or chosen on every labelled image"):
        commission(replace(scores, table=table), own, train, asked)
