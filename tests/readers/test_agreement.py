"""Agreement of readers against statsmodels and krippendorff, by hand, and in simulated studies of known agreement."""

import krippendorff as peer
import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

from pneumo_ray.readers.agreement import Agreement, cohen, fleiss, krippendorff

NAN = np.nan


def votes_of(images: int, readers: int, missing: float, seed: int, prevalence: float = 0.4) -> np.ndarray:
    """Return votes of readers who see the class with errors of 10 to 30 %."""
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < prevalence
    wrong = rng.random((images, readers)) < np.linspace(0.1, 0.3, readers)
    votes = (truth[:, None] ^ wrong).astype(float)
    votes[rng.random(votes.shape) < missing] = NAN
    return votes


def alone(images: int) -> np.ndarray:
    return np.arange(images)


@pytest.mark.parametrize("seed", range(5))
def test_cohen_equals_statsmodels(seed):
    votes = votes_of(60, 2, 0.2, seed)
    found = cohen(votes, alone(60))
    both = votes[~np.isnan(votes).any(1)].astype(int)
    table = np.bincount(2 * both[:, 0] + both[:, 1], minlength=4).reshape(2, 2)
    theirs = cohens_kappa(table)
    assert found.coefficient.value == pytest.approx(theirs.kappa, abs=1e-12)
    assert found.observed.value == pytest.approx(np.trace(table) / table.sum(), abs=1e-12)
    assert found.images == len(both)


@pytest.mark.parametrize("readers", [2, 3, 7])
def test_fleiss_equals_statsmodels(readers):
    votes = votes_of(80, readers, 0.05, readers)
    found = fleiss(votes, alone(80))
    complete = votes[~np.isnan(votes).any(1)]
    table = np.stack([(complete == answer).sum(1) for answer in (0, 1)], 1)
    assert found.coefficient.value == pytest.approx(fleiss_kappa(table), abs=1e-12)
    assert found.images == len(complete)


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.7])
def test_krippendorff_equals_its_library(missing):
    votes = votes_of(80, 5, missing, 1)
    found = krippendorff(votes, alone(80))
    theirs = peer.alpha(votes.T, level_of_measurement="nominal")
    assert found.coefficient.value == pytest.approx(theirs, abs=1e-12)


def test_numbers_by_hand():
    """2 x 2 table 20, 5, 10, 15: observed 0.7, expected 0.5, kappa 0.4 (Cohen's example as in textbooks)."""
    cells = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    found = cohen(np.array(cells, float), alone(50))
    assert found.observed.value == pytest.approx(0.7)
    assert found.expected == pytest.approx(0.5)
    assert found.coefficient.value == pytest.approx(0.4)
    assert found.pabak.value == pytest.approx(0.4)
    assert found.positive == pytest.approx(40 / 55)
    assert found.negative == pytest.approx(30 / 45)


def test_a_rare_class_lowers_kappa_but_not_pabak():
    cells = [(1, 1)] * 2 + [(1, 0)] * 4 + [(0, 1)] * 4 + [(0, 0)] * 90
    found = cohen(np.array(cells, float), alone(100))
    assert found.observed.value == pytest.approx(0.92)
    assert found.pabak.value == pytest.approx(0.84)
    assert found.coefficient.value == pytest.approx((0.92 - (0.06**2 + 0.94**2)) / (1 - (0.06**2 + 0.94**2)))


@pytest.mark.parametrize("measure", [cohen, fleiss, krippendorff])
def test_without_variation_nothing_is_invented(measure):
    nothing: Agreement = measure(np.full((20, 2), NAN), alone(20))
    assert (nothing.images, nothing.observed.value, nothing.coefficient.value) == (0, None, None)
    same = measure(np.ones((20, 2)), alone(20))
    assert (same.observed.value, same.coefficient.value, same.pabak.value) == (1, None, 1)
    low = 0.025 ** (1 / 20)
    assert same.observed.interval == pytest.approx((low, 1))
    assert same.pabak.interval == pytest.approx((2 * low - 1, 1))


def test_few_patients_have_no_interval():
    votes = votes_of(100, 2, 0, 0)
    found = cohen(votes, np.arange(100) % 14)
    assert found.coefficient.interval is None
    assert found.observed.interval is None


@pytest.mark.parametrize("measure", [cohen, fleiss, krippendorff])
def test_intervals_hold_the_truth(measure):
    """Studies of patients with 1 to 4 images of one class; the truth is that of very many images."""
    rng = np.random.default_rng(0)
    readers = 2 if measure is cohen else 3

    def study(patients: int) -> tuple[np.ndarray, np.ndarray]:
        patient_of = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
        hard, ill = rng.random(patients) < 0.3, rng.random(patients) < 0.5
        wrong = rng.random((len(patient_of), readers)) < np.where(hard, 0.4, 0.05)[patient_of, None]
        votes = (ill[patient_of, None] ^ wrong).astype(float)
        if measure is krippendorff:
            votes[rng.random(votes.shape) < 0.3] = NAN
        return votes, patient_of

    truth = measure(*study(200_000))
    held = np.zeros(3)
    for _ in range(400):
        found = measure(*study(60))
        for k, name in enumerate(("observed", "coefficient", "pabak")):
            low, high = getattr(found, name).interval
            held[k] += low <= getattr(truth, name).value <= high
    assert (held / 400 > 0.92).all()
    assert (held / 400 < 0.99).all()
