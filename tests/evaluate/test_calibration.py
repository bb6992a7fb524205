import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm  # type: ignore[import-untyped]
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from pneumo_ray.evaluate.calibration import (
    MAX_SPREAD,
    MIN_SPREAD,
    brier_score,
    expected_calibration_error,
    fit_calibration,
    reliability_table,
    tells_nothing,
)
from pneumo_ray.model.calibrated import Calibration

# Quarters stand on bin edges for many numbers of bins.
PROBABILITY = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))


def platt_loss(logits: np.ndarray, labels: np.ndarray, temperature: float, intercept: float) -> float:
    """Platt's loss, written out: cross-entropy against (N+ + 1) / (N+ + 2) and 1 / (N- + 2)."""
    positive, negative = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    scaled = logits / temperature + intercept
    return float(np.mean(np.logaddexp(0.0, scaled) - target * scaled))


def sample(temperature: float, intercept: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from sigmoid(z); the model reports (z - intercept) * temperature."""
    rng = np.random.default_rng(seed)
    true_logit = rng.normal(scale=2.0, size=size)
    labels = (rng.random(size) < 1 / (1 + np.exp(-true_logit))).astype(int)
    return (true_logit - intercept) * temperature, labels


def gaussian(auc: float, num_normal: int, num_ill: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits of an ideal model that was trained at odds 1: two Gaussians whose log likelihood ratio they are."""
    distance = np.sqrt(2) * norm.ppf(auc)
    labels = np.repeat([0, 1], [num_normal, num_ill])
    return (labels - 0.5) * distance**2 + distance * rng.normal(size=len(labels)), labels


@pytest.mark.parametrize(("temperature", "intercept"), [(0.4, 0.0), (1.0, 1.06), (3.0, -2.0)])
def test_generating_slope_and_intercept_are_recovered(temperature: float, intercept: float) -> None:
    """Fisher information at n = 40,000 puts the standard errors of log T and of the intercept near 0.01."""
    fitted = fit_calibration(*sample(temperature, intercept, 40_000, seed=1))
    assert fitted.temperature == pytest.approx(temperature, rel=0.04)
    assert fitted.intercept == pytest.approx(intercept, abs=0.05)


@pytest.mark.parametrize(("auc", "off"), [(0.855, 0.15), (0.962, 0.074), (0.994, 0.0275)])
def test_calibration_restores_the_prior(auc: float, off: float) -> None:
    """40 studies with a tenth of the paper's 1,341 and 3,875 images to validate on, each tried on as many images again as they have."""
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(40):
        logits, labels = gaussian(auc, 134, 388, rng)
        new, truth = gaussian(auc, 1341, 3875, rng)
        before.append(Calibration().prob(new).mean() - truth.mean())
        after.append(fit_calibration(logits, labels).prob(new).mean() - truth.mean())
    assert np.mean(before) == pytest.approx(-off, abs=0.003)
    assert abs(np.mean(after)) < 0.004  # the standard error of a study is 0.015 at most


def test_an_independent_fit_of_platts_model_agrees() -> None:
    logits, labels = sample(1.7, 0.8, 300, seed=3)
    judge = CalibratedClassifierCV(FrozenEstimator(LogisticRegression().fit(logits[:, None], labels)), method="sigmoid")
    judge.fit(logits[:, None], labels)
    expected = judge.predict_proba(logits[:, None])[:, 1]
    np.testing.assert_allclose(fit_calibration(logits, labels).prob(logits), expected, atol=2e-4)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(st.floats(-50, 50, width=32), st.integers(0, 1)), min_size=2, max_size=40))
def test_no_other_calibration_is_more_likely(rows: list[tuple[float, int]]) -> None:
    logits, labels = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if labels.min() == labels.max() or logits.std() < 1e-3:
        return
    fitted = fit_calibration(logits, labels)
    loss = platt_loss(logits, labels, fitted.temperature, fitted.intercept)
    centre = logits.mean() / fitted.temperature + fitted.intercept
    for spread in np.geomspace(MIN_SPREAD, MAX_SPREAD, 25):
        temperature = logits.std() / spread
        for shift in (-3, -0.3, -0.01, 0, 0.01, 0.3, 3):
            other = centre + shift - logits.mean() / temperature
            assert loss <= platt_loss(logits, labels, temperature, other) + 1e-7 * (1 + loss)


