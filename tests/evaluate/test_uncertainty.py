import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumo_ray.evaluate.uncertainty import error_detection, max_prob_uncertainty, referral_table, risk_coverage


def test_error_detection_spans_chance_to_perfect():
    wrong = np.array([False, True, False, True])
    assert error_detection(np.array([0.1, 0.9, 0.2, 0.8]), wrong) == 1.0
    assert error_detection(np.ones(4), wrong) == 0.5
    assert error_detection(np.ones(4), np.zeros(4, bool)) is None


def test_risk_coverage_by_hand():
    """Errors at the second and fourth most certain: risks 0, 1/2, 1/3, 1/2."""
    curve = risk_coverage(np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, True]))
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_curves_end_at_the_error_rate(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    curves = [risk_coverage(*(np.array(column) for column in zip(*rows, strict=True))) for rows in (pairs, shuffled)]
    assert np.allclose(curves[0].risk, curves[1].risk)
    assert curves[0].risk[-1] == pytest.approx(np.mean([wrong for _, wrong in pairs]))


def test_referring_the_uncertain_leaves_the_certain():
    prob = np.array([0.05, 0.1, 0.45, 0.55, 0.9, 0.95])
    label = np.array([0, 0, 1, 0, 1, 1])
    everyone, rest = referral_table(max_prob_uncertainty(prob), label, prob, 0.5, shares=(0.0, 1 / 3))
    assert (everyone.kept.accuracy, everyone.errors_referred) == (pytest.approx(4 / 6), 0.0)
    assert (rest.kept.accuracy, rest.errors_referred, rest.kept.n) == (1.0, 1.0, 4)
