"""Which images the report shows."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.explain import ZONES
from pneumo_ray.report.cases import UNKNOWN, choose, outcomes


def scores(prob: np.ndarray, label: np.ndarray, information: np.ndarray | None = None) -> Scores:
    table = pa.table(
        {
            "label": pa.array([None if value < 0 else value for value in label.tolist()], pa.int8()),
            "predicted": pa.array((prob >= 0.5).astype(np.int8)),
            "prob_mean": pa.array(prob),
            "mutual_information": pa.array(np.zeros(len(prob)) if information is None else information),
        }
    )
    return Scores(table, (1, 1), ZONES, 0.5, "pneumonia")


@pytest.fixture
def archive() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    prob = rng.random(1000)
    return prob, (rng.random(1000) < prob).astype(np.int64), rng.random(1000)


def test_outcomes_by_hand():
    found = outcomes(scores(np.array([0.2, 0.8, 0.2, 0.8, 0.8]), np.array([0, 0, 1, 1, -1])))
    assert found.tolist() == ["true negative", "false positive", "false negative", "true positive", UNKNOWN]


def test_the_largest_errors_of_both_kinds_come_first(archive):
    prob, label, information = archive
    chosen = choose(scores(prob, label, information), 100)
    residual = np.abs(label - prob)
    assert (residual[chosen.errors] > 0.5).all()
    assert (np.diff(residual[chosen.errors]) <= 0).all()
    assert sorted(chosen.errors.tolist()) == np.flatnonzero((prob >= 0.5) != (label == 1)).tolist()
    first = chosen.rows[:60]
    assert Counter(label[first].tolist()) == {0: 30, 1: 30}
    assert (np.diff(residual[first]) <= 0).all()
    for kind in (0, 1):
        assert residual[first[label[first] == kind]].min() >= np.sort(residual[label == kind])[-30]


def test_the_page_has_distinct_images_of_both_kinds(archive):
    prob, label, information = archive
    chosen = choose(scores(prob, label, information), 100)
    assert len(chosen.rows) == 100 == len(set(chosen.rows.tolist()))
    kinds = Counter(outcomes(scores(prob, label))[chosen.rows].tolist())
    assert min(kinds["true positive"], kinds["true negative"]) >= 10
    assert set(np.argsort(-information)[:20]) <= set(chosen.rows.tolist())


def test_small_archives_are_shown_whole(archive):
    prob, label, _ = archive
    few = scores(prob[:30], label[:30])
    assert sorted(choose(few, 300).rows.tolist()) == list(range(30))
    assert len(choose(few, 0).rows) == 0
    alone = choose(scores(np.array([0.9]), np.array([-1])), 10)
    assert (alone.rows.tolist(), alone.errors.tolist()) == ([0], [])
