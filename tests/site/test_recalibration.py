"""Recalibration against models whose calibration is known."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from pneumo_ray.site.labels import Labelled
from pneumo_ray.site.recalibration import METHODS, Recalibration
from pneumo_ray.site.recalibration_fit import choose, fit, folds


def population(number: int, seed: int, slope: float = 1.0, intercept: float = 0.0) -> Labelled:
    """Probabilities that are calibrated when their logits are taken times `slope` plus `intercept`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, number)
    label = (rng.random(number) < expit(slope * x + intercept)).astype(np.int64)
    return Labelled(expit(x).astype(np.float32).astype(np.float64), label, np.arange(number) // 2)


@pytest.mark.slow
def test_a_calibrated_model_is_left_alone():
    """Mostly the simplest map, none, is taken; whatever is taken moves no probability by more than noise."""
    kept, moved = 0, []
    for seed in range(40):
        chosen = choose(population(300, seed), seed).chosen
        kept += chosen.method == "none"
        grid = np.linspace(0.05, 0.95, 19)
        moved.append(np.abs(chosen.prob(grid) - grid).mean())
    assert kept >= 30
    assert np.mean(moved) < 0.01


def test_a_shifted_model_gets_its_intercept_back():
    chosen = [choose(population(400, seed, intercept=-1.5), seed).chosen for seed in range(20)]
    assert sum(found.method == "intercept" for found in chosen) >= 14
    assert np.mean([found.intercept for found in chosen if found.method == "intercept"]) == pytest.approx(-1.5, abs=0.1)


def test_a_steep_model_gets_its_slope_back():
    found = fit("intercept_and_slope", *_of(population(20_000, 0, slope=0.4, intercept=0.7)))
    assert (found.slope, found.intercept) == (pytest.approx(0.4, abs=0.03), pytest.approx(0.7, abs=0.06))


def test_the_slope_is_that_of_logistic_regression():
    data = population(5_000, 1, slope=0.6, intercept=-0.5)
    other = LogisticRegression(C=1e9).fit(logit(data.prob)[:, None], data.label)
    found = fit("intercept_and_slope", *_of(data))
    assert found.slope == pytest.approx(float(other.coef_[0, 0]), abs=0.01)
    assert found.intercept == pytest.approx(float(other.intercept_[0]), abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_maps_keep_order_and_bounds(method):
    found = fit(method, *_of(population(200, 2, slope=0.5)))
    grid = np.array([0.0, 1e-9, 0.2, 0.5, 0.8, 1 - 1e-9, 1.0])
    mapped = found.prob(grid)
    assert (np.diff(mapped) >= 0).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1


def test_an_isotonic_map_is_kept_by_its_knots():
    data = population(500, 3)
    found = fit("isotonic", *_of(data))
    again = Recalibration("isotonic", knots=found.knots, values=found.values)
    assert np.array_equal(again.prob(data.prob), found.prob(data.prob))
    assert 0 < found.values[0] < found.values[-1] < 1


def test_separated_classes_give_finite_maps():
    label = np.repeat([0, 1], [30, 30])
    for method in METHODS:
        mapped = fit(method, np.where(label == 1, 0.999, 0.001), label).prob(np.array([0.001, 0.999]))
        assert np.isfinite(mapped).all()


def test_folds_keep_patients_whole():
    data = population(101, 4)
    fold_of = folds(data, 0)
    for patient in np.unique(data.patient_of):
        assert len(set(fold_of[data.patient_of == patient])) == 1
    for fold in range(5):
        assert set(data.label[fold_of != fold]) == {0, 1}


def _of(data: Labelled) -> tuple[np.ndarray, np.ndarray]:
    return data.prob, data.label
