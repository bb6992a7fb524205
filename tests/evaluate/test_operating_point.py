import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.operating_point import OperatingPoint, OperatingPointConfig, choose_operating_point

# A coarse grid makes ties and the ends 0 and 1 common; free floats make neighbours of every distance.
PROBABILITY = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.floats(0, 1))
ROWS = st.lists(st.tuples(PROBABILITY, st.integers(0, 1)), min_size=2, max_size=30).filter(
    lambda rows: {label for _, label in rows} == {0, 1}
)


def columns(rows: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    prob, labels = zip(*rows, strict=True)
    return np.array(prob), np.array(labels)


def all_thresholds(prob: np.ndarray) -> list[float]:
    """One threshold for every possible decision: at each distinct value, and above them all."""
    return [*np.unique(prob), np.inf]


def rates(prob: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    called = prob >= threshold
    return called[labels == 1].mean(), (~called)[labels == 0].mean()


@settings(deadline=None, max_examples=100)
@given(rows=ROWS, rule=st.sampled_from(["youden", "sensitivity", "cost"]))
def test_the_threshold_is_a_midpoint(rows: list[tuple[float, int]], rule: Any) -> None:
    prob, labels = columns(rows)
    point = choose_operating_point(prob, labels, OperatingPointConfig(rule=rule))
    assert (point.sensitivity, point.specificity) == rates(prob, labels, point.threshold)
    assert (point.num_positive, point.num_negative) == (labels.sum(), (1 - labels).sum())
    called = prob >= point.threshold
    below, above = max(prob[~called], default=0.0), min(prob[called], default=1.0)
    # One unit in the last place: between neighbouring floats, and above a probability of exactly 1, is no middle.
    assert point.threshold == pytest.approx((below + above) / 2, rel=2.3e-16, abs=1e-300)


@settings(deadline=None, max_examples=100)
@given(rows=ROWS)
def test_youden_equals_the_best_of_all_cut_points(rows: list[tuple[float, int]]) -> None:
    prob, labels = columns(rows)
    point = choose_operating_point(prob, labels)
    assert point.sensitivity is not None
    assert point.specificity is not None
    best = max(sum(rates(prob, labels, threshold)) for threshold in all_thresholds(prob))
    assert point.sensitivity + point.specificity == pytest.approx(best, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(rows=ROWS, target=st.floats(0.01, 1.0))
def test_sensitivity_rule_takes_the_highest_cut(rows: list[tuple[float, int]], target: float) -> None:
    prob, labels = columns(rows)
    point = choose_operating_point(prob, labels, OperatingPointConfig(rule="sensitivity", sensitivity=target))
    assert point.sensitivity is not None
    assert point.sensitivity >= target
    called = prob >= point.threshold
    higher = np.nextafter(prob[called].min(), np.inf)
    assert rates(prob, labels, higher)[0] < target


@settings(deadline=None, max_examples=100)
@given(rows=ROWS, cost=st.floats(0.05, 50))
def test_cost_rule_takes_the_cheapest_cut(rows: list[tuple[float, int]], cost: float) -> None:
    prob, labels = columns(rows)

    def price(threshold: float) -> float:
        called = prob >= threshold
        return float(np.sum(called & (labels == 0)) + cost * np.sum(~called & (labels == 1)))

    point = choose_operating_point(prob, labels, OperatingPointConfig(rule="cost", false_negative_cost=cost))
    assert price(point.threshold) == pytest.approx(min(map(price, all_thresholds(prob))), rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(rows=ROWS, seed=st.integers(0, 1000))
def test_order_of_the_images_does_not_matter(rows: list[tuple[float, int]], seed: int) -> None:
    prob, labels = columns(rows)
    order = np.random.default_rng(seed).permutation(len(prob))
    assert choose_operating_point(prob, labels) == choose_operating_point(prob[order], labels[order])


@pytest.mark.parametrize("rule", ["youden", "sensitivity", "cost"])
def test_separated_classes_are_cut_mid_gap(rule: Any) -> None:
    point = choose_operating_point([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], OperatingPointConfig(rule=rule))
    assert point.threshold == pytest.approx(0.5)
    assert (point.sensitivity, point.specificity) == (1.0, 1.0)


def test_ties_go_to_the_widest_gap() -> None:
    """Labels 0 1 0 1: cutting below .2 or below .9 is equally good; the gap .3 to .9 is the wider."""
    prob, labels = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 1, 0, 1])
    assert choose_operating_point(prob, labels).threshold == pytest.approx(0.6)
    assert choose_operating_point(np.array([0.1, 0.7, 0.8, 0.9]), labels).threshold == pytest.approx(0.4)


def test_small_noise_flips_no_decision() -> None:
    rng = np.random.default_rng(0)
    prob, labels = np.round(rng.random(200), 2), rng.integers(0, 2, 200)
    threshold = choose_operating_point(prob, labels).threshold
    noisy = prob + rng.uniform(-0.0049, 0.0049, 200)
    np.testing.assert_array_equal(noisy >= threshold, prob >= threshold)


def test_neighbouring_floats_are_still_told_apart() -> None:
    """The midpoint of two neighbouring floats rounds to the even one, which may be the lower."""
    for low in (0.5, float(np.nextafter(0.5, 1))):
        high = float(np.nextafter(low, 1))
        point = choose_operating_point([low, high], [0, 1])
        assert low < point.threshold <= high


def test_sensitivity_targets_are_compared_as_shares() -> None:
    """7 of 100 positives reach the target 0.07, though 0.07 * 100 is more than 7 in floats."""
    assert 0.07 * 100 > 7
    prob, labels = np.append(np.linspace(0.1, 0.9, 100), 0.0), np.append(np.ones(100, int), 0)
    point = choose_operating_point(prob, labels, OperatingPointConfig(rule="sensitivity", sensitivity=0.07))
    assert point.sensitivity == 0.07


def test_costs_give_the_bayes_decision() -> None:
    """With calibrated probabilities the cheapest rule calls p >= 1 / (1 + cost) (Elkan 2001)."""
    rng = np.random.default_rng(0)
    prob = rng.random(200_000)
    labels = rng.random(200_000) < prob
    for cost in (0.5, 1.0, 5.0, 20.0):
        config = OperatingPointConfig(rule="cost", false_negative_cost=cost)
        assert choose_operating_point(prob, labels, config).threshold == pytest.approx(1 / (1 + cost), abs=0.03)


def test_a_rule_may_call_everyone_or_nobody() -> None:
    """An inverted model is best not used: everyone is called where misses are dear, nobody where alarms are."""
    prob, labels = np.array([0.0, 0.3, 1.0]), np.array([1, 1, 0])
    everyone = choose_operating_point(prob, labels, OperatingPointConfig(rule="cost", false_negative_cost=9.0))
    nobody = choose_operating_point(prob, labels, OperatingPointConfig(rule="cost", false_negative_cost=0.1))
    assert (everyone.sensitivity, everyone.specificity, everyone.threshold) == (1.0, 0.0, 0.0)
    assert (nobody.sensitivity, nobody.specificity) == (0.0, 1.0)
    assert nobody.threshold == pytest.approx(1.0)


def test_a_missing_class_fixes_the_threshold() -> None:
    assert choose_operating_point([0.2, 0.5, 0.7], [1, 1, 1]) == OperatingPoint(0.5, "fixed", 2 / 3, None, 3, 0)
    assert choose_operating_point([0.2, 0.5, 0.7], [0, 0, 0]) == OperatingPoint(0.5, "fixed", None, 1 / 3, 0, 3)
    assert choose_operating_point([], []) == OperatingPoint(0.5, "fixed", None, None, 0, 0)


@pytest.mark.parametrize("labels", [[0, 1, 1], [0, 0, 0]])
def test_operating_point_survives_strict_json(labels: list[int]) -> None:
    point = choose_operating_point(np.array([0.2, 0.5, 0.7], dtype=np.float32), np.array(labels))
    assert OperatingPoint(**json.loads(json.dumps(point.to_dict(), allow_nan=False))) == point


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rule", "best"),
        ("sensitivity", 0.0),
        ("sensitivity", 1.01),
        ("sensitivity", float("nan")),
        ("false_negative_cost", 0.0),
        ("false_negative_cost", float("inf")),
    ],
)
def test_config_error_names_the_option(field: str, value: Any) -> None:
    option = field.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"operating-point\.{option}"):
        OperatingPointConfig(**{field: value})
