"""Which parts of the pictures are measured, which are only named, and which are left out with a reason."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.numbers import match
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.evaluate.subgroups import measure_subgroups
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
        return {(record["column"], record["value"]): record for record in records}

    return measure


def test_numbers_are_cut_into_quarters_and_what_is_unknown_is_a_group(groups, drawn):
    age = [None if i < 40 else float(i) for i in range(N)]
    found = groups(age=age)
    ages = {value: record for (column, value), record in found.items() if column == "age"}
    assert list(ages) == [
        "139.5 to below 189.25",
        "189.25 to 239",
        "40 to below 89.75",
        "89.75 to below 139.5",
        "unknown",
    ]
    assert [record["n"] for record in ages.values()] == [50, 50, 50, 50, 40]
    rows = np.arange(40, 90)
    prob = (1 / (1 + np.exp(-drawn[1] / 2.0))).astype(np.float32)
    expected = roc_auc_score(drawn[0][rows], prob[rows])
    assert ages["40 to below 89.75"]["values"]["auc"] == pytest.approx(expected)


def test_a_column_that_is_no_grouping_is_left_out_with_the_reason(groups):
    found = groups(note=[f"word {i}" for i in range(N)], site=["one"] * N)
    assert "240 different values" in found["note", None]["left_out"]
    assert "same value" in found["site", None]["left_out"]


def test_the_shared_normals_do_not_make_a_rare_subtype_measurable(groups, drawn):
    positives = np.flatnonzero(drawn[0] == 1)
    subtype = ["normal"] * N
    for number, i in enumerate(positives):
        subtype[i] = "rare" if number < 19 else "common"
    found = groups(subtype)
    assert "values" not in found["subtype", "rare against all normals"]
    assert found["subtype", "rare against all normals"]["pneumonia"] == 19
    assert found["subtype", "common against all normals"]["values"]["auc"] is not None


def test_of_a_class_with_few_pictures_nothing_is_said(groups, drawn):
    side = np.where(drawn[0] == 1, "a", "b").astype(object)
    side[np.flatnonzero(drawn[0] == 0)[:9]] = "a"
    found = groups(side=side.tolist())["side", "a"]
    assert (found["normal"], found["values"]["specificity"], found["intervals"]["auc"]) == (9, None, None)
    assert found["values"]["recall"] is not None


def test_a_column_named_like_one_of_the_scores_is_refused(groups):
    with pytest.raises(ManifestError, match="column logit of m"):
        groups(logit=["x", "y"] * (N // 2))


def test_scores_that_lack_pictures_or_have_them_twice_are_refused(drawn, write_scores, write_truth, tmp_path):
    label, logit = drawn
    truth = str(write_truth(tmp_path / "m.parquet", label))
    part = write_scores(tmp_path / "part", logit[:200])
    with pytest.raises(
        ManifestError, match=r"40 of 240 pictures of the split test .* have no scores, such as '200.jpg'"
    ):
        write_evaluation(EvaluateConfig(truth, str(tmp_path / "out"), str(part)))
    twice = write_scores(tmp_path / "twice", logit)
    (twice / "part-000001.parquet").write_bytes((twice / "part-000000.parquet").read_bytes())
    with pytest.raises(ManifestError, match=r"241 picture.s. more than once"):
        write_evaluation(EvaluateConfig(truth, str(tmp_path / "out"), str(twice)))


@pytest.mark.parametrize(
    ("column", "value"), [("prob_mean", 1.5), ("prob_std", np.inf), ("mutual_information", np.nan)]
)
def test_numbers_that_no_metric_can_take_are_refused(drawn, write_scores, write_truth, tmp_path, column, value):
    bad = np.where(np.arange(N) < 3, value, 0.5).astype(np.float32)
    scores = write_scores(tmp_path / "s", drawn[1], **{column: bad})
    truth = write_truth(tmp_path / "m.parquet", drawn[0])
    with pytest.raises(ManifestError, match=f"3 scored picture.s. have no usable {column}"):
        write_evaluation(EvaluateConfig(str(truth), str(tmp_path / "out"), str(scores)))
