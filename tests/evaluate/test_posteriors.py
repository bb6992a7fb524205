"""Comparison of posteriors on drawn scores whose uncertainty is known to help, or not to."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.map_reliability import map_reliability, mean_by_patient, rank_correlations
from pneumo_ray.evaluate.posteriors import compare_posteriors
from pneumo_ray.evaluate.robustness import NUMBERS, SCHEMA
from pneumo_ray.evaluate.scored import Scored, titles
from pneumo_ray.evaluate.scores import Scores, read_scores
from pneumo_ray.evaluate.uncertainty import WITHOUT_PASSES
from pneumo_ray.records import json_of
from pneumo_ray.report.job import write_evaluation
from pneumo_ray.report.posteriors import csv_rows, posterior_tables, scores_elsewhere

N, THRESHOLD, TEMPERATURE = 240, 0.4, 2.0


def run(
    model: str = "m", passes: int | str = 20, posterior: str | None = "dropout", members: int = 1, **config
) -> dict:
    facts: dict = {"config": {"passes": passes, "posterior": posterior, **config}, "model": {"hash": model}}
    if members > 1:
        facts["model"]["members"] = [f"x{number}" for number in range(members)]
    return facts


@pytest.fixture
def make(write_scores, tmp_path, drawn) -> Callable[..., Scores]:
    """Read scores of the drawn images, joined with label and patient (two images each)."""

    def made(name: str, logit: np.ndarray | None = None, **changes: np.ndarray) -> Scores:
        label, own = drawn
        folder: Path = write_scores(tmp_path / name, own if logit is None else logit, **changes)
        scores = read_scores(str(folder)).ok()
        places = np.array([int(name.split(".")[0]) for name in scores.table["image_id"].to_pylist()])
        table = scores.table.append_column("label", pa.array(label[places], pa.int8()))
        table = table.append_column("patient_id", pa.array([f"p{place // 2}" for place in places]))
        return Scores(table, scores.map_size, scores.zones, scores.threshold, scores.target, temperature=TEMPERATURE)

    return made


def knowing(drawn, noise: float = 0.3) -> np.ndarray:
    """A deviation that knows the errors but for noise."""
    label, logit = drawn
    wrong = (1 / (1 + np.exp(-logit / TEMPERATURE)) >= THRESHOLD) != (label == 1)
    return (wrong + 1.0 + noise * np.random.default_rng(3).normal(size=N)).clip(0.01).astype(np.float32)


def test_the_posterior_that_knows_errors_wins(make, drawn):
    sets = [
        Scored.of("a", make("a"), run()),
        Scored.of("b", make("b", prob_std=knowing(drawn)), run(passes="exact", posterior="laplace")),
    ]
    found = compare_posteriors(sets)
    assert found.sentence.startswith("Use Laplace, exact: its prob_std finds errors better")
    best = next(one for one in found.records[1].found if one.uncertainty == "prob_std")
    assert best.above_baseline_interval is not None
    assert best.above_baseline_interval[0] > 0
    assert (found.images, found.patients, found.comparisons) == (N, N // 2, 10)


def test_random_uncertainties_are_not_recommended(make):
    """Columns of noise find nothing, however many there are."""
    sets = [Scored.of(name, make(name), run()) for name in "ab"]
    found = compare_posteriors(sets)
    assert found.sentence.startswith("Use none of these posteriors to find errors")
    plain = [one.above_baseline for one in found.records[0].found if one.uncertainty in WITHOUT_PASSES]
    assert plain == [None, None]


def test_a_posterior_must_beat_both_plain_uncertainties(make, drawn):
    """Errors at p = 0.5, right answers at 0.05 and 0.95, and a threshold of 0.9: whoever beats the distance alone has won
    nothing, because it is smallest at 0.95.
    """
    label, _ = drawn
    sure = np.where(np.arange(N) % 5 == 0, 0.0, 6.0 * (2 * label - 1))
    scores = replace(make("a", sure + 1e-3 * np.arange(N) / N, prob_std=knowing(drawn)), threshold=0.9)
    record = compare_posteriors([Scored.of(name, scores, run(model=name)) for name in "ab"]).records[0]
    found = {one.uncertainty: one for one in record.found}
    certain, distant = (found[name].auroc for name in WITHOUT_PASSES)
    assert certain > 0.9
    assert distant < 0.6
    assert found["prob_std"].above_baseline == pytest.approx(found["prob_std"].auroc - certain, abs=1e-6)


def test_better_probabilities_are_named_where_no_uncertainty_helps(make, drawn):
    label, logit = drawn
    sharper = logit + 4 * (2 * label - 1)
    sets = [
        Scored.of("a", make("a"), run()),
        Scored.of("b", make("b", sharper), run(members=5)),
    ]
    found = compare_posteriors(sets)
    assert "Use ensemble of 5, dropout, 20 passes for its probabilities" in found.sentence


def test_the_order_of_rows_changes_nothing(make, drawn):
    first, second = make("a"), make("b", prob_std=knowing(drawn))
    order = pa.array(np.random.default_rng(0).permutation(N))
    one = compare_posteriors([Scored.of("a", first, run()), Scored.of("b", second, run())])
    other = compare_posteriors([Scored.of("a", first.taken(order), run()), Scored.of("b", second, run())])
    assert one == other


def test_only_images_that_all_have_are_compared(make):
    first, second = make("a"), make("b")
    half = second.where(pc.less(pc.binary_length(second.table["image_id"]), 7))
    found = compare_posteriors([Scored.of("a", first, run()), Scored.of("b", half, run())])
    assert found.images == len(half.table) == 100
    none = second.where(pc.equal(second.table["image_id"], "absent"))
    with pytest.raises(ManifestError, match="no labelled image in common"):
        compare_posteriors([Scored.of("a", first, run()), Scored.of("b", none, run())])


def test_an_uncertainty_that_grows_elsewhere_says_so(make):
    """Deviations of 2 to 3 beside 0 to 1 are told apart without an error; equal ones are at chance."""
    here = make("a")
    there = make("b", prob_std=2 + np.random.default_rng(4).random(N).astype(np.float32))
    found = compare_posteriors([Scored.of("a", here, run())], [Scored.of("b", there, run())])
    (shift,) = found.records[0].shifts
    assert shift.auroc["prob_std"] == 1.0
    assert shift.auroc["logit_std"] == pytest.approx(0.5)  # the same numbers in both
    assert shift.interval["prob_std"][0] > 0.9
    assert shift.auroc["1 - max(p, 1 - p)"] == pytest.approx(0.5)
    with pytest.raises(ManifestError, match="the scores c are of none of the models"):
        compare_posteriors([Scored.of("a", here, run())], [Scored.of("c", there, run(model="other"))])


def test_no_images_from_elsewhere_leave_the_shift_undefined(make):
    """An AUROC of 0 would say that every uncertainty is smaller there."""
    here, there = make("a"), make("b")
    none = there.where(pc.equal(there.table["image_id"], "absent"))
    found = compare_posteriors([Scored.of("a", here, run())], [Scored.of("b", none, run())])
    (shift,) = found.records[0].shifts
    assert shift.images == 0
    assert set(shift.auroc.values()) == set(shift.interval.values()) == {None}
    assert [row[5:8] for row in csv_rows(found) if "shift to" in row[4]] == len(shift.auroc) * [[None] * 3]


def test_corruptions_count_at_their_highest_severity(make, write_truth, drawn, tmp_path):
    """A robustness folder as jobs/robustness.py leaves it: noise of two grades, of which the second has a deviation of 2."""
    make("a")
    make("b")
    rng = np.random.default_rng(5)
    parts = []
    for condition, severity in (("as_it_is", 0), ("noise", 1), ("noise", 2)):
        columns = {name: rng.random(N).astype(np.float32) for name in NUMBERS}
        columns["prob_std"] = np.full(N, 2.0 if severity == 2 else 0.0, np.float32)
        columns |= {
            "image_id": [f"{i}.jpg" for i in range(N)],
            "condition": [condition] * N,
            "severity": [severity] * N,
        }
        columns |= {"status": ["ok"] * N, "patient_id": [f"p{i // 2}" for i in range(N)]}
        parts.append(
            pa.Table.from_pydict({name: columns.get(name, [None] * N) for name in SCHEMA.names}, schema=SCHEMA)
        )
    pq.write_table(pa.concat_tables(parts), tmp_path / "robustness.parquet")
    method = {"passes": 20, "posterior": "dropout"}
    facts = {"model_hash": "m", "threshold": 0.4, "temperature": 2.0, "intercept": 0.0, "method": method}
    (tmp_path / "robustness.json").write_text(json.dumps(facts))
    for name in "ab":
        (tmp_path / name / "_run.json").write_text(json.dumps(run()))
    manifest = str(write_truth(tmp_path / "manifest.parquet", drawn[0]))
    folders = {"scores": str(tmp_path / "a"), "posteriors": (str(tmp_path / "b"),), "shifted": (str(tmp_path),)}
    numbers = write_evaluation(EvaluateConfig(manifest, str(tmp_path / "out"), report=False, **folders))
    (shift,) = numbers.posteriors.records[0].shifts
    assert shift.where == "noise"
    assert shift.images == N
    assert shift.auroc["prob_std"] == 1.0
    assert "cam_std" not in shift.auroc
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())["posteriors"]
    assert written == json_of(numbers.posteriors)
    assert (tmp_path / "out" / "posteriors.csv").exists()


def test_rank_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 3, 4)), rng.integers(0, 4, (5, 3, 4)).astype(float)
    b[4] = 1.0
    found = rank_correlations(a, b)
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a[:4], b[:4], strict=True)]
    assert found[:4] == pytest.approx(expected)
    assert np.isnan(found[4])


def test_cells_without_evidence_count_as_equal():
    """Of what is below a thousandth of an image's maximum the order is nothing to predict."""
    a = np.array([[[1.0, 0.5, 3e-4, 2e-4]]])
    assert rank_correlations(a, np.array([[[9.0, 5.0, 0.0, 0.0]]])) == pytest.approx(1.0)
    assert rank_correlations(a, np.array([[[9.0, 5.0, 0.0, 1.0]]])) == pytest.approx(
        spearmanr([1.0, 0.5, 0.0, 0.0], [9.0, 5.0, 0.0, 1.0]).statistic
    )


