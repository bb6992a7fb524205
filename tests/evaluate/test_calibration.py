import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from sklearn.metrics import brier_score_loss

from pneumo_ray.evaluate.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    reliability_table,
)

# Quarters stand on bin edges for many numbers of bins.
PROBABILITY = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))


def mean_nll(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    scaled = logits / temperature
    return float(np.mean(np.logaddexp(0.0, scaled) - labels * scaled))


def overconfident_sample(temperature: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from sigmoid(z); the model reports z * temperature."""
    rng = np.random.default_rng(seed)
    true_logit = rng.normal(scale=2.0, size=size)
    labels = (rng.random(size) < 1 / (1 + np.exp(-true_logit))).astype(int)
    return true_logit * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_that_generated_the_labels_is_recovered(temperature: float) -> None:
    """Fisher information at n = 40,000 puts the standard error of log T near 1 %."""
    logits, labels = overconfident_sample(temperature, 40_000, seed=1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.04)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.floats(-50, 50, width=32), st.integers(0, 1)), min_size=2, max_size=40),
)
def test_no_temperature_within_the_bounds_has_a_lower_likelihood_loss(rows: list[tuple[float, int]]) -> None:
    logits, labels = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    fitted = fit_temperature(logits, labels)
    assert MIN_TEMPERATURE <= fitted <= MAX_TEMPERATURE
    if labels.min() == labels.max():
        return
    loss = mean_nll(logits, labels, fitted)
    for other in np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 200):
        assert loss <= mean_nll(logits, labels, other) + 1e-12 * (1 + loss)


def test_slope_of_the_loss_is_zero_at_an_inner_optimum() -> None:
    """The loss is convex in b = 1/T, with slope mean(z (sigmoid(bz) - y)): zero there means the global minimum."""
    logits, labels = overconfident_sample(2.5, 500, seed=2)
    fitted = fit_temperature(logits, labels)
    slope = np.mean(logits * (1 / (1 + np.exp(-logits / fitted)) - labels))
    assert abs(slope) < 1e-9


def test_temperature_agrees_with_a_bounded_search_for_the_minimum() -> None:
    logits, labels = overconfident_sample(1.7, 300, seed=3)
    search = minimize_scalar(
        lambda log_t: mean_nll(logits, labels, np.exp(log_t)),
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(logits, labels) == pytest.approx(np.exp(search.x), rel=1e-5)


def test_separated_classes_end_at_the_cold_bound_and_inverted_logits_at_the_hot_bound() -> None:
    """Separated: loss falls forever as T -> 0. Inverted: any confidence hurts, so T -> infinity."""
    logits, labels = np.array([-3.0, -1.0, 2.0, 4.0]), np.array([0, 0, 1, 1])
    assert fit_temperature(logits, labels) == MIN_TEMPERATURE
    assert fit_temperature(-logits, labels) == MAX_TEMPERATURE


def test_huge_logits_do_not_overflow() -> None:
    logits, labels = np.array([-1e5, 1e5, 1e5, -1e5, 1e5]), np.array([0, 1, 1, 0, 0])
    with np.errstate(over="raise", invalid="raise"):
        assert fit_temperature(logits, labels) == MAX_TEMPERATURE


@pytest.mark.parametrize(
    ("logits", "labels"), [([], []), ([1.0, -2.0], [1, 1]), ([3.0, 3.0], [0, 0]), ([0.0, 0.0], [0, 1])]
)
def test_temperature_is_one_where_there_is_nothing_to_fit(logits: list[float], labels: list[int]) -> None:
    assert fit_temperature(logits, labels) == 1.0


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([0.1, np.nan], [0, 1]),
        ([0.1, np.inf], [0, 1]),
        ([0.1, 0.2], [0, 2]),
        ([0.1, 0.2], [0.0, np.nan]),
        ([0.1], [0, 1]),
    ],
)
def test_values_that_no_metric_could_mean_are_refused(logits: list[float], labels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"logits|labels"):
        fit_temperature(logits, labels)
    with pytest.raises(ValueError, match=r"prob|labels"):
        brier_score(logits, labels)


def test_logits_in_place_of_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="sigmoid"):
        reliability_table([2.0, 0.3], [1, 0])


def test_calibration_error_by_hand() -> None:
    """Two bins: [0, .5) holds .1 .3, 1 of 2 positive (gap .3); [.5, 1] holds .5 .8 1.0, 2 of 3 positive (gap .1)."""
    prob, labels = [0.1, 0.3, 0.5, 0.8, 1.0], [0, 1, 1, 0, 1]
    assert expected_calibration_error(prob, labels, bins=2) == pytest.approx(2 / 5 * 0.3 + 3 / 5 * 0.1)


def test_calibration_error_counts_an_overconfident_negative() -> None:
    """All called 1 % and a tenth of them ill: the positive class is off by 9 points."""
    prob, labels = np.full(100, 0.01), np.repeat([1, 0], [10, 90])
    assert expected_calibration_error(prob, labels) == pytest.approx(0.09)


def test_calibrated_probabilities_have_a_small_error_and_sharpened_ones_a_large_one() -> None:
    logits, labels = overconfident_sample(4.0, 20_000, seed=4)
    calibrated, reported = 1 / (1 + np.exp(-logits / 4)), 1 / (1 + np.exp(-logits))
    assert expected_calibration_error(calibrated, labels) < 0.02
    assert expected_calibration_error(reported, labels) > 0.08


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(PROBABILITY, st.integers(0, 1)), min_size=1, max_size=50),
    bins=st.integers(1, 20),
)
def test_reliability_table_agrees_with_a_loop_over_bins(rows: list[tuple[float, int]], bins: int) -> None:
    prob, labels = (np.array(column) for column in zip(*rows, strict=True))
    table = reliability_table(prob, labels, bins)
    assert table.counts.sum() == len(rows)
    for index in range(bins):
        low, high = table.edges[index], table.edges[index + 1]
        inside = (prob >= low) & ((prob < high) | (index == bins - 1))
        assert table.counts[index] == inside.sum()
        if inside.any():
            assert table.mean_prob[index] == pytest.approx(prob[inside].mean())
            assert table.observed[index] == pytest.approx(labels[inside].mean())
        else:
            assert np.isnan(table.mean_prob[index])
            assert np.isnan(table.observed[index])


def test_brier_score_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    prob, labels = rng.random(200), rng.integers(0, 2, 200)
    assert brier_score(prob, labels) == pytest.approx(brier_score_loss(labels, prob), abs=1e-12)


def test_scores_of_no_images_are_refused() -> None:
    for score in (brier_score, expected_calibration_error):
        with pytest.raises(ValueError, match="no images"):
            score([], [])
    with pytest.raises(ValueError, match="bins"):
        reliability_table([0.5], [1], bins=0)
