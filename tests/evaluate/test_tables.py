"""Numbers as text: what is printed must not say more than what was found."""

import pytest
from scipy.stats import binomtest

from pneumo_ray.evaluate.tables import ends_text


@pytest.mark.parametrize(
    ("interval", "decimals", "full", "text"),
    [
        ((0.9708, 0.99988), 3, 1.0, "0.971 to 0.9999"),
        ((0.953, 1.0), 3, 1.0, "0.953 to 1.000"),
        ((0.0, 0.0004), 3, 1.0, "0.000 to 0.0004"),
        ((-0.0002, 0.031), 3, 1.0, "-0.0002 to 0.031"),
        ((12.34, 99.98), 1, 100.0, "12.3 to 99.98"),
        ((0.5, 1 - 1e-9), 3, 1.0, "0.500 to 1.000"),
    ],
)
def test_no_end_is_rounded_to_certainty(interval, decimals, full, text):
    assert ends_text(interval, decimals, full) == text


@pytest.mark.parametrize("images", [195, 2_000, 20_000])
def test_an_error_seen_leaves_one_out(images):
    exact = binomtest(images - 1, images).proportion_ci(0.95, method="exact")
    assert not ends_text((exact.low, exact.high)).endswith("1.000")
