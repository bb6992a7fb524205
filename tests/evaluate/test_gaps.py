"""Gaps between subgroups against statsmodels' formula and by simulation."""

import numpy as np
import pytest
from scipy.stats import norm

from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.gaps import MeasuredGroup, measure_gaps
from pneumo_ray.report.job import write_evaluation


def group(value: str, patients: int, column: str = "sex", **measures) -> MeasuredGroup:
    return MeasuredGroup(
        column, value, patients, {k: v[0] for k, v in measures.items()}, {k: v[1] for k, v in measures.items()}
    )


def wilson(found: int, of: int) -> tuple[float, float]:
    z, p = norm.ppf(0.975), found / of
    centre, reach = p + z**2 / (2 * of), z * np.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    return (centre - reach) / (1 + z**2 / of), (centre + reach) / (1 + z**2 / of)


def test_the_gap_has_newcombes_interval():
    """Table II of Newcombe 1998, contrast a: 56/70 - 48/80, method 10 (Wilson): 0.0524 to 0.3339."""
    rows = [group("F", 70, recall=(56 / 70, wilson(56, 70))), group("M", 80, recall=(48 / 80, wilson(48, 80)))]
    (gap,) = measure_gaps(rows)
    assert (gap.value, gap.other) == ("F", "M")
    assert gap.gap == pytest.approx(0.2)
    assert (gap.low, gap.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_gaps_are_to_the_largest_group():
    ends = (0.8, (0.7, 0.9))
    rows = [group("a", 20, "site", auc=ends), group("b", 50, "site", auc=ends), group("c", 30, "site", auc=ends)]
    rows += [group("F", 40, auc=ends), group("M", 39, auc=ends)]
    assert [(gap.column, gap.value, gap.other) for gap in measure_gaps(rows)] == [
        ("site", "a", "b"), ("site", "c", "b"), ("sex", "M", "F"),
    ]  # fmt: skip


def test_subtypes_have_only_a_gap_in_sensitivity():
    ends = (0.8, (0.7, 0.9))
    rows = [
        group(v, n, "subtype", auc=ends, recall=ends, specificity=ends) for v, n in (("virus", 20), ("bacteria", 30))
    ]
    assert [gap.measure for gap in measure_gaps(rows)] == ["recall"]


def test_unknown_measures_have_no_gap():
    assert measure_gaps([group("F", 20, auc=(0.9, (0.8, 0.95))), group("M", 30, auc=(0.9, None))]) == []


def test_an_evaluation_reports_gaps(drawn, write_scores, write_truth, tmp_path):
    label, logit = drawn
    n = len(label)
    sex = np.where((np.arange(n) // 2) % 2 == 0, "F", "M")
    manifest = write_truth(tmp_path / "m.parquet", label, n=n, images=tmp_path / "files", sex=sex.tolist())
    numbers = write_evaluation(
        EvaluateConfig(
            manifest=str(manifest), scores=str(write_scores(tmp_path / "s", logit)), out=str(tmp_path / "out")
        )
    )
    assert numbers is not None
    rows = (tmp_path / "out" / "gaps.csv").read_text().splitlines()
    assert rows[0] == "column,value,other,measure,here,there,gap,low,high"
    assert [row.split(",")[3] for row in rows[1:] if row.startswith("sex")] == ["auc", "recall", "specificity"]
    assert "Gaps between groups" in (tmp_path / "out" / "report.html").read_text()
