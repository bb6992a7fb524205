"""The comparison of simulated readers whose skill is known, and the answers that it must leave out."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from pneumo_ray.errors import ManifestError
from pneumo_ray.readers.comparison import Comparison, Facts, compare_readers
from pneumo_ray.readers.readings import SCHEMA, Readings

N = 300
SKILL = {"Ann": 0.95, "Bo": 0.9, "Cy": 0.7}
START = datetime(2026, 1, 1, tzinfo=UTC)


def readings_of(rows: list[dict]) -> Readings:
    return Readings(pa.Table.from_pylist(rows, schema=SCHEMA))


def rows_of(truth: np.ndarray, seed: int = 0) -> list[dict]:
    """Return answers of readers who are right with the probability of their skill; every tenth image is read again."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, label in enumerate(truth):
        for reader, skill in SKILL.items():
            for again in range(2 if number % 10 == 0 else 1):
                rows.append(
                    {
                        "image_id": f"{number}.jpg",
                        "reader": reader,
                        "label": int(label if rng.random() < skill else 1 - label),
                        "seconds": 4.0 + number % 3,
                        "blinded": True,
                        "at": START + timedelta(minutes=number, days=again),
                    }
                )
    return rows


def facts(truth: np.ndarray, **changes) -> Facts:
    rng = np.random.default_rng(1)
    known = {
        "image_ids": tuple(f"{number}.jpg" for number in range(len(truth))),
        "patients": [f"p{number // 2}" for number in range(len(truth))],
        "groups": {"subtype": ["virus" if label else "normal" for label in truth]},
        "prob": np.clip(0.5 + 0.3 * (truth - 0.5) + 0.15 * rng.normal(size=len(truth)), 0.01, 0.99),
    }
    return Facts(**known | changes)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return (np.random.default_rng(2).random(N) < 0.5).astype(int)


@pytest.fixture(scope="module")
def found(truth) -> Comparison:
    return compare_readers(readings_of(rows_of(truth)), facts(truth))


def test_the_counts_are_those_of_the_readings(found):
    assert (found.images, found.patients, found.answers) == (N, N // 2, 3 * N)
    assert [reader.reader for reader in found.readers] == ["Ann", "Bo", "Cy"]
    assert {reader.median_seconds for reader in found.readers} == {5.0}
    assert len(found.pairs) == 3
    assert found.fleiss.images == found.krippendorff.images == N


def test_better_readers_agree_more(found):
    """Two readers who are right with p and q agree with pq + (1 - p)(1 - q)."""
    for pair in found.pairs:
        p, q = (SKILL[reader] for reader in pair.readers)
        low, high = pair.agreement.observed.interval
        assert low < p * q + (1 - p) * (1 - q) < high
    for row in found.repeated:
        skill = SKILL[row.reader]
        assert row.agreement.images == N // 10
        assert row.agreement.observed.value == pytest.approx(skill**2 + (1 - skill) ** 2, abs=0.2)


def test_the_first_answer_counts(truth):
    rows = [row for row in rows_of(truth) if row["at"] < START + timedelta(days=1)]
    late = [row | {"label": 1 - row["label"], "at": row["at"] + timedelta(days=9)} for row in rows]
    found = compare_readers(readings_of([*late, *rows]), facts(truth))
    alone = compare_readers(readings_of(rows), facts(truth))
    assert found.pairs == alone.pairs
    assert found.repeated[0].agreement.observed.value == 0


def test_the_model_is_measured_against_each_reader(found, truth):
    rows = rows_of(truth)
    prob = facts(truth).prob
    answers = {row["image_id"]: row["label"] for row in reversed(rows) if row["reader"] == "Bo"}
    bo = np.array([answers[f"{number}.jpg"] for number in range(N)])
    (row,) = (row for row in found.model if row.truth == "Bo")
    assert row.auc.value == pytest.approx(roc_auc_score(bo, prob), abs=1e-12)
    assert row.kappa.value == pytest.approx(cohen_kappa_score(bo, prob >= 0.5), abs=1e-12)
    assert [row.truth for row in found.model] == ["the majority of the readers", "Ann", "Bo", "Cy"]
    assert all(row.auc.interval[0] < row.auc.value < row.auc.interval[1] for row in found.model)
    assert [row.who for row in found.others] == ["Ann", "Bo", "Cy"]
    assert found.others[0].kappa.value > found.others[2].kappa.value


def test_unblinded_answers_do_not_judge_the_model(truth):
    rows = rows_of(truth)
    seen = [row | {"blinded": False} if row["reader"] == "Ann" else row for row in rows]
    found = compare_readers(readings_of(seen), facts(truth))
    assert [row.truth for row in found.model] == ["the majority of the readers", "Bo", "Cy"]
    assert found.readers[0].unblinded == N


def test_classes_are_compared_by_themselves(found, truth):
    normal, virus = found.groups
    assert (normal.value, virus.value) == ("normal", "virus")
    assert normal.agreement.images == np.count_nonzero(truth == 0)


def test_cannot_say_is_no_answer(truth):
    rows = [row | {"label": None} if row["reader"] == "Cy" else row for row in rows_of(truth)]
    found = compare_readers(readings_of(rows), facts(truth, prob=None))
    assert found.readers[2].cannot_say == N
    assert found.readers[2].positive_share is None
    assert len(found.pairs) == 1
    assert found.krippendorff.images == N
    assert found.fleiss.images == 0
    assert found.model == ()


def test_one_reader_is_refused(truth):
    rows = [row for row in rows_of(truth) if row["reader"] == "Ann"]
    with pytest.raises(ManifestError, match="one reader alone, 'Ann'"):
        compare_readers(readings_of(rows), facts(truth))


def test_readers_without_an_image_in_common_are_refused(truth):
    rows = [row for row in rows_of(truth) if (row["reader"] == "Ann") == (int(row["image_id"][:-4]) < 100)]
    rows = [row for row in rows if row["reader"] != "Cy"]
    with pytest.raises(ManifestError, match="images in common"):
        compare_readers(readings_of(rows), facts(truth))
