"""Zone means by class and outcome, held against scipy, a bootstrap over patients and hand numbers."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.evaluate.zone_table import zone_table
from pneumo_ray.explain import ZONES
from pneumo_ray.records import json_of


def scores(
    zone: Any, label: Any, called: Any, patients: Any, explains: str = "pneumonia", target: Any = None
) -> Scores:
    """Scores with the activations [n, 6]; of [n] the first zone has them, the second twice as much, and so on."""
    zone = np.asarray(zone, np.float32)
    zone = np.outer(zone, np.arange(1, 7)) if zone.ndim == 1 else zone
    called = np.asarray(called)
    columns = {
        "label": pa.array(list(label), pa.int8()),
        "predicted": pa.array(called, pa.int8()),
        "target": pa.array(np.full(len(called), explains == "pneumonia") if target is None else target).cast(pa.int8()),
        "patient_id": list(patients),
    }
    columns |= {f"zone_mean_{name}": pa.array(zone[:, i], pa.float32()) for i, name in enumerate(ZONES)}
    return Scores(pa.table(columns), (1, 1), ZONES, 0.5, explains)


def found(table: list[dict[str, Any]], images: str, zone: str = ZONES[0]) -> dict[str, Any]:
    (record,) = [record for record in table if (record.images, record.zone) == (images, zone)]
    return record


def clustered(seed: int, num_patients: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Activations of one to four alike images a patient, and the patients."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 5, num_patients))
    return 5 + spread * rng.normal(size=num_patients)[patients] + 0.3 * rng.normal(size=len(patients)), patients


def test_means_by_class_and_outcome_by_hand() -> None:
    """Label 0, 0, 1, 1, 1 called 0, 1, 0, 1, 1 with activations 1, 3, 4, 6, 8."""
    table = zone_table(scores([1, 3, 4, 6, 8], [0, 0, 1, 1, 1], [0, 1, 0, 1, 1], "abcde"))
    assert len(table) == 6 * len(ZONES)
    expected = {"normal": (2, 2, 2), "pneumonia": (6, 3, 3), "true negative": (1, 1, 1)}
    expected |= {"false positive": (3, 1, 1), "false negative": (4, 1, 1), "true positive": (7, 2, 2)}
    for name, (mean, n, patients) in expected.items():
        record = found(table, name)
        assert (record.mean, record.n, record.patients) == (mean, n, patients), name
        assert found(table, name, ZONES[5]).mean == 6 * mean, name
    assert found(table, "normal").std == pytest.approx(np.sqrt(2))
    assert {record.zones_of for record in table} == {"image"}
    assert found(table, "true negative").std is None
    assert found(table, "pneumonia").ratio == pytest.approx(3)
    assert {record.ratio for record in table if record.images != "pneumonia"} == {None}
    assert (table[0].zone, table[0].paper_zone) == ("right_upper", "Upper West")
    assert {record.explained_class for record in table} == {"pneumonia"}


def test_single_images_have_students_interval() -> None:
    values = np.random.default_rng(0).gamma(2, size=30).astype(np.float32)
    record = found(zone_table(scores(values, [0] * 30, [0] * 30, map(str, range(30)))), "normal")
    textbook = ttest_1samp(values.astype(float), 0).confidence_interval(0.95)
    assert (record.low, record.high) == (pytest.approx(textbook.low), pytest.approx(textbook.high))


def test_images_without_patient_count_as_patients() -> None:
    values = np.arange(1.0, 9)
    alone = zone_table(scores(values, [0] * 8, [0] * 8, [None] * 8))
    assert alone == zone_table(scores(values, [0] * 8, [0] * 8, map(str, range(8))))


def test_copies_under_one_patient_add_nothing() -> None:
    values, names = np.arange(1.0, 13) ** 2, [str(i) for i in range(12)]
    once = found(zone_table(scores(values, [0] * 12, [0] * 12, names)), "normal")
    copied = found(zone_table(scores(np.tile(values, 5), [0] * 60, [0] * 60, names * 5)), "normal")
    assert (copied.n, copied.patients) == (60, 12)
    assert (copied.low, copied.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_intervals_equal_a_patient_bootstrap() -> None:
    """Of the mean and of the ratio, where some patients have images of both classes."""
    values, patients = clustered(1, 300, spread=2.0)
    values = np.abs(values)
    label = np.random.default_rng(2).integers(0, 2, len(values))
    table = zone_table(scores(values, label, label, patients.astype(str)))
    rng = np.random.default_rng(3)
    sums = [np.bincount(patients, weights=(label == c) * values) for c in (0, 1)]
    counts = [np.bincount(patients, weights=label == c) for c in (0, 1)]
    times = rng.multinomial(300, np.full(300, 1 / 300), size=20_000)
    normal, ill = ((times @ s) / (times @ n) for s, n in zip(sums, counts, strict=True))
    record = found(table, "pneumonia")
    for measured, drawn in ((("low", "high"), ill), (("ratio_low", "ratio_high"), ill / normal)):
        low, high = np.quantile(drawn, [0.025, 0.975])
        width = high - low
        assert [getattr(record, name) for name in measured] == pytest.approx([low, high], abs=0.05 * width)


def test_intervals_have_their_nominal_coverage() -> None:
    """420 means over 40 patients; three binomial sd are 3.2 points. Taken as independent, images cover far less."""
    covered = {"by patient": 0, "by image": 0}
    rng = np.random.default_rng(7)
    for _ in range(70):
        patients = np.repeat(np.arange(40), rng.integers(1, 5, 40))
        values = 5 + rng.normal(size=(40, 6))[patients] + 0.3 * rng.normal(size=(len(patients), 6))
        for name, groups in (("by patient", patients.astype(str)), ("by image", [None] * len(values))):
            table = zone_table(scores(values, [1] * len(values), [1] * len(values), groups))
            covered[name] += sum(r.low <= 5 <= r.high for r in table if r.images == "pneumonia")
    assert 0.92 <= covered["by patient"] / 420 <= 0.98
    assert covered["by image"] / 420 < 0.85


def with_groups(given: Scores, groups: np.ndarray) -> Scores:
    """Scores with the zone means of each group of passes, [n, G, 6]."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(groups.ravel(), pa.float32()), groups.shape[1] * 6)
    return replace(given, table=given.table.append_column("zone_groups", flat))


