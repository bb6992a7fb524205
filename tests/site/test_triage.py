"""The promise of triage, held against populations in which the true errors are known."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from pneumo_ray.site.labels import Labelled
from pneumo_ray.site.triage import (
    NoTriage,
    Triage,
    count_calls,
    fewest_called,
    find_triage,
    last_passing,
    most_errors,
    triage_path,
)

DRAWS = 10_000
ALPHA = DELTA = 0.05


def drawn(rng: np.random.Generator, label: np.ndarray, wrong: tuple[float, float]) -> np.ndarray:
    """Scores within -1 and 1 whose side is wrong with a probability by class, however extreme they are."""
    side = np.where(label == 1, 1, -1) * np.where(
        rng.random(len(label)) < np.where(label == 1, wrong[1], wrong[0]), -1, 1
    )
    return side * rng.random(len(label))


def true_errors(low: float, high: float, wrong: tuple[float, float]) -> np.ndarray:
    """Return the share of errors among the called images of each class in that population."""
    below, above = np.clip(-low, 0, 1), np.clip(1 - high, 0, 1)
    normal = wrong[0] * above / (wrong[0] * above + (1 - wrong[0]) * below)
    ill = wrong[1] * below / (wrong[1] * below + (1 - wrong[1]) * above)
    return np.array([normal, ill])


# In the first two, errors are as frequent as alpha at every pair of thresholds or a little more, so that each draw in
# which anything is called tests the promise; the third mixes good and bad pairs.
@pytest.mark.parametrize(
    ("number", "share", "wrong"), [(600, 0.5, (0.0, 0.0557)), (300, 0.3, (0.0525, 0.0)), (400, 0.5, (0.045, 0.05))]
)
@pytest.mark.slow
def test_a_false_promise_is_as_rare_as_delta(number, share, wrong):
    rng = np.random.default_rng(3)
    broken = 0
    for _ in range(DRAWS):
        label = (rng.random(number) < share).astype(np.int64)
        scores = drawn(rng, label, wrong)
        sides = [np.sort(scores[label == c]) for c in (0, 1)]
        low, high = triage_path(scores, label.mean())
        called, errors = count_calls(sides, low, high)
        last = last_passing(called, errors, (len(sides[0]), len(sides[1])), ALPHA, DELTA)
        broken += last is not None and true_errors(low[last], high[last], wrong).max() > ALPHA
    assert broken / DRAWS <= DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / DRAWS)


@pytest.mark.slow
def test_the_promise_holds_at_any_prevalence():
    """Both classes kept their error among the called, so any mixture of them does; 500 draws, Gaussian scores."""
    rng, broken, given = np.random.default_rng(4), 0, 0
    for _ in range(500):
        label = (rng.random(400) < 0.5).astype(np.int64)
        scores = norm.cdf((rng.normal(size=400) + 3.2 * label - 1.6) / 2)
        found = find_triage(Labelled(scores, label, np.arange(400)), scores, ALPHA, DELTA)
        if isinstance(found, Triage):
            given += 1
            low, high = (2 * norm.ppf(edge) + 1.6 for edge in (found.low, found.high))
            missed, cleared = norm.cdf(low - 3.2), norm.cdf(low)
            alarm, hit = norm.sf(high), norm.sf(high - 3.2)
            errors = [
                (q * missed + (1 - q) * alarm) / (q * (missed + hit) + (1 - q) * (alarm + cleared))
                for q in (0.01, 0.1, 0.3, 0.7, 0.95)
            ]
            broken += max(errors) > ALPHA
    assert given > 250
    assert broken <= DELTA * 500


def test_the_fewest_called_are_those_of_the_binomial():
    for errors in range(4):
        number = fewest_called(ALPHA, DELTA, errors)
        assert binom.cdf(errors, number, ALPHA) <= DELTA < binom.cdf(errors, number - 1, ALPHA)
    assert fewest_called(ALPHA, DELTA) == 59  # 0.95^59 < 0.05 < 0.95^58


def test_the_most_errors_are_those_of_the_binomial():
    limit = most_errors(300, ALPHA, DELTA)
    for number in (0, 1, 58, 59, 92, 93, 124, 300):
        allowed = [errors for errors in range(number + 1) if binom.cdf(errors, number, ALPHA) <= DELTA]
        assert limit[number] == max(allowed, default=-1)


def test_too_few_labels_are_counted():
    label = np.repeat([0, 1], [40, 70])
    found = find_triage(Labelled(label * 0.8 + 0.1, label, np.arange(110)), label * 0.8 + 0.1, ALPHA, DELTA)
    assert isinstance(found, NoTriage)
    assert found.missing == {"normal": 32, "pneumonia": 2}  # 0.95^72 < 0.025 < 0.95^71
    assert "32 more without pneumonia and 2 more with pneumonia" in found.reason


def test_scores_without_order_are_refused_without_a_number():
    rng = np.random.default_rng(0)
    label, scores = rng.integers(0, 2, 1000), rng.random(1000)
    found = find_triage(Labelled(scores, label, np.arange(1000)), scores, ALPHA, DELTA)
    assert isinstance(found, NoTriage)
    assert found.missing is None
    assert "do not help" in found.reason


def confident_errors(number: int, every: int) -> Labelled:
    """Return separated classes of `number` images each, of which one in `every` lies at the wrong end."""
    label = np.repeat([0, 1], [number, number])
    scores = np.concatenate([np.linspace(0.1, 0.4, number), np.linspace(0.6, 0.9, number)])
    scores[:number][::every], scores[number:][::every] = 0.95, 0.05
    return Labelled(scores, label, np.arange(2 * number))


def test_the_missing_number_is_enough():
    """With as many labels as are asked for, and the same shares of errors, there is a triage."""
    data = confident_errors(80, 80)
    found = find_triage(data, data.prob, ALPHA, DELTA)
    assert isinstance(found, NoTriage)
    assert found.missing is not None
    assert 0 < found.missing["normal"] < 80
    data = confident_errors(80 + max(found.missing.values()), 80)
    assert isinstance(find_triage(data, data.prob, ALPHA, DELTA), Triage)


def test_a_few_confident_errors_do_not_end_triage():
    data = confident_errors(200, 70)
    found = find_triage(data, data.prob, ALPHA, DELTA)
    assert isinstance(found, Triage)
    assert found.called_share > 0.9
    assert (found.normal.wrong, found.pneumonia.wrong) == (3, 3)


@pytest.mark.parametrize("share", [0.0, 0.37, 0.5, 0.999])
def test_the_last_pair_calls_all(share):
    scores = np.random.default_rng(0).random(101)
    low, high = triage_path(scores, share)
    assert ((scores < low[-1]) | (scores >= high[-1])).all()
    assert (low[1:] >= low[:-1]).all()
    assert (high[1:] <= high[:-1]).all()


def test_equal_scores_are_never_called_both_ways():
    label = np.repeat([0, 1], [200, 200])
    scores = np.where(np.arange(400) % 10 < 9, label * 0.5 + 0.25, 0.5)
    found = find_triage(Labelled(scores, label, np.arange(400)), scores, ALPHA, DELTA)
    assert isinstance(found, Triage)
    assert found.low <= found.high
    assert found.called_share == pytest.approx(0.9)


def test_perfect_scores_are_all_called():
    label = np.repeat([0, 1], [150, 150])
    scores = np.concatenate([np.linspace(0, 0.4, 150), np.linspace(0.6, 1, 150)])
    found = find_triage(Labelled(scores, label, np.arange(300)), scores, ALPHA, DELTA)
    assert isinstance(found, Triage)
    assert found.called_share == 1.0
    assert (found.normal.called, found.pneumonia.called) == (150, 150)
