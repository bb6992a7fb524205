import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pneumo_ray.images.rng import (
    _GOLDEN_GAMMA,
    _mix,
    combine,
    gaussian_levels,
    random_bits,
    smooth_field,
    stream_key,
    uniforms,
)

N = 200_000
SLOTS = np.arange(N, dtype=np.uint64)


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return uniforms(7, "augment", SLOTS, 4)


def test_splitmix64_reproduces_the_published_sequence():
    """The first outputs of SplitMix64 seeded with 1234567 (Vigna's reference C code, as listed on Rosetta Code)."""
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * _GOLDEN_GAMMA
    assert _mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_fill_the_half_open_interval(table):
    """Kolmogorov-Smirnov against U(0, 1) for every column, with counters as regular as counters can be."""
    assert table.min() >= 0
    assert table.max() < 1
    for column in table.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4


def test_uniforms_of_neighbouring_slots_and_columns_are_uncorrelated(table):
    """Under independence a sample correlation has standard deviation 1 / sqrt(n): five of them is the bound."""
    pairs = [(table[:-lag, i], table[lag:, i]) for i in range(4) for lag in (1, 2, 64)]
    pairs += [(table[:, i], table[:, j]) for i in range(4) for j in range(i)]
    pairs += [(table[1:, i], table[:-1, j]) for i in range(4) for j in range(4) if i != j]
    for first, second in pairs:
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(N)


def test_pairs_of_columns_fill_the_square_evenly(table):
    """Chi-squared over a 32 x 32 grid sees dependence that correlation cannot."""
    for i, j in ((0, 1), (2, 3), (0, 3)):
        counts = np.histogram2d(table[:, i], table[:, j], bins=32, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_every_bit_is_fair_and_avalanches():
    """Avalanche: changing one bit of the counter changes each output bit with probability one half."""
    bits = random_bits(0, "s", SLOTS[:20_000], 1)[:, 0]
    for position in (0, 1, 17, 40, 63):
        changed = bits ^ random_bits(0, "s", SLOTS[:20_000] ^ np.uint64(1 << position), 1)[:, 0]
        share = np.unpackbits(changed.view(np.uint8)).reshape(-1, 64).mean(axis=0)
        assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)


def test_streams_and_seeds_are_unrelated():
    reference = uniforms(0, "augment", SLOTS, 1)[:, 0]
    for seed, stream in ((1, "augment"), (0, "copy"), (-1, "augment"), (2**70, "augment")):
        other = uniforms(seed, stream, SLOTS, 1)[:, 0]
        assert abs(np.corrcoef(reference, other)[0, 1]) < 5 / np.sqrt(N)


@given(st.integers(), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(1, 5), st.randoms())
@settings(deadline=None, max_examples=30)
def test_draws_depend_on_counter_and_column_only(seed, counters, num, random):
    counters = np.array(counters, dtype=np.uint64)
    order = np.array(random.sample(range(len(counters)), len(counters)))
    whole = uniforms(seed, "s", counters, 5)
    np.testing.assert_array_equal(uniforms(seed, "s", counters[order], num), whole[order, :num])


def test_stream_keys_are_equal_across_processes():
    """Python's own hash of a string is salted per process; a resumed run must draw what the first one did."""
    code = "from pneumo_ray.images.rng import stream_key; print(stream_key(3, 'copy'))"
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt}
        printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        assert int(printed) == stream_key(3, "copy")


@pytest.mark.parametrize("stride", [1, 0x9E3779B97F4A7C15])
def test_combined_keys_do_not_collide_on_a_grid(stride):
    """(a, b) and (b, a) included, and keys that step by the generator's own increment."""
    first, second = np.meshgrid(np.arange(300, dtype=np.uint64) * np.uint64(stride), np.arange(300, dtype=np.uint64))
    assert len(np.unique(combine(first, second))) == first.size


@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.1])
def test_noise_levels_are_a_rounded_gaussian(sigma):
    """Frequencies of the levels against the Gaussian's mass between half levels, by chi-squared."""
    noise = gaussian_levels(np.uint64(5), (700, 700), sigma).ravel()
    reach = int(np.ceil(3 * 255 * sigma))
    edges = np.concatenate([[-np.inf], np.arange(-reach, reach) + 0.5, [np.inf]])
    expected = np.diff(stats.norm.cdf(edges, scale=255 * sigma)) * noise.size
    observed = np.histogram(np.clip(noise, -reach, reach), bins=np.arange(-reach, reach + 2) - 0.5)[0]
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4


def test_noise_is_white_and_differs_between_keys():
    first, second = (gaussian_levels(np.uint64(key), (300, 300), 0.02).astype(float) for key in (1, 2))
    bound = 5 / 300
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < bound
    assert abs(np.corrcoef(first[:, 1:].ravel(), first[:, :-1].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(first[1:].ravel(), first[:-1].ravel())[0, 1]) < bound


def test_a_smooth_field_has_its_filters_correlation():
    """White noise through a Gaussian of sigma s has autocorrelation exp(-d^2 / 4 s^2) at distance d."""
    fields = smooth_field(np.uint64(1), (400, 400), 4.0)
    np.testing.assert_allclose(np.square(fields).mean(axis=(1, 2)), 1, rtol=1e-5)
    inner = fields[:, 20:-20, 20:-20]
    for distance in (4, 8):
        correlation = (inner[:, :, distance:] * inner[:, :, :-distance]).mean() / np.square(inner).mean()
        assert correlation == pytest.approx(np.exp(-(distance**2) / (4 * 4.0**2)), abs=0.08)
