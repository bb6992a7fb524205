"""The consensus of readers: by hand, by simulation, and by the likelihood that it maximises."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from scipy.special import logit as log_odds

from pneumo_ray.readers.consensus import consensus_of, dawid_skene, vote_share

NAN = np.nan
SENSITIVITY, SPECIFICITY = (0.95, 0.8, 0.6, 0.85), (0.9, 0.95, 0.7, 0.6)


def simulated(images: int, missing: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the true classes [images] and the votes [images, 4] of readers of known skill."""
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < 0.3
    says = np.where(truth[:, None], SENSITIVITY, 1 - np.array(SPECIFICITY))
    votes = (rng.random(says.shape) < says).astype(float)
    votes[rng.random(says.shape) < missing] = NAN
    return truth.astype(int), votes


def test_majority_and_mean_by_hand():
    votes = np.array([[1, 1, 0], [0, NAN, 0], [1, 0, NAN], [NAN, NAN, NAN]])
    assert consensus_of(votes, "majority").tolist() == pytest.approx([1, 0, 0.5, NAN], nan_ok=True)
    assert consensus_of(votes, "mean").tolist() == pytest.approx([2 / 3, 0, 0.5, NAN], nan_ok=True)


def test_dawid_skene_maximises_the_likelihood():
    """The likelihood of the votes alone, maximised by a general optimiser without expectation maximisation."""
    _, votes = simulated(300, missing=0.3)
    said = [(votes == answer).astype(float) for answer in (0, 1)]

    def negative(parameters):
        prior, positive = expit(parameters[0]), [expit(parameters[5:]), expit(parameters[1:5])]
        each = [
            np.log(p) + said[1] @ np.log(q) + said[0] @ np.log1p(-q)
            for p, q in zip((1 - prior, prior), positive, strict=True)
        ]
        return -logsumexp(each, axis=0).sum()

    start = np.concatenate([[-1], np.ones(4), -np.ones(4)])
    best = minimize(negative, start, method="BFGS", options={"gtol": 1e-7})
    _, skill = dawid_skene(votes)
    own = log_odds(np.concatenate([[skill.prevalence], skill.sensitivity, 1 - skill.specificity]))
    assert negative(own) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(expit(own), expit(best.x), atol=1e-4)


def test_dawid_skene_finds_the_readers_skill():
    truth, votes = simulated(20_000, missing=0.2)
    posterior, skill = dawid_skene(votes)
    np.testing.assert_allclose(skill.sensitivity, SENSITIVITY, atol=0.02)
    np.testing.assert_allclose(skill.specificity, SPECIFICITY, atol=0.02)
    assert skill.prevalence == pytest.approx(0.3, abs=0.015)
    seen = ~np.isnan(posterior)
    wrong = [np.mean((p[seen] > 0.5) != truth[seen]) for p in (posterior, vote_share(votes))]
    assert wrong[0] < 0.9 * wrong[1]
    bins = np.round(posterior[seen], 1)
    for value in (0.1, 0.5, 0.9):  # a posterior is a frequency
        assert truth[seen][bins == value].mean() == pytest.approx(posterior[seen][bins == value].mean(), abs=0.06)


def test_an_image_without_an_answer_changes_nothing():
    _, votes = simulated(200, missing=0.3)
    more = np.concatenate([votes, np.full((3, 4), NAN)])
    assert np.isnan(dawid_skene(more)[0][-3:]).all()
    np.testing.assert_allclose(dawid_skene(more)[0][:-3], dawid_skene(votes)[0], atol=1e-12)


@pytest.mark.parametrize("votes", [[[1], [0]], [[1, 1], [1, 1]], [[0, NAN], [NAN, 0]], [[1, 0], [0, 1]]])
def test_few_readers_give_probabilities(votes):
    found = dawid_skene(np.array(votes, float))[0]
    assert ((found >= 0) & (found <= 1)).all()
    agreed = [row for row in range(2) if np.nanmin(votes[row]) == np.nanmax(votes[row])]
    assert found[agreed].round(6).tolist() == [np.nanmax(votes[row]) for row in agreed]