def test_intervals_include_the_shared_error() -> None:
    """Masks move all images alike: 200 studies of 60 patients and 10 groups of passes, by their mean and their ratio."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 30)
    hits = {"mean": 0, "ratio": 0, "mean without": 0, "ratio without": 0}
    for _ in range(200):
        own = np.where(label == 1, 10.0, 5.0)[:, None] + rng.normal(0, 0.5, (60, 6))
        common = rng.normal(0, 1.0, (2, 10, 6))[label]  # [n, G, 6]: other in each class, the same in all its images
        groups = own[:, None] + common
        plain = scores(groups.mean(1), label, label, map(str, range(60)))
        for name, given in (("", with_groups(plain, groups)), (" without", plain)):
            record = found(zone_table(given), "pneumonia")
            hits[f"mean{name}"] += record.low <= 10 <= record.high
            hits[f"ratio{name}"] += record.ratio_low <= 2 <= record.ratio_high
            assert (record.monte_carlo_error is None) == (name == " without")
    assert 0.90 <= hits["mean"] / 200 <= 0.99
    assert 0.90 <= hits["ratio"] / 200 <= 0.99
    assert hits["mean without"] / 200 < 0.7
    assert hits["ratio without"] / 200 < 0.7


def test_the_common_error_by_hand() -> None:
    """Groups at 1 and 3 around each image: their variance is 2, and that of their mean 1."""
    groups = np.tile(np.array([-1.0, 1.0])[None, :, None], (4, 1, 6)) + np.arange(1.0, 5)[:, None, None]
    table = zone_table(with_groups(scores([1, 2, 3, 4], [0] * 4, [0] * 4, "abcd"), groups))
    record = found(table, "normal")
    assert record.monte_carlo_error == pytest.approx(1)
    over_patients = np.var([1, 2, 3, 4], ddof=1) / 4
    freedom = (over_patients + 1) ** 2 / (over_patients**2 / 3 + 1)
    half = student.ppf(0.975, freedom) * np.sqrt(over_patients + 1)
    assert (record.low, record.high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))


def test_a_ratio_that_every_patient_shares_is_certain() -> None:
    """Each patient's pneumonia is twice as active as their own normal image, however much patients differ."""
    base = np.array([1.0, 2, 4, 8, 16])
    table = zone_table(scores([*base, *(2 * base)], [0] * 5 + [1] * 5, [1] * 10, [*"abcde", *"abcde"]))
    record = found(table, "pneumonia")
    assert (record.ratio, record.ratio_low, record.ratio_high) == pytest.approx((2, 2, 2))


def test_what_is_undefined_is_none() -> None:
    table = zone_table(scores([0, 0, 5], [0, 0, 1], [0, 0, 1], "aab"))
    one_patient = found(table, "normal")
    assert (one_patient.mean, one_patient.low, one_patient.high) == (0, None, None)
    assert found(table, "pneumonia").ratio is None
    nobody = found(table, "false positive")
    assert (nobody.n, nobody.patients) == (0, 0)
    assert {nobody.mean, nobody.std, nobody.low, nobody.high, nobody.ratio} == {None}
    assert [json.loads(json.dumps(plain, allow_nan=False)) for plain in map(json_of, table)] == list(
        map(json_of, table)
    )


@pytest.mark.filterwarnings("error")
def test_unlabelled_and_blank_images_do_not_count() -> None:
    record = found(zone_table(scores([1, 3, 9, np.nan], [0, 0, None, 0], [0] * 4, "abcd")), "normal")
    assert (record.n, record.patients, record.mean) == (2, 2, 2)


def test_maps_of_the_prediction_have_no_classes() -> None:
    """The fifth image was called pneumonia, but its map explains normality: it was that near the threshold."""
    given = scores([1, 3, 4, 6, 100], [0, 0, 1, 1, 1], [0, 1, 0, 1, 1], "abcde", "predicted", target=[0, 1, 0, 1, 0])
    table = zone_table(given)
    explained = {record.images: record.explained_class for record in table}
    assert explained == {
        "true negative": "normal",
        "false positive": "pneumonia",
        "false negative": "normal",
        "true positive": "pneumonia",
    }
    assert (found(table, "true positive").mean, found(table, "true positive").n) == (6, 1)


def test_the_order_of_images_changes_nothing() -> None:
    values, patients = clustered(4, 50)
    label = np.random.default_rng(5).integers(0, 2, len(values))
    order = np.random.default_rng(6).permutation(len(values))
    one, other = (
        zone_table(scores(values[rows], label[rows], label[rows], patients[rows].astype(str)))
        for rows in (slice(None), order)
    )
    for a, b in zip(one, other, strict=True):
        assert {key: pytest.approx(value) for key, value in json_of(a).items()} == json_of(b)


def test_records_state_what_the_zones_divide() -> None:
    of_lungs = replace(scores([1, 2], [0, 1], [0, 1], "ab"), zone_mode="lungs")
    assert {record.zones_of for record in zone_table(of_lungs)} == {"lungs"}