def test_a_deviation_that_orders_the_differences_is_reliable():
    rng = np.random.default_rng(1)
    one, other, mean = rng.random((3, 60, 3, 3)).astype(np.float32)
    patients = [f"p{i // 2}" for i in range(60)]
    found = map_reliability(3 * np.abs(one - other), mean, one, other, patients)
    assert found.of_std.value == pytest.approx(1.0)
    assert found.of_mean.value == pytest.approx(0.0, abs=0.15)
    assert found.above_mean.interval is not None
    assert found.above_mean.interval[0] > 0.5


def test_where_evidence_is_tells_nothing_within():
    """A deviation that is drawn at random where there is evidence, and 0 elsewhere."""
    one, other, noise = np.random.default_rng(6).uniform(0.5, 1, (3, 60, 4, 4)).astype(np.float32)
    for values in (one, other, noise):
        values[:, :, 2:] = 0
    patients = [str(i) for i in range(60)]
    blind = map_reliability(noise, one, one, other, patients)
    assert blind.of_std.value > 0.7
    assert blind.within_evidence.value == pytest.approx(0, abs=0.15)
    assert map_reliability(np.abs(one - other), one, one, other, patients).within_evidence.value == pytest.approx(1.0)


def test_patient_means_have_cluster_robust_intervals():
    """With one image per patient it is the interval of a mean by Student's t."""
    values = np.random.default_rng(2).normal(0.3, 0.1, 40)
    found = mean_by_patient(np.append(values, np.nan), [*map(str, range(40)), None])
    assert found.n == 40
    assert found.value == pytest.approx(values.mean())
    reach = (found.interval[1] - found.interval[0]) / 2
    assert reach == pytest.approx(2.02 * values.std(ddof=1) / 40**0.5, rel=0.02)
    assert mean_by_patient(values[:10], [str(i) for i in range(10)]).interval is None


