"""Scores and calibration against labels that are probabilities: by hard labels, by expectation, by statsmodels."""

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.metrics import brier_score_loss, log_loss

from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.evaluate.calibration import (
    fit_calibration,
    fit_soft_calibration,
    platt_targets,
    soft_platt_targets,
)
from pneumo_ray.evaluate.matching import match
from pneumo_ray.evaluate.numbers import evaluate
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.evaluate.soft_scores import soft_brier, soft_log_loss
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.report.wording import readers_text

RNG = np.random.default_rng(0)
N = 200
TARGET = RNG.choice([0, 1 / 3, 0.5, 2 / 3, 1], N)
LOGIT = 3 * TARGET - 1 + RNG.normal(size=N)
WEIGHT = RNG.uniform(0.2, 1, N)
WEIGHT = WEIGHT / WEIGHT.mean()
PROB = 1 / (1 + np.exp(-LOGIT))


def test_hard_labels_give_the_hard_scores():
    label = (TARGET > 0.4).astype(float)
    assert soft_log_loss(PROB, label, WEIGHT) == pytest.approx(log_loss(label, PROB, sample_weight=WEIGHT), abs=1e-12)
    assert soft_brier(PROB, label, WEIGHT) == pytest.approx(
        brier_score_loss(label, PROB, sample_weight=WEIGHT), abs=1e-12
    )


def test_the_scores_are_those_of_a_readers_answer():
    """The mean score over answers, weighted by their probability."""
    loss = TARGET * -np.log(PROB) + (1 - TARGET) * -np.log(1 - PROB)
    assert soft_log_loss(PROB, TARGET) == pytest.approx(loss.mean(), abs=1e-12)
    answers = RNG.random((20_000, N)) < TARGET
    assert soft_brier(PROB, TARGET) == pytest.approx(((PROB - answers) ** 2).mean(), abs=2e-3)


@pytest.mark.parametrize("score", [soft_log_loss, soft_brier])
def test_the_readers_share_scores_best(score):
    best = score(TARGET, TARGET)
    assert best > 0.05
    assert all(score(np.clip(TARGET + shift, 0, 1), TARGET) > best for shift in (-0.05, 0.05))


def test_hard_labels_give_the_hard_calibration():
    label = (TARGET > 0.4).astype(np.int64)
    equal = np.ones(N)
    np.testing.assert_allclose(soft_platt_targets(label.astype(float), equal), platt_targets(label), atol=1e-15)
    hard, soft = fit_calibration(LOGIT, label), fit_soft_calibration(LOGIT, label.astype(float), equal)
    assert soft.temperature == pytest.approx(hard.temperature, rel=1e-6)
    assert soft.intercept == pytest.approx(hard.intercept, abs=1e-6)


def test_the_calibration_is_a_weighted_logistic_regression():
    """Statsmodels fits a binomial model with fractions as the outcome and weights of the variance."""
    found = fit_soft_calibration(LOGIT, TARGET, WEIGHT)
    model = sm.GLM(
        soft_platt_targets(TARGET, WEIGHT), sm.add_constant(LOGIT), sm.families.Binomial(), var_weights=WEIGHT
    ).fit(tol=1e-12)
    assert 1 / found.temperature == pytest.approx(model.params[1], rel=1e-5)
    assert found.intercept == pytest.approx(model.params[0], abs=1e-5)


def test_an_opinion_is_its_answers():
    """1 / 3 is one answer for pneumonia and two against, each a third of the image."""
    thirds = np.tile([1.0, 0, 0], N)
    whole = fit_soft_calibration(LOGIT, np.full(N, 1 / 3), WEIGHT)
    parts = fit_soft_calibration(np.repeat(LOGIT, 3), thirds, np.repeat(WEIGHT, 3) / 3)
    assert whole.temperature == pytest.approx(parts.temperature, rel=1e-2)
    assert whole.intercept == pytest.approx(parts.intercept, abs=1e-4)


def test_passes_are_averaged_and_weights_count():
    passes = np.repeat(LOGIT[:, None], 4, 1)
    one, four = fit_soft_calibration(LOGIT, TARGET, WEIGHT), fit_soft_calibration(passes, TARGET, WEIGHT)
    assert four.temperature == pytest.approx(one.temperature, rel=1e-6)
    without = WEIGHT * (np.arange(N) < N // 2)
    half = slice(0, N // 2)
    left = fit_soft_calibration(LOGIT[half], TARGET[half], without[half])
    assert fit_soft_calibration(LOGIT, TARGET, without).intercept == pytest.approx(left.intercept, abs=1e-5)


def test_evaluations_count_the_images_read(write_scores, write_truth, tmp_path):
    label, logit = (TARGET > 0.4).astype(int), 2 * LOGIT
    readers = np.where(np.arange(N) % 4, 3, 0)
    opinions = {"label_soft": TARGET.tolist(), "label_weight": [1.0] * N, "num_readers": readers.tolist()}
    manifest = write_truth(tmp_path / "m.parquet", label, n=N, **opinions)
    scores = match(read_scores(str(write_scores(tmp_path / "s", logit))), read_manifest(str(manifest)), "m")
    measured = evaluate(scores, None, None).measured
    found, read = measured.against_readers, readers > 0
    assert (found.images, found.readers) == (N * 3 // 4, 3)
    assert found.log_loss == pytest.approx(soft_log_loss(PROB[read], TARGET[read]), abs=1e-6)
    assert found.brier == pytest.approx(soft_brier(PROB[read], TARGET[read]), abs=1e-6)
    assert found.brier_least == pytest.approx(soft_brier(TARGET[read], TARGET[read]), abs=1e-12)
    assert found.log_loss_least == pytest.approx(soft_log_loss(TARGET[read], TARGET[read]), abs=1e-9)
    assert found.brier_interval[0] < found.brier < found.brier_interval[1]
    assert not {group.column for group in measured.subgroups} & set(opinions)
    assert f"log loss {found.log_loss:.3f} (" in readers_text(found)


def test_without_readings_nothing_is_said_of_readers(write_scores, write_truth, tmp_path):
    manifest = read_manifest(str(write_truth(tmp_path / "m.parquet", np.arange(40) % 2, n=40)))
    scores = match(read_scores(str(write_scores(tmp_path / "s", LOGIT[:40]))), manifest, "m")
    assert evaluate(scores, None, None).measured.against_readers is None
    assert readers_text(None) == ""


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_one_class_alone_changes_nothing(target):
    assert fit_soft_calibration(LOGIT, np.full(N, target), WEIGHT) == Calibration()
