"""Soft labels: read from a manifest, and balanced by the expected class; hard labels are their special case."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.data.manifest import SCHEMA
from pneumo_ray.data.sampling import (
    BALANCE_MODES,
    effective_odds,
    epoch_plan,
    epoch_slots,
    positive_weight,
    virtual_copies,
)
from pneumo_ray.data.soft_labels import SoftLabels, soft_fingerprint, soft_labels
from pneumo_ray.errors import ConfigError, ManifestError

opinions = (
    st.lists(st.tuples(st.sampled_from([0, 0.1, 0.25, 1 / 3, 0.5, 0.8, 1]), st.floats(0.1, 2)), min_size=4, max_size=40)
    .map(lambda rows: np.array([(0, 1), (1, 1), *rows], float).T)
    .map(lambda columns: SoftLabels(columns[0], columns[1] / columns[1].mean()))
)
quick = settings(deadline=None, max_examples=60)


def plan(labels, balance, *, seed=0, epoch=0, batch_size=1):
    return epoch_plan(labels, balance=balance, seed=seed, epoch=epoch, batch_size=batch_size)


def odds_of(labels: SoftLabels, rows: np.ndarray) -> float:
    """Return the expected pneumonia over the expected normal of drawn rows."""
    weight, target = labels.weight[rows], labels.target[rows]
    return float((weight * target).sum() / (weight * (1 - target)).sum())


def manifest(**columns) -> pa.Table:
    rows = [{"image_id": f"{k}.png", "status": "ok", "label": k % 2} for k in range(4)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def test_rows_without_an_opinion_have_their_label():
    found = soft_labels(manifest(label_soft=[0.25, None, None, 0.5], label_weight=[0.5, None, 1.0, 1.5]), "m")
    assert found.target.tolist() == [0.25, 1, 0, 0.5]
    assert found.weight.tolist() == [0.5, 1, 1, 1.5]
    assert found.masses == pytest.approx((0.375 + 0 + 1 + 0.75, 0.125 + 1 + 0 + 0.75))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "no column label_soft"),
        ({"label_soft": [0.0, 1.0, 1.5, 0.0]}, "outside 0 to 1"),
        ({"label_soft": [0.0, 1.0, float("nan"), 0.0]}, "outside 0 to 1"),
        ({"label_soft": [0.0] * 4, "label_weight": [1.0, -1.0, 1.0, 1.0]}, "below 0"),
        ({"label_soft": [0.0] * 4, "label_weight": [0.0] * 4}, "the weight 0"),
    ],
)
def test_opinions_that_are_none_are_refused(columns, words):
    with pytest.raises(ManifestError, match=words):
        soft_labels(manifest(**columns), "m")


def test_the_fingerprint_knows_every_opinion():
    prints = {
        soft_fingerprint(manifest(label_soft=[0.0, 1.0, soft, 1.0], label_weight=[1.0, 1.0, 1.0, weight]))
        for soft in (0.0, 0.5)
        for weight in (0.5, 1.0)
    }
    assert len(prints) == 4


@given(st.lists(st.integers(0, 1), min_size=2, max_size=60).filter(lambda x: 0 < sum(x) < len(x)))
@quick
def test_opinions_of_0_and_1_are_hard_labels(labels):
    hard = np.array(labels, np.int8)
    soft = SoftLabels(hard.astype(float), np.ones(len(hard)))
    for balance in BALANCE_MODES:
        assert positive_weight(soft, balance) == positive_weight(hard, balance)
        assert effective_odds(soft, balance) == pytest.approx(effective_odds(hard, balance), rel=1e-12)
        assert epoch_slots(soft, balance=balance, batch_size=7) == epoch_slots(hard, balance=balance, batch_size=7)
        if balance in ("none", "pos-weight", "copies"):
            assert plan(soft, balance, batch_size=7) == plan(hard, balance, batch_size=7)
    assert all((a == b).all() for a, b in zip(virtual_copies(soft), virtual_copies(hard), strict=True))


def test_the_sampler_expects_both_classes_equally():
    """Each image as often as in very many draws."""
    target = np.array([0, 1, 0.1, 0.8, 0.5, 1 / 3, 0.9, 1, 1, 0.8])
    labels = SoftLabels(target, np.linspace(0.5, 1.5, len(target)))
    drawn = np.concatenate([plan(labels, "sampler", epoch=e)["row"].to_numpy() for e in range(3000)])
    assert odds_of(labels, np.arange(len(target))) > 1.5
    assert odds_of(labels, drawn) == pytest.approx(1, abs=0.03)
    assert set(drawn.tolist()) == set(range(len(target)))


@given(opinions)
@quick
def test_positive_weight_makes_the_odds_one(labels):
    rows = plan(labels, "pos-weight")["row"].to_numpy()
    assert odds_of(labels, rows) * positive_weight(labels, "pos-weight") == pytest.approx(1)
    assert odds_of(labels, rows) == pytest.approx(effective_odds(labels, "none"))


@given(opinions)
@quick
def test_copies_bring_the_odds_to_one(labels):
    rows, copies = virtual_copies(labels)
    assert (rows[: len(labels)] == np.arange(len(labels))).all()
    made = rows[copies > 0]
    smaller = labels.masses[0] > labels.masses[1]
    assert ((labels.target[made] > 0.5) == smaller).all()
    normal, pneumonia = (np.sum((labels.weight * mass)[rows]) for mass in (1 - labels.target, labels.target))
    assert abs(normal - pneumonia) <= labels.weight.max() * (1 + np.count_nonzero(labels.target != 0.5) / 2)


def test_labels_that_cannot_be_balanced_are_refused():
    doubtful = SoftLabels(np.array([0.4, 0.4, 0.45]), np.ones(3))
    with pytest.raises(ConfigError, match="too doubtful for --balance sampler"):
        plan(doubtful, "sampler")
    with pytest.raises(ConfigError, match="more likely pneumonia than not"):
        plan(doubtful, "copies")
    assert effective_odds(doubtful, "pos-weight") == 1
    with pytest.raises(ConfigError, match="needs both classes"):
        plan(SoftLabels(np.zeros(3), np.ones(3)), "sampler")