def test_maps_of_the_predicted_class_are_not_compared(make):
    scores = make("a")
    mixed = Scores(scores.table, scores.map_size, scores.zones, scores.threshold, "predicted", temperature=2.0)
    three = [Scored.of(name, mixed, run(model=name)) for name in "abc"]
    with pytest.raises(ManifestError, match="--target pneumonia"):
        compare_posteriors(three[:1], seeds=three[1:])


def test_an_ensemble_does_not_predict_its_own_members(make):
    """The spread between two members contains their difference, so that a correlation with it would say nothing."""
    seeds = [Scored.of(name, make(name), run(model=name)) for name in ("x1", "y")]
    sets = [Scored.of("a", make("a"), run()), Scored.of("b", make("b"), run(model="e", members=3))]
    found = compare_posteriors(sets, seeds=seeds)
    assert [(record.maps is None, record.maps_left_out) for record in found.records] == [(False, False), (True, True)]
    tables = posterior_tables(found)
    assert len(tables["posterior_map_rows"]) == 1
    assert tables["posterior_maps_about"].endswith("ensemble of 3, dropout, 20 passes.")


def test_passes_are_held_against_their_closed_forms(make):
    """Deviations that are a tenth too large have a relative error of 0.1, in whatever unit."""
    exact = make("e")
    names = ("logit_std", *(f"zone_std_{zone}" for zone in exact.zones))
    tenth = {name: (1.1 * exact.numbers(name)).astype(np.float32) for name in names}
    table = exact.table
    for name, values in tenth.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    sampled = replace(exact, table=table)
    sets = [
        Scored.of("s", sampled, run()),
        Scored.of("e", exact, run(passes="exact")),
        Scored.of("l", exact, run(posterior="laplace")),
        Scored.of("o", exact, run(model="other")),
    ]
    errors = [record.sampling for record in compare_posteriors(sets).records]
    assert errors[1:] == [None, None, None]
    assert errors[0].logit == pytest.approx(0.1, rel=1e-5)
    assert errors[0].zone == pytest.approx(0.1, rel=1e-5)
    assert errors[0].cell == 0.0


