"""Single numbers as text; intervals are in test_tables.py."""

import pytest
from scipy.stats import binomtest

from pneumo_ray.evaluate.number_text import number_text, percent_text
from pneumo_ray.evaluate.tables import ends_text


@pytest.mark.parametrize(
    ("value", "decimals", "full", "text"),
    [
        (0.97708, 3, 1.0, "0.977"),
        (0.99988, 3, 1.0, "0.9999"),
        (1.0, 3, 1.0, "1.000"),
        (0.0004, 3, 1.0, "0.0004"),
        (0.0, 3, 1.0, "0.000"),
        (99.7, 0, 100.0, "99.7"),
        (0.4, 0, 1000.0, "0.4"),
        (None, 3, 1.0, "undefined"),
    ],
)
def test_no_number_is_rounded_to_certainty(value, decimals, full, text):
    assert number_text(value, decimals, full) == text


def test_no_percentage_is_rounded_to_certainty():
    shares = [(0.9996, 1), (0.996, 0), (0.0004, 1), (1.0, 0), (0.0, 1), (0.123, 0), (None, 1)]
    written = [percent_text(share, decimals) for share, decimals in shares]
    assert written == ["99.96 %", "99.6 %", "0.04 %", "100 %", "0.0 %", "12 %", "undefined"]


@pytest.mark.parametrize("images", [2_000, 20_000, 200_000])
def test_a_share_lies_in_its_printed_interval(images):
    """With one error of many the share was once printed as 1.000, above the upper end beside it."""
    exact = binomtest(images - 1, images).proportion_ci(0.95, method="exact")
    low, high = (float(end) for end in ends_text((exact.low, exact.high)).split(" to "))
    assert low <= float(number_text(1 - 1 / images)) <= high
