import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.data.sampling import (
    BALANCE_MODES,
    effective_odds,
    epoch_plan,
    epoch_slots,
    positive_weight,
    virtual_copies,
)
from pneumo_ray.errors import ConfigError

PAPER = np.repeat(np.array([0, 1], dtype=np.int8), [1341, 3875])
labels_of_both = (
    st.lists(st.integers(0, 1), min_size=2, max_size=60)
    .filter(lambda labels: 0 < sum(labels) < len(labels))
    .map(lambda labels: np.array(labels, dtype=np.int8))
)
plans = settings(deadline=None, max_examples=60)
balances = st.sampled_from(BALANCE_MODES)


def plan(labels, balance, *, seed=0, epoch=0, batch_size=1):
    return epoch_plan(labels, balance=balance, seed=seed, epoch=epoch, batch_size=batch_size)


def pairs(table):
    return list(zip(table["row"].to_pylist(), table["copy"].to_pylist(), strict=True))


@given(labels_of_both, st.sampled_from(["none", "pos-weight"]), st.integers(1, 100))
@plans
def test_every_original_comes_once_before_the_fill(labels, balance, batch_size):
    table = plan(labels, balance, batch_size=batch_size)
    assert sorted(pairs(table)[: len(labels)]) == [(row, 0) for row in range(len(labels))]


@given(labels_of_both)
@plans
def test_copies_equal_the_classes_without_repeats(labels):
    drawn = pairs(plan(labels, "copies"))
    per_class = np.bincount(labels[[row for row, _ in drawn]], minlength=2)
    assert per_class[0] == per_class[1] == np.bincount(labels).max()
    assert len(set(drawn)) == len(drawn)
    assert {(row, 0) for row in range(len(labels))} <= set(drawn)


@given(labels_of_both)
@plans
def test_copies_are_spread_evenly_and_numbered_from_one(labels):
    rows, copies = virtual_copies(labels)
    minority = np.flatnonzero(labels == np.argmin(np.bincount(labels, minlength=2)))
    per_image = [sorted(copies[(rows == row) & (copies > 0)].tolist()) for row in minority]
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in per_image)
    assert max(map(len, per_image)) - min(map(len, per_image)) <= 1


def test_the_papers_1341_normal_images_become_3875():
    rows, copies = virtual_copies(PAPER)
    assert np.bincount(PAPER[rows]).tolist() == [3875, 3875]
    assert np.bincount(copies[PAPER[rows] == 0]).tolist() == [1341, 1341, 3875 - 2 * 1341]


@given(labels_of_both, balances, st.integers(1, 70), st.integers(0, 2**40), st.integers(0, 5))
@plans
def test_slots_continue_and_fill_whole_batches(labels, balance, batch_size, seed, epoch):
    tables = [plan(labels, balance, seed=seed, epoch=e, batch_size=batch_size) for e in (epoch, epoch + 1)]
    length = epoch_slots(labels, balance=balance, batch_size=batch_size)
    assert length % batch_size == 0
    assert [table.num_rows for table in tables] == [length, length]
    slots = np.concatenate([table["slot"].to_numpy() for table in tables])
    np.testing.assert_array_equal(slots, np.arange(epoch * length, (epoch + 2) * length))


@given(labels_of_both, balances, st.integers(1, 70))
@plans
def test_the_last_batch_wraps_around(labels, balance, batch_size):
    """With a batch of one nothing is filled; a larger batch repeats that order and adds less than a batch."""
    order, filled = pairs(plan(labels, balance)), pairs(plan(labels, balance, batch_size=batch_size))
    assert 0 <= len(filled) - len(order) < batch_size
    assert filled == (order * (batch_size + 1))[: len(filled)]


@pytest.mark.parametrize("balance", BALANCE_MODES)
def test_a_plan_depends_on_seed_and_epoch(balance):
    first = plan(PAPER, balance, seed=1, epoch=2)
    np.random.default_rng(0).random(100)
    assert first.equals(plan(PAPER.copy(), balance, seed=1, epoch=2))
    for other in (plan(PAPER, balance, seed=2, epoch=2), plan(PAPER, balance, seed=1, epoch=3)):
        same = np.mean([a == b for a, b in zip(pairs(first), pairs(other), strict=True)])
        assert same < 0.01


