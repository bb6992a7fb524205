"""Which parts of the images are measured, which are only named, and which are left out with a reason."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.matching import match
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.evaluate.subgroups import groups_of_column, measure_subgroups
from pneumo_ray.report.job import write_evaluation

N = 240


@pytest.fixture
def groups(drawn, write_scores, write_truth, tmp_path):
    """Measure the subgroups of the archive with some columns more; a group by column and value."""

    def measure(subtype: list[str] | None = None, **columns) -> dict:
        path = write_truth(tmp_path / "m.parquet", drawn[0], **columns)
        table = read_manifest(str(path))
        if subtype is not None:
            index = table.column_names.index("subtype")
            table = table.set_column(index, "subtype", [[*subtype, None]])
        labelled = match(read_scores(str(write_scores(tmp_path / "s", drawn[1]))), table, "m").labelled()
        label = labelled.table["label"].to_numpy().astype(np.int64)
        records = measure_subgroups(labelled, label, labelled.numbers("prob_mean"), 0)
        return {(record.column, record.value): record for record in records}

    return measure


def test_numbers_become_quarters_and_unknown_a_group(groups, drawn):
    age = [None if i < 40 else float(i) for i in range(N)]
    found = groups(age=age)
    ages = {value: record for (column, value), record in found.items() if column == "age"}
    assert list(ages) == [
        "unknown",
        "40 to below 89.75",
        "89.75 to below 139.5",
        "139.5 to below 189.25",
        "189.25 to 239",
    ]
    assert [record.n for record in ages.values()] == [40, 50, 50, 50, 50]
    rows = np.arange(40, 90)
    prob = (1 / (1 + np.exp(-drawn[1] / 2.0))).astype(np.float32)
    expected = roc_auc_score(drawn[0][rows], prob[rows])
    assert ages["40 to below 89.75"].measured.values.auc == pytest.approx(expected)


def test_dates_of_one_month_are_four_groups(groups):
    """Dates as numbers differ in the seventh digit."""
    days = [20240101 + i % 31 for i in range(N)]
    found = {value: record for (column, value), record in groups(taken=days).items() if column == "taken"}
    assert len(found) == 4
    assert sum(record.n for record in found.values()) == N
    assert next(iter(found)).startswith("20240101 to below 2024010")
    assert list(found)[-1].endswith(" to 20240131")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000), offset=st.sampled_from([0, 1e6, 2e7, 1e12]), spread=st.sampled_from([0.1, 1, 40, 1e5])
)
def test_every_number_lies_within_its_printed_quarter(seed, offset, spread):
    values = (offset + spread * np.random.default_rng(seed).normal(size=80)).round(4)
    names, which = groups_of_column(pa.array([*values, None, float("nan")]))
    assert which[-2:].tolist() == [0, 0]
    assert names[0] == "unknown"
    assert len(set(names)) == len(names)
    for value, number in zip(values, which, strict=False):
        low, high = names[number].replace("below ", "").split(" to ")
        assert number > 0
        tolerance = 1e-5 * max(abs(value), 1) if number in (1, len(names) - 1) else 0
        assert float(low) - tolerance <= value <= float(high) + tolerance


def test_what_is_not_a_number_is_unknown(groups):
    """NaN is neither a value nor a group of its own, however many there are."""
    dose = [(1.0, 2.0, float("nan"), None, 10.0, float("inf"))[i % 6] for i in range(N)]
    found = {value: record.n for (column, value), record in groups(dose=dose).items() if column == "dose"}
    assert found == {"unknown": 120, "1.0": 40, "2.0": 40, "10.0": 40}
    assert list(found) == ["unknown", "1.0", "2.0", "10.0"]
    empty = groups(dose=[float("nan")] * N)["dose", None]
    assert empty.left_out == "it is empty"


def test_the_word_unknown_and_null_are_one_group(groups):
    site = [("a", "unknown", None, "b")[i % 4] for i in range(N)]
    found = {value: record.n for (column, value), record in groups(site=site).items() if column == "site"}
    assert found == {"unknown": 120, "a": 60, "b": 60}


def test_other_columns_are_left_out_with_reason(groups):
    found = groups(note=[f"word {i}" for i in range(N)], site=["one"] * N)
    assert "240 different values" in found["note", None].left_out
    assert "same value" in found["site", None].left_out


def test_shared_normals_keep_rare_subtypes_unmeasured(groups, drawn):
    positives = np.flatnonzero(drawn[0] == 1)
    subtype = ["normal"] * N
    for number, i in enumerate(positives):
        subtype[i] = "rare" if number < 14 else "common"
    found = groups(subtype)
    assert found["subtype", "rare against all normals"].measured is None
    assert found["subtype", "rare against all normals"].pneumonia == 14
    assert found["subtype", "rare against all normals"].patients < 15
    assert found["subtype", "common against all normals"].measured.values.auc is not None


def test_classes_of_few_images_are_unmeasured(groups, drawn):
    side = np.where(drawn[0] == 1, "a", "b").astype(object)
    side[np.flatnonzero(drawn[0] == 0)[:9]] = "a"
    found = groups(side=side.tolist())["side", "a"]
    assert (found.normal, found.measured.values.specificity, found.measured.intervals["auc"]) == (9, None, None)
    assert found.measured.values.recall is not None


def test_columns_of_the_scores_are_reserved(groups):
    with pytest.raises(ManifestError, match="column logit of m"):
        groups(logit=["x", "y"] * (N // 2))


def test_missing_and_repeated_scores_are_refused(drawn, write_scores, write_truth, tmp_path):
    label, logit = drawn
    truth = str(write_truth(tmp_path / "m.parquet", label))
    part = write_scores(tmp_path / "part", logit[:200])
    with pytest.raises(ManifestError, match=r"40 of 240 images of the split test .* have no scores, such as '200.jpg'"):
        write_evaluation(EvaluateConfig(truth, str(tmp_path / "out"), str(part)))
    twice = write_scores(tmp_path / "twice", logit)
    (twice / "part-000001.parquet").write_bytes((twice / "part-000000.parquet").read_bytes())
    with pytest.raises(ManifestError, match=r"241 image.s. more than once"):
        write_evaluation(EvaluateConfig(truth, str(tmp_path / "out"), str(twice)))


@pytest.mark.parametrize(
    ("column", "value"), [("prob_mean", 1.5), ("prob_std", np.inf), ("mutual_information", np.nan)]
)
def test_numbers_that_no_metric_can_take_are_refused(drawn, write_scores, write_truth, tmp_path, column, value):
    bad = np.where(np.arange(N) < 3, value, 0.5).astype(np.float32)
    scores = write_scores(tmp_path / "s", drawn[1], **{column: bad})
    truth = write_truth(tmp_path / "m.parquet", drawn[0])
    with pytest.raises(ManifestError, match=f"3 scored image.s. have an invalid {column}"):
        write_evaluation(EvaluateConfig(str(truth), str(tmp_path / "out"), str(scores)))