def test_sets_of_one_title_name_their_folder(make):
    sets = [Scored.of(f"/long/way/{name}/scores/", make("a"), run()) for name in "ab"]
    assert titles(sets) == ["dropout, 20 passes (a/scores)", "dropout, 20 passes (b/scores)"]
    assert titles([sets[0], Scored.of("l", make("a"), run(posterior="laplace"))])[0] == "dropout, 20 passes"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"manifest": "/there/nih/manifest.parquet", "archive": []}, "nih"),
        ({"manifest": "other.parquet"}, "other.parquet"),
        ({"archive": ["/there/photos/", "s3://bucket/a/b.tar"]}, "there/photos, a/b.tar"),
        ({"archive": ["dicomweb+https://host/dicom-web?PatientName=Doe"]}, "host/dicom-web"),
        ({}, "folder"),
    ],
)
def test_images_from_elsewhere_have_a_short_name(make, config, name):
    assert Scored.of("folder", make("a"), run(**config)).images == name


def test_patients_elsewhere_are_of_their_manifest(make, write_truth, drawn, tmp_path):
    """Scores know no patients; without a manifest that can be read every image counts as one."""
    make("there")
    manifest = write_truth(tmp_path / "manifest.parquet", drawn[0])
    for known in (str(manifest), None, str(tmp_path / "gone.parquet")):
        (tmp_path / "there" / "_run.json").write_text(json.dumps(run(manifest=known)))
        (found,) = scores_elsewhere(str(tmp_path / "there"))
        named = "patient_id" in found.scores.table.column_names
        assert named == (known == str(manifest))
    assert pq.read_table(manifest)["patient_id"].to_pylist()[:3] == ["p0", "p0", "p1"]


def test_every_number_has_a_row(make):
    sets = [Scored.of(name, make(name), run(passes=passes)) for name, passes in (("a", "exact"), ("b", 20))]
    seeds = [Scored.of(name, make(name), run(model=name)) for name in "xy"]
    found = compare_posteriors(sets, [Scored.of(one.name, one.scores, run(passes=one.passes)) for one in sets], seeds)
    rows = csv_rows(found)
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 1 + 2 * (3 + 7 + 7 + 4) + 3
    tables = posterior_tables(found)
    kinds = ("", "error_", "shift_", "map_", "sampling_")
    assert [len(tables[f"posterior_{kind}rows"]) for kind in kinds] == [2, 14, 2, 2, 1]
    assert {len(row) for row in tables["posterior_shift_rows"]} == {len(tables["posterior_shift_heads"])} == {9}


def test_options_of_the_comparison_need_each_other():
    with pytest.raises(ConfigError, match="give --posteriors as well"):
        EvaluateConfig("m", "o", "s", shifted=("x",))
    with pytest.raises(ConfigError, match="takes two sets of scores, got 1"):
        EvaluateConfig("m", "o", "s", posteriors=("x",), other_seeds=("y",))