@settings(deadline=None, max_examples=40)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 2**16))
def test_unit_and_origin_do_not_matter(scale: float, shift: float, seed: int) -> None:
    logits, labels = sample(1.3, 0.4, 60, seed)
    plain, moved = fit_calibration(logits, labels), fit_calibration(scale * logits + shift, labels)
    np.testing.assert_allclose(moved.prob(scale * logits + shift), plain.prob(logits), atol=1e-5)


@pytest.mark.parametrize("balanced", [1.0, 0.12])
def test_no_balance_of_the_classes_moves_the_slope(balanced: float) -> None:
    """Training at other odds shifts the logits; `paper`, at 0.12, once drove the temperature to its bound."""
    logits, labels = gaussian(0.97, 134, 388, np.random.default_rng(5))
    fitted = fit_calibration(logits + np.log(balanced), labels)
    assert fitted.temperature == pytest.approx(1, abs=0.25)
    assert fitted.intercept == pytest.approx(np.log(388 / 134 / balanced), abs=0.5)
    assert not tells_nothing(fitted, logits)


def test_separated_classes_get_platts_targets() -> None:
    """Nothing bounds the likelihood of separated classes; with Platt's targets 2 of 2 means 3/4."""
    fitted = fit_calibration(np.array([-1.0, -1.0, 1.0, 1.0]), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(fitted.prob(np.array([-1.0, 1.0])), [0.25, 0.75], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_chance_logits_give_the_prevalence(scale: float) -> None:
    logits, labels = scale * np.array([-3.0, -1.0, 2.0, 4.0, 4.0]), np.array([1, 1, 1, 0, 0])
    with np.errstate(over="raise", invalid="raise"):
        fitted = fit_calibration(logits, labels)
    assert tells_nothing(fitted, logits)
    np.testing.assert_allclose(fitted.prob(logits), (3 * 4 / 5 + 2 / 4) / 5, atol=0.01)
    equal = fit_calibration(np.full(5, 3.0), labels)
    np.testing.assert_allclose(equal.prob(np.full(5, 3.0)), (3 * 4 / 5 + 2 / 4) / 5)


@pytest.mark.parametrize(("logits", "labels"), [([], []), ([1.0, -2.0], [1, 1]), ([3.0, 3.0], [0, 0])])
def test_nothing_changes_where_there_is_nothing_to_fit(logits: list[float], labels: list[int]) -> None:
    assert fit_calibration(logits, labels) == Calibration()


def test_passes_are_calibrated_in_their_mean() -> None:
    """The mean of sigmoids is flatter than the sigmoid of the mean, so a fit on plain logits would be underconfident."""
    rng = np.random.default_rng(0)
    logits, labels = sample(1.0, 0.5, 20_000, seed=4)
    passes = logits[:, None] + rng.normal(0, 2.0, (len(logits), 30))
    fitted, plain = fit_calibration(passes, labels), fit_calibration(logits, labels)

    def loss(calibration: Calibration) -> float:
        return float(log_loss(labels, calibration.prob(passes).mean(1)))

    assert fitted.temperature < 0.8 * plain.temperature
    assert loss(fitted) < loss(plain) - 0.005
    for step in (0.97, 1.03):  # a minimum, in both directions
        assert loss(fitted) < loss(Calibration(fitted.temperature * step, fitted.intercept)) + 1e-6
    assert fitted.prob(passes).mean() == pytest.approx(labels.mean(), abs=0.003)
    same = fit_calibration(np.repeat(logits[:100, None], 3, axis=1), labels[:100])
    alone = fit_calibration(logits[:100], labels[:100])
    assert (same.temperature, same.intercept) == (pytest.approx(alone.temperature), pytest.approx(alone.intercept))


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
        fit_calibration(logits, labels)
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


def test_sharpened_probabilities_have_a_larger_error() -> None:
    logits, labels = sample(4.0, 0.0, 20_000, seed=4)
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
