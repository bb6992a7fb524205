"""The threshold of a site by group: counts by hand, and groups that differ are named."""

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from pneumo_ray.site.groups import differing, groups_at
from pneumo_ray.site.labels import Labelled


def _site(missed: int, alarms: int) -> tuple[Labelled, pa.Array]:
    """40 AP and 40 PA images, half of each with pneumonia; of the PA ones some are missed, of the AP ones some are false alarms."""
    label = np.tile([0, 1], 40)
    view = np.repeat(["AP", "PA"], 40)
    prob = np.where(label == 1, 0.9, 0.1)
    prob[np.flatnonzero((view == "PA") & (label == 1))[:missed]] = 0.2
    prob[np.flatnonzero((view == "AP") & (label == 0))[:alarms]] = 0.8
    return Labelled(prob, label, np.arange(80)), pa.array(view.tolist())


def test_groups_are_counted_by_hand():
    data, view = _site(3, 5)
    found = groups_at(data, {"view_position": view, "sex": pa.array(["F"] * 80)}, 0.5, 0)
    assert [(group.column, group.value) for group in found] == [("view_position", "AP"), ("view_position", "PA")]
    assert [(group.sensitivity.found, group.sensitivity.of) for group in found] == [(20, 20), (17, 20)]
    assert [(group.specificity.found, group.specificity.of) for group in found] == [(15, 20), (20, 20)]
    other = binomtest(15, 20).proportion_ci(0.95, method="exact")
    assert np.allclose([found[0].specificity.low, found[0].specificity.high], other, atol=1e-12)


def test_a_patient_counts_once_in_a_group():
    data, view = _site(0, 0)
    twice = Labelled(data.prob, data.label, data.patient_of // 4)
    assert [group.sensitivity.of for group in groups_at(twice, {"view": view}, 0.5, 0)] == [10, 10]


def test_unknown_values_are_no_group():
    data, view = _site(0, 0)
    some = pa.array([value if value == "AP" or row % 4 < 2 else None for row, value in enumerate(view.to_pylist())])
    found = groups_at(data, {"view": some}, 0.5, 0)
    assert [(group.value, group.sensitivity.of) for group in found] == [("AP", 20), ("PA", 10)]


def test_groups_differ_where_intervals_part():
    """Exact 95 % intervals: 20 of 20 begins at 0.832; 13 of 20 ends at 0.846 and 12 of 20 at 0.809."""
    alike, view = _site(7, 0)
    assert differing(groups_at(alike, {"view": view}, 0.5, 0)) == []
    apart, view = _site(8, 0)
    ((measure, low, high),) = differing(groups_at(apart, {"view": view}, 0.5, 0))
    assert (measure, low.value, high.value) == ("sensitivity", "PA", "AP")
