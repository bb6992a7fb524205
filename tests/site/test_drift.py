"""Drift: no alarm where nothing changed, an alarm where something did."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import false_discovery_control

from pneumo_ray.errors import ConfigError, DriftAlarm
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.report.drift import period, side_of, write_drift
from pneumo_ray.site.config import DriftConfig
from pneumo_ray.site.drift import MIN_IMAGES, compare, holm, stability_index
from pneumo_ray.site.quantities import quantities

N = 1200


@pytest.fixture(scope="module")
def archive(write_scores, tmp_path_factory):
    """Scores of one archive, with who is in it."""
    rng = np.random.default_rng(0)
    label = rng.random(N) < 0.4
    facts = {
        "age_years": rng.gamma(2, 3, N).astype(np.float32),
        "sex": rng.choice(["F", "M"], N).astype(object),
        "view_position": rng.choice(["AP", "PA"], N, p=[0.8, 0.2]).astype(object),
        "image_width": rng.choice([1024, 1400, 2000], N),
        "image_height": rng.choice([900, 1400], N),
        "contrast": rng.normal(0.22, 0.03, N).astype(np.float32),
        "bytes_per_pixel": rng.gamma(4, 0.03, N).astype(np.float32),
        "lung_share": rng.beta(8, 3, N).astype(np.float32),
        "lung_area": rng.normal(0.3, 0.05, N).astype(np.float32),
        "image_mode": np.array(["L"] * N, object),
    }
    folder = tmp_path_factory.mktemp("drift") / "scores"
    return write_scores(folder, 2 * rng.normal(size=N) + 3 * label - 1, **facts)


@pytest.mark.slow
def test_halves_of_one_archive_raise_no_alarm(archive):
    """At most 5 % of 200 splits; without the rule that a difference must matter as well, so that the tests alone are held."""
    found, rng = quantities(read_scores(str(archive)).ok()), np.random.default_rng(1)
    assert len(found) > 20
    alarms = chance = 0
    for _ in range(200):
        half = rng.permutation(N) < N // 2
        drift = compare({k: v[half] for k, v in found.items()}, {k: v[~half] for k, v in found.items()}, None, 0.05)
        alarms += bool(drift.alarms)
        chance += any(c.p_adjusted <= 0.05 for c in drift.comparisons)
    assert alarms <= 10
    assert chance <= 16  # 5 % of 200 and two standard errors


@pytest.mark.slow
def test_weeks_of_one_archive_raise_no_alarm(archive):
    found, rng = quantities(read_scores(str(archive)).ok()), np.random.default_rng(2)
    alarms = 0
    for _ in range(50):
        half = rng.permutation(N) < N // 2
        weeks = rng.choice(list("abcdef"), (~half).sum()).tolist()
        drift = compare({k: v[half] for k, v in found.items()}, {k: v[~half] for k, v in found.items()}, weeks, 0.05)
        alarms += bool(drift.alarms)
    assert alarms <= 5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("contrast", lambda v: v * 0.85),
        ("prob_mean", lambda v: v**0.6),
        ("sex", lambda v: np.where(np.arange(len(v)) % 2 == 0, "F", v)),
        ("view_position", lambda v: np.where(np.arange(len(v)) % 2 == 0, "PA", v)),
    ],
)
def test_what_changed_is_named(archive, name, change):
    found = quantities(read_scores(str(archive)).ok())
    half = np.random.default_rng(3).permutation(N) < N // 2
    here = {k: v[~half] for k, v in found.items()}
    drift = compare({k: v[half] for k, v in found.items()}, here | {name: change(here[name])}, None, 0.05)
    assert [alarm.quantity for alarm in drift.alarms] == [name]


def test_small_differences_raise_no_alarm():
    rng = np.random.default_rng(4)
    drift = compare({"x": rng.normal(size=100_000)}, {"x": rng.normal(size=100_000) + 0.05}, None, 0.05)
    (only,) = drift.comparisons
    assert only.p_adjusted < 1e-6
    assert not only.alarm


def test_the_stability_index_has_no_bias():
    rng = np.random.default_rng(5)
    assert stability_index(rng.normal(size=400), rng.normal(size=60)) < 0.1
    reference, here = (
        np.repeat(["a", "b"], 500_000).astype(object),
        np.repeat(["a", "b"], [300_000, 700_000]).astype(object),
    )
    expected = (0.3 - 0.5) * np.log(0.3 / 0.5) + (0.7 - 0.5) * np.log(0.7 / 0.5)
    assert stability_index(reference, here) == pytest.approx(expected, abs=1e-4)


def test_holm_is_that_of_the_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert all(a >= b for a, b in zip(holm(p), false_discovery_control(p), strict=True))
    assert holm([]) == []


def test_few_images_are_left_out_and_named():
    drift = compare({"x": np.zeros(500)}, {"x": np.arange(MIN_IMAGES - 1.0)}, None, 0.05)
    assert drift.comparisons == ()
    assert drift.left_out[0][1] == "x"


@pytest.mark.parametrize(
    ("value", "group"),
    [
        ("2026-11-25", "2026-W48"),
        ("20261125", "2026-W48"),
        ("2026-11-25T10:00", "2026-W48"),
        (3, "3"),
        ("CT1", "CT1"),
        (None, "unknown"),
    ],
)
def test_dates_become_weeks(value, group):
    assert period(value) == group


def test_a_patient_counts_once(archive, write_truth, tmp_path):
    manifest = write_truth(tmp_path / "m.parquet", np.zeros(N, int), n=N)
    side = side_of(read_scores(str(archive)), str(manifest), None, 0)
    assert len(side.found["prob_mean"]) == N // 2 + 1  # and the failed file, of another patient
    assert side.patients_known


def test_the_job_writes_and_ends_with_the_alarm(archive, write_scores, tmp_path):
    rng = np.random.default_rng(6)
    other = write_scores(tmp_path / "other", 2 * rng.normal(size=400) + 3)
    config = DriftConfig(str(archive), str(other), str(tmp_path / "out"), alarm=True)
    with pytest.raises(DriftAlarm) as caught:
        write_drift(config)
    assert caught.value.exit_code == 3
    plain = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert {c["quantity"] for c in plain["comparisons"] if c["alarm"]} >= {"prob_mean", "logit"}
    assert (tmp_path / "out" / "drift.html").stat().st_size > 10_000
    write_drift(replace(config, alarm=False))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (b"model_hash", b"other", "two models"),
        (b"map_shape", b"[4, 1]", "the same --maps"),
        (b"method", b'{"target": "predicted", "posterior": "laplace"}', "posterior dropout and not laplace"),
    ],
)
def test_scores_of_other_models_or_options_are_refused(archive, tmp_path, name, value, words):
    scores = read_scores(str(archive))
    other = scores.table.replace_schema_metadata({**scores.table.schema.metadata, name: value})
    (tmp_path / "s").mkdir()
    pa.parquet.write_table(other, tmp_path / "s" / "part-000000.parquet")
    (tmp_path / "s" / "_run.json").write_text("{}")
    with pytest.raises(ConfigError, match=words):
        write_drift(DriftConfig(str(archive), str(tmp_path / "s"), str(tmp_path / "out")))


def test_groups_are_not_compared_by_what_made_them(archive, write_scores, tmp_path):
    """All images here are of women or of men, and the reference has as many of both."""
    sex = np.where(np.arange(400) % 2 == 0, "F", "M").astype(object)
    folders = [
        write_scores(tmp_path / name, np.random.default_rng(seed).normal(size=400), sex=sex)
        for seed, name in enumerate(("a", "b"))
    ]
    drift = write_drift(DriftConfig(str(folders[0]), str(folders[1]), str(tmp_path / "out"), by="sex"))
    assert {c.group for c in drift.comparisons} == {"F", "M", "unknown"} or {c.group for c in drift.comparisons} == {
        "F",
        "M",
    }
    assert "sex" not in {c.quantity for c in drift.comparisons}
    assert not drift.alarms


def test_a_column_that_nobody_has_is_refused(archive, tmp_path):
    with pytest.raises(ConfigError, match="--by week"):
        write_drift(DriftConfig(str(archive), str(archive), str(tmp_path / "out"), by="week"))
