"""The tables of a robustness run, from rows made by hand, held against scikit-learn."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from pneumo_ray.evaluate.robustness import SCHEMA, condition_rows, measure_conditions, summary_line
from pneumo_ray.evaluate.shortcuts import MetadataBaseline
from pneumo_ray.images.corruptions import AS_IT_IS, Condition
from pneumo_ray.records import json_of

N, THRESHOLD = 120, 0.4
NOISE = Condition("noise", 2)
NO_BASELINE = MetadataBaseline(None, None, 0, 0, 0, "why")


def rows(label: np.ndarray, prob: np.ndarray, condition: Condition, failed: tuple[int, ...] = ()) -> pa.Table:
    records = [
        {
            "image_id": f"{i}.jpg",
            "condition": condition.name,
            "severity": condition.severity,
            "status": "failed" if i in failed else "ok",
            "label": int(label[i]),
            "patient_id": f"p{i // 3}",
            "prob_mean": None if i in failed else float(prob[i]),
        }
        for i in range(len(label))
    ]
    return pa.Table.from_pylist(records, schema=SCHEMA)


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities of the images as they are, and worse ones; float32, as they are stored."""
    rng = np.random.default_rng(0)
    label = (rng.random(N) < 0.6).astype(int)
    good, bad = (1 / (1 + np.exp(-(spread * label + rng.normal(size=N) - 1))) for spread in (3, 1))
    return label, good.astype(np.float32), bad.astype(np.float32)


def test_conditions_are_measured_like_scikit_learn(drawn):
    label, good, bad = drawn
    plain, noisy = measure_conditions(
        pa.concat_tables([rows(label, bad, NOISE), rows(label, good, AS_IT_IS)]), THRESHOLD
    )
    assert (plain.condition, noisy.condition, noisy.severity) == ("as_it_is", "noise", 2)
    for record, prob in ((plain, good), (noisy, bad)):
        assert record.values.auc == pytest.approx(roc_auc_score(label, prob))
        assert record.values.recall == pytest.approx(recall_score(label, prob >= THRESHOLD))
        assert record.values.specificity == pytest.approx(recall_score(1 - label, prob < THRESHOLD))
        assert record.values.brier == pytest.approx(np.mean((prob - label) ** 2))
        for name, (low, high) in record.intervals.items():
            assert low <= record.values[name] <= high
    assert noisy.auc_difference == pytest.approx(roc_auc_score(label, bad) - roc_auc_score(label, good))
    assert noisy.auc_difference_interval[1] < 0
    assert noisy.decisions_changed == pytest.approx(np.mean((good >= THRESHOLD) != (bad >= THRESHOLD)))
    assert plain.auc_difference == plain.decisions_changed == 0
    assert plain.auc_difference_interval is None
    json.dumps([json_of(plain), json_of(noisy)], allow_nan=False)


def test_images_are_paired_by_name(drawn):
    label, good, bad = drawn
    order = np.random.default_rng(1).permutation(N)
    straight = [rows(label, good, AS_IT_IS), rows(label, bad, NOISE)]
    shuffled = [straight[0], straight[1].take(order)]
    first, second = (measure_conditions(pa.concat_tables(tables), THRESHOLD)[1] for tables in (straight, shuffled))
    assert first.decisions_changed == second.decisions_changed > 0


def test_failed_images_are_counted_apart(drawn):
    """Image 0 failed as it is, image 1 under noise: 118 are compared, 119 measured."""
    label, good, bad = drawn
    table = pa.concat_tables([rows(label, good, AS_IT_IS, (0,)), rows(label, bad, NOISE, (1,))])
    plain, noisy = measure_conditions(table, THRESHOLD)
    assert (plain.n, plain.failed, noisy.n, noisy.failed) == (N - 1, 1, N - 1, 1)
    assert noisy.values.auc == pytest.approx(roc_auc_score(np.delete(label, 1), np.delete(bad, 1)))
    both = slice(2, None)
    expected = roc_auc_score(label[both], bad[both]) - roc_auc_score(label[both], good[both])
    assert noisy.auc_difference == pytest.approx(expected)


@pytest.mark.parametrize("failed", [(), tuple(range(N))])
def test_one_class_or_none_is_undefined(drawn, failed):
    _, good, bad = drawn
    ill = np.ones(N, int)
    records = measure_conditions(
        pa.concat_tables([rows(ill, good, AS_IT_IS, failed), rows(ill, bad, NOISE, failed)]), 0.4
    )
    for record in records:
        assert record.values.auc is record.values.specificity is record.auc_difference is None
        assert (record.values.recall is None) == bool(failed)
    json.dumps([json_of(record) for record in records], allow_nan=False)
    assert len({len(row) for row in condition_rows(records)}) == 1
    assert summary_line(records, NO_BASELINE).startswith("AUC undefined on the unchanged images")


def test_the_spreadsheet_has_a_row_per_condition(drawn):
    label, good, bad = drawn
    records = measure_conditions(pa.concat_tables([rows(label, good, AS_IT_IS), rows(label, bad, NOISE)]), THRESHOLD)
    header, *found = condition_rows(records)
    assert len(found) == 2
    for record, row in zip(records, found, strict=True):
        cells = dict(zip(header, row, strict=True))
        assert cells["severity"] == record.severity
        assert cells["ece"] == record.values.ece
        assert (cells["brier_low"], cells["brier_high"]) == record.intervals["brier"]
        ends = record.auc_difference_interval or (None, None)
        assert (cells["auc_difference_low"], cells["auc_difference_high"]) == ends


def test_the_summary_names_the_worst_corruption(drawn):
    label, good, bad = drawn
    blind = rows(label, 1 - good, Condition("lungs_black"))
    tables = [rows(label, good, AS_IT_IS), rows(label, bad, NOISE), rows(label, good, Condition("blur", 1)), blind]
    line = summary_line(measure_conditions(pa.concat_tables(tables), THRESHOLD), MetadataBaseline(0.75, None, 9, 9, 0))
    assert f"{roc_auc_score(label, good):.3f} on the unchanged images" in line
    assert f"{roc_auc_score(label, bad):.3f} at worst (noise 2" in line
    assert f"{roc_auc_score(label, 1 - good):.3f} with the lungs black; 0.750 from metadata alone" in line


def test_the_tables_need_no_ray():
    code = "import sys; sys.modules['ray'] = None; import pneumo_ray.evaluate.robustness, pneumo_ray.evaluate.shortcuts"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