@pytest.mark.parametrize("balance", BALANCE_MODES)
def test_the_order_of_an_epoch_is_shuffled(balance):
    """In a shuffled order the class says nothing about the position: the rank correlation is within five deviations."""
    table = plan(PAPER, balance)
    is_pneumonia = PAPER[table["row"].to_numpy()]
    assert abs(np.corrcoef(np.arange(table.num_rows), is_pneumonia)[0, 1]) < 5 / np.sqrt(table.num_rows)


def test_columns_have_the_types_of_the_pipeline():
    schema = plan(PAPER, "copies").schema
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "slot": "uint64",
        "row": "int32",
        "copy": "int16",
    }


def test_effective_odds_are_those_of_the_papers_counts():
    """3875 / 1341 = 2.89 as found; 1 for any single correction; (1341 / 3875)^2 = 0.12 for all three at once."""
    odds = {balance: effective_odds(PAPER, balance) for balance in BALANCE_MODES}
    assert odds["none"] == pytest.approx(2.89, abs=0.005)
    assert odds["copies"] == odds["sampler"] == odds["pos-weight"] == 1.0
    assert odds["paper"] == pytest.approx(0.12, abs=0.001)
    assert positive_weight(PAPER, "paper") == positive_weight(PAPER, "pos-weight") == pytest.approx(0.346, abs=0.001)
    assert {positive_weight(PAPER, balance) for balance in ("none", "copies", "sampler")} == {1.0}


@pytest.mark.parametrize("balance", BALANCE_MODES)
@pytest.mark.parametrize("labels", [PAPER, 1 - PAPER], ids=["pneumonia larger", "normal larger"])
def test_sampled_odds_are_the_effective_odds(balance, labels):
    """Counted over 60 epochs: odds of the drawn classes, times the weight of the loss."""
    drawn = np.concatenate([labels[plan(labels, balance, epoch=e)["row"].to_numpy()] for e in range(60)])
    num_pneumonia = np.count_nonzero(drawn)
    odds = num_pneumonia / (len(drawn) - num_pneumonia) * positive_weight(labels, balance)
    assert odds == pytest.approx(effective_odds(labels, balance), rel=0.02)


@pytest.mark.parametrize("balance", ["sampler", "paper"])
def test_the_sampler_is_fair_within_a_class(balance):
    """Counts over many epochs are Poisson: their variance is their mean, for originals and copies alike."""
    labels = np.repeat(np.array([0, 1], dtype=np.int8), [100, 250])
    drawn = [pair for epoch in range(200) for pair in pairs(plan(labels, balance, epoch=epoch))]
    items, counts = np.unique(np.array(drawn), axis=0, return_counts=True)
    assert len(items) == (500 if balance == "paper" else 350)
    for label in (0, 1):
        of_class = counts[labels[items[:, 0]] == label]
        assert of_class.var() == pytest.approx(of_class.mean(), rel=0.5)


@pytest.mark.parametrize("balance", [mode for mode in BALANCE_MODES if mode != "none"])
@pytest.mark.parametrize(("label", "missing"), [(0, "pneumonia"), (1, "normal")])
def test_balancing_one_class_names_the_missing_one(balance, label, missing):
    labels = np.full(5, label, dtype=np.int8)
    for call in (effective_odds, positive_weight):
        with pytest.raises(ConfigError, match=f"no training image is {missing}"):
            call(labels, balance)
    with pytest.raises(ConfigError, match=f"no training image is {missing}"):
        plan(labels, balance)
    assert plan(labels, "none").num_rows == 5


@pytest.mark.parametrize(
    ("labels", "balance", "batch_size", "message"),
    [
        ([], "none", 1, "no training image"),
        ([0, 1, -1], "none", 1, "1 training rows have a label that is neither"),
        ([0, 1], "copy", 1, "choose one of copies, sampler"),
        ([0, 1], "none", 0, "at least 1, got 0"),
        ([0] + [1] * 40_000, "copies", 1, "39999 copies of 1 images"),
    ],
)
def test_an_impossible_plan_is_one_sentence(labels, balance, batch_size, message):
    with pytest.raises(ConfigError, match=message):
        plan(np.array(labels, dtype=np.int8), balance, batch_size=batch_size)
