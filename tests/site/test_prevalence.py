"""Prevalence of mixtures that are known."""

import numpy as np
import pytest
from scipy.special import expit

from pneumo_ray.site.labels import Labelled
from pneumo_ray.site.prevalence import Prevalence, estimate_prevalence, mixture_share, predictive_values
from pneumo_ray.site.recalibration import Recalibration
from pneumo_ray.site.recalibration_fit import fit
from pneumo_ray.site.threshold import share

APART = 2.0


def mixture(rng: np.random.Generator, number: int, q: float, trained_at: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian scores of two classes, and their probabilities as calibrated at another share."""
    label = (rng.random(number) < q).astype(np.int64)
    score = rng.normal(size=number) + APART * label
    return label, expit(APART * score - APART**2 / 2 + np.log(trained_at / (1 - trained_at)))


def em(prob: np.ndarray, trained_at: float) -> float:
    """The algorithm of Saerens et al. 2002, step by step."""
    q = trained_at
    for _ in range(5000):
        ill, well = prob * q / trained_at, (1 - prob) * (1 - q) / (1 - trained_at)
        q = float(np.mean(ill / (ill + well)))
    return q


@pytest.mark.parametrize("q", [0.05, 0.3, 0.8])
def test_the_share_is_that_of_the_em_algorithm(q):
    _, prob = mixture(np.random.default_rng(0), 2000, q, 0.6)
    assert mixture_share(prob, 0.6) == pytest.approx(em(prob, 0.6), abs=1e-4)
    assert mixture_share(prob, 0.6) == pytest.approx(q, abs=0.03)


def test_weights_count_images():
    _, prob = mixture(np.random.default_rng(1), 300, 0.3)
    times = np.arange(300) % 4
    assert mixture_share(prob, 0.5, times.astype(float)) == pytest.approx(
        mixture_share(np.repeat(prob, times), 0.5), abs=1e-5
    )


def test_one_class_alone_is_found():
    assert mixture_share(np.full(50, 0.01), 0.5) == 0.0
    assert mixture_share(np.full(50, 0.99), 0.5) == 1.0


@pytest.mark.slow
def test_the_interval_holds_the_share():
    rng, held = np.random.default_rng(2), 0
    for seed in range(40):
        label, prob = mixture(rng, 200, 0.5)
        data = Labelled(prob, label, np.arange(200))
        _, other = mixture(rng, 400, 0.15)
        found = estimate_prevalence(other, np.arange(400), data, fit("intercept_and_slope", prob, label), seed)
        assert found is not None
        held += found.low <= 0.15 <= found.high
    assert held >= 34  # 95 % of 40 less three standard errors


def test_few_patients_have_no_estimate():
    label, prob = mixture(np.random.default_rng(3), 100, 0.5)
    data = Labelled(prob, label, np.arange(100))
    assert estimate_prevalence(prob[:60], np.arange(60) // 10, data, Recalibration(), 0) is None


def test_predictive_values_are_those_of_bayes():
    found = predictive_values(share(90, 100), share(160, 200), Prevalence(0.2, 0.2, 0.2, "given", 0))
    assert found.positive == pytest.approx(0.18 / (0.18 + 0.16))
    assert found.negative == pytest.approx(0.64 / (0.64 + 0.02))
    assert (found.missed, found.alarms) == (pytest.approx(20), pytest.approx(160))
    for value, (low, high) in (
        (found.positive, found.positive_interval),
        (found.negative, found.negative_interval),
        (found.missed, found.missed_interval),
    ):
        assert low < value < high
