"""Doubt of labels against cleanlab, an independent implementation, on drawn probabilities."""

import numpy as np
import pytest
from scipy.special import expit, logit

from pneumo_ray.evaluate.label_quality import adjusted_margin, class_thresholds, confidently_other, self_confidence


def drawn(seed: int, share: float = 0.7, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels as given, probabilities of class 1 from the true classes, and which labels are flipped."""
    rng = np.random.default_rng(seed)
    true = rng.random(400) < share
    flipped = rng.random(400) < noise
    prob = 1 / (1 + np.exp(-rng.normal(4 * true - 2, 1.5)))
    return (true ^ flipped).astype(np.int64), prob, flipped


@pytest.mark.parametrize("seed", range(5))
def test_rankings_equal_those_of_cleanlab(seed):
    rank = pytest.importorskip("cleanlab.rank")
    count = pytest.importorskip("cleanlab.count")
    label, prob, _ = drawn(seed)
    both = np.stack([1 - prob, prob], 1)
    own = self_confidence(label, prob)
    np.testing.assert_allclose(own, rank.get_self_confidence_for_each_label(label, both), atol=1e-12)
    np.testing.assert_allclose(own, rank.get_normalized_margin_for_each_label(label, both), atol=1e-12)
    np.testing.assert_allclose(class_thresholds(label, prob), count.get_confident_thresholds(label, both), atol=1e-12)
    adjusted = rank.get_label_quality_scores(label, both, method="normalized_margin", adjust_pred_probs=True)
    np.testing.assert_allclose(adjusted_margin(label, prob), adjusted, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_likely_errors_equal_those_of_cleanlab(seed):
    find = pytest.importorskip("cleanlab.filter")
    label, prob, _ = drawn(seed)
    expected = find.find_label_issues(label, np.stack([1 - prob, prob], 1), filter_by="confident_learning", n_jobs=1)
    assert expected.any()
    np.testing.assert_array_equal(confidently_other(label, prob), expected)


def test_flipped_labels_come_first():
    """With separable classes every flip has a lower self-confidence than every right label."""
    label, _, flipped = drawn(0)
    prob = np.where((label == 1) ^ flipped, 0.9, 0.2)
    order = np.argsort(self_confidence(label, prob))
    assert flipped[order[: flipped.sum()]].all()
    np.testing.assert_array_equal(confidently_other(label, prob), flipped)


def test_a_rare_class_is_not_doubtful_by_itself():
    """The rare class has half the probability that it would have alone: raw doubt falls on it, adjusted doubt does not."""
    label = np.array([0] * 90 + [1] * 10)
    prob = np.concatenate([np.linspace(0.0, 0.2, 90), np.linspace(0.4, 0.5, 10)])
    first = np.argsort(self_confidence(label, prob))[:10]
    assert set(first) == set(range(90, 100))
    assert not set(np.argsort(adjusted_margin(label, prob))[:5]) <= set(range(90, 100))


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5])
def test_of_calibrated_probabilities_self_confidence_finds_most(share):
    """Where every label is flipped equally often, the odds of an error are 1 - s over s of the true class's probability.

    Two normal densities give that probability; a calibrated model of the given labels says e + (1 - 2 e) of it, which keeps
    the order. So no ranking has more flips in its first tenth, whatever the shares of the classes.
    """
    rng, n, e = np.random.default_rng(0), 200_000, 0.05
    true = rng.random(n) < share
    flipped = rng.random(n) < e
    posterior = expit(logit(share) + 3 * rng.normal(3 * true - 1.5, 1))
    prob, label = e + (1 - 2 * e) * posterior, (true ^ flipped).astype(np.int64)

    def found(ranking: np.ndarray) -> float:
        return flipped[np.argsort(ranking)[: n // 10]].sum() / flipped.sum()

    own = np.where(label == 1, posterior, 1 - posterior)
    bound = np.sort(e * (1 - own) / (e * (1 - own) + (1 - e) * own))[::-1][: n // 10].sum() / flipped.sum()
    assert found(self_confidence(label, prob)) == pytest.approx(bound, abs=0.01)
    assert found(self_confidence(label, prob)) >= found(adjusted_margin(label, prob)) - 1e-3
    if share < 0.2:
        assert found(self_confidence(label, prob)) > found(adjusted_margin(label, prob))
