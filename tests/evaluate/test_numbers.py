"""An evaluation from files to files, held against scikit-learn and hand computations."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics

from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.evaluation import Evaluation
from pneumo_ray.evaluate.metrics import metrics_from_confusion
from pneumo_ray.evaluate.numbers import predictive_values
from pneumo_ray.records import json_of
from pneumo_ray.report.job import write_evaluation
from pneumo_ray.score.schema import ScoreFacts

N = 240
THRESHOLD, TEMPERATURE = 0.4, 2.0


@pytest.fixture
def evaluated(drawn, write_scores, write_truth, tmp_path) -> tuple[Evaluation, Path]:
    label, logit = drawn
    age = np.where(np.arange(N) < 10, "infant", "child").tolist()
    config = EvaluateConfig(
        scores=str(write_scores(tmp_path / "scores", logit)),
        manifest=str(write_truth(tmp_path / "m.parquet", label, age=age)),
        out=str(tmp_path / "out"),
        prevalence=0.1,
        report=False,
    )
    return write_evaluation(config), tmp_path / "out"


def test_the_metrics_are_those_of_scikit_learn(evaluated, drawn):
    label, logit = drawn
    prob = (1 / (1 + np.exp(-logit / TEMPERATURE))).astype(np.float32).astype(float)
    points = evaluated[0].measured.metrics
    for point, threshold in ((points.stored, THRESHOLD), (points.half, 0.5)):
        values = point.values
        called = prob >= threshold
        assert values.accuracy == pytest.approx(metrics.accuracy_score(label, called))
        assert values.precision == pytest.approx(metrics.precision_score(label, called))
        assert values.recall == pytest.approx(metrics.recall_score(label, called))
        assert values.specificity == pytest.approx(metrics.recall_score(label, called, pos_label=0))
        assert values.f1 == pytest.approx(metrics.f1_score(label, called))
        assert values.kappa == pytest.approx(metrics.cohen_kappa_score(label, called))
        assert values.mcc == pytest.approx(metrics.matthews_corrcoef(label, called))
        assert values.auc == pytest.approx(metrics.roc_auc_score(label, prob))
        assert values.average_precision == pytest.approx(metrics.average_precision_score(label, prob))
        assert values.brier == pytest.approx(metrics.brier_score_loss(label, prob))
        low, high = point.intervals["auc"]
        assert low < values.auc < high


def test_calibration_is_measured_before_and_after_the_temperature(evaluated, drawn):
    label, logit = drawn
    before = metrics.brier_score_loss(label, 1 / (1 + np.exp(-logit)))
    found = evaluated[0].measured
    assert found.calibration["before_temperature"].brier == pytest.approx(before, abs=1e-6)
    after = found.calibration["after_temperature"].brier
    assert after == pytest.approx(found.metrics.half.values.brier, abs=1e-6)


def test_subtypes_are_measured_against_all_normals(evaluated, drawn):
    label, _ = drawn
    groups = {(group.column, group.value): group for group in evaluated[0].measured.subgroups}
    virus = groups["subtype", "virus against all normals"]
    assert virus.n == (label == 0).sum() + ((label == 1) & (np.arange(N) % 2 == 1)).sum()
    assert virus.measured.values.tn == evaluated[0].measured.metrics.stored.values.tn
    assert json_of(groups["age", "infant"]) == {
        "column": "age",
        "value": "infant",
        "n": 10,
        "normal": int((label[:10] == 0).sum()),
        "pneumonia": int((label[:10] == 1).sum()),
        "patients": 5,
    }
    assert groups["age", "child"].measured.values.n == N - 10


def test_predictive_values_by_hand():
    """Sensitivity 0.9 and specificity 0.8 at a prevalence of 0.1: 0.09 / (0.09 + 0.18) and 0.72 / (0.72 + 0.01)."""
    metrics = metrics_from_confusion(tn=8, fp=2, fn=1, tp=9)
    found = predictive_values(metrics, 0.1)
    assert (found.positive, found.negative) == (pytest.approx(1 / 3), pytest.approx(0.72 / 0.73))
    own = predictive_values(metrics, None)
    assert own.positive == pytest.approx(9 / 11)


def test_residuals_name_the_worst_errors(evaluated, drawn):
    label, logit = drawn
    worst = evaluated[0].measured.residuals.most_extreme
    negatives = np.flatnonzero(label == 0)
    assert worst["false_positives"][0].image_id == f"{negatives[np.argmax(logit[negatives])]}.jpg"
    positives = np.flatnonzero(label == 1)
    assert worst["false_negatives"][0].image_id == f"{positives[np.argmin(logit[positives])]}.jpg"


def test_the_tables_hold_the_same_numbers(evaluated):
    numbers, out = evaluated
    assert json.loads((out / "metrics.json").read_text()) == json_of(numbers)
    with open(out / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    (auc,) = [float(row["value"]) for row in rows if (row["operating_point"], row["metric"]) == ("stored", "auc")]
    assert auc == numbers.measured.metrics.stored.values.auc
    assert (out / "failures.csv").read_text().splitlines()[1:] == ["bad.jpg,read,empty: x"]
    with open(out / "zones.csv") as file:
        counts = {row["pictures"]: int(row["n"]) for row in csv.DictReader(file)}
    assert counts["normal"] == counts["true negative"] + counts["false positive"]
    assert counts["false positive"] == numbers.measured.metrics.stored.values.fp


def test_without_labels_the_labelled_parts_are_left_out(write_scores, write_truth, tmp_path):
    logit = np.linspace(-2, 2, 30)
    scores = write_scores(tmp_path / "s", logit)
    truth = write_truth(tmp_path / "m.parquet", np.full(30, -1), 30)
    numbers = write_evaluation(EvaluateConfig(str(truth), str(tmp_path / "out"), str(scores), report=False))
    assert numbers.measured is None
    assert not (tmp_path / "out" / "metrics.csv").exists()


@pytest.mark.parametrize("label", [[0], [1], [1] * 30, [0] * 30])
def test_one_class_or_image_leaves_none(write_scores, write_truth, tmp_path, label):
    scores = write_scores(tmp_path / "s", np.linspace(-3, 3, len(label)))
    truth = write_truth(tmp_path / "m.parquet", np.array(label), len(label))
    numbers = write_evaluation(EvaluateConfig(str(truth), str(tmp_path / "out"), str(scores), report=False))
    assert numbers.measured.metrics.stored.values.auc is None
    assert numbers.measured.metrics.stored.values.accuracy is not None


def test_mismatched_scores_and_manifests_are_refused(drawn, write_scores, write_truth, tmp_path):
    label, logit = drawn
    scores = str(write_scores(tmp_path / "s", logit))
    few = str(write_truth(tmp_path / "few.parquet", label[:100], 100))
    with pytest.raises(ManifestError, match="140 of 241"):
        write_evaluation(EvaluateConfig(few, str(tmp_path / "out"), scores))
    truth = str(write_truth(tmp_path / "m.parquet", label))
    with pytest.raises(ConfigError, match="split val"):
        write_evaluation(EvaluateConfig(truth, str(tmp_path / "out"), scores, split="val"))
    lost = np.where(np.arange(N) < 3, np.nan, 0.5).astype(np.float32)
    with pytest.raises(ManifestError, match="3 scored"):
        write_evaluation(
            EvaluateConfig(truth, str(tmp_path / "out"), str(write_scores(tmp_path / "nan", logit, prob_mean=lost)))
        )
    other = ScoreFacts((2, 2), "other", "c", 0.5, 1.0, {"target": "pneumonia"})
    pq.write_table(other.table(["x"], [("read", "x: y")], {}), tmp_path / "s" / "part-000001.parquet")
    with pytest.raises(ManifestError, match="mixes"):
        write_evaluation(EvaluateConfig(truth, str(tmp_path / "out"), scores))
    assert not (tmp_path / "out").exists()


def test_an_evaluation_needs_no_ray():
    code = "import sys; sys.modules['ray'] = None; import pneumo_ray.report.job"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
