"""Random numbers addressed by (seed, stream, counter), so that a draw never depends on what was drawn before it.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) used as a
hash of a counter: any row can be computed alone, in any order, on any worker, with the same result. Draws per pixel
come from numpy's Philox, itself counter-based, under a key made here.
"""

import functools
import hashlib
import math

import cv2
import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def image_key(content_sha256: str) -> int:
    """Return the number, uint64, that keys the draws of one image's copies: it follows its content, not its row."""
    return int(content_sha256[:16], 16)


def stream_key(seed: int, stream: str) -> int:
    """Return the 64-bit key of one named stream of one seed, the same on every machine and in every process.

    Args:
        seed: any integer.
        stream: what the numbers are for; streams of different names are independent.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def random_bits(seed: int, stream: str, counters: UInt64s, num: int) -> UInt64s:
    """Return `num` random 64-bit words for every counter.

    Args:
        seed: any integer.
        stream: what the numbers are for; streams of different names are independent.
        counters: uint64 [n], for example slots.
        num: words per counter. Word k of a counter is the same whatever `num` is.

    Returns:
        uint64 [n, num].
    """
    rows = combine(np.uint64(stream_key(seed, stream)), counters)
    columns = np.arange(1, num + 1, dtype=np.uint64) * _GOLDEN_GAMMA
    return _mix(rows[:, None] + columns)


def uniforms(seed: int, stream: str, counters: UInt64s, num: int) -> NDArray[np.float64]:
    """Return `num` independent uniform numbers in [0, 1) for every counter.

    Args:
        seed: any integer.
        stream: what the numbers are for; streams of different names are independent.
        counters: uint64 [n], for example slots.
        num: numbers per counter. Column k of a counter is the same whatever `num` is.

    Returns:
        float64 [n, num], multiples of 2^-53.
    """
    return (random_bits(seed, stream, counters, num) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def combine(first: UInt64s | np.uint64, second: UInt64s | np.uint64) -> UInt64s:
    """Hash pairs of counters into one counter each, for draws that are keyed by two things.

    Args:
        first: uint64, broadcast against `second`.
        second: uint64, broadcast against `first`.

    Returns:
        uint64 of the broadcast shape; combine(a, b) and combine(b, a) differ.
    """
    return _mix(_mix(np.atleast_1d(first)) + np.atleast_1d(second) * _GOLDEN_GAMMA)


def gaussian_levels(key: np.uint64, shape: tuple[int, ...], sigma: float) -> NDArray[np.int16]:
    """Return Gaussian noise in grey levels, already rounded: 16 random bits per pixel, through a table of quantiles.

    Args:
        key: key of the image's noise.
        shape: shape of the result.
        sigma: standard deviation as a fraction of full scale, above 0.

    Returns:
        int16 of that shape; added to 8-bit grey levels it is their sum with the noise, rounded once.
    """
    num_pixels = math.prod(shape)
    words = np.random.Philox(key=np.array([key, 0], dtype=np.uint64)).random_raw(-(-num_pixels // 4))
    return _level_quantiles(sigma).take(words.view(np.uint16)[:num_pixels]).reshape(shape)


def smooth_field(key: np.uint64, shape: tuple[int, ...], sigma: float) -> NDArray[np.float32]:
    """Return two smooth random fields: uniform noise through a Gaussian filter, then scaled (Simard et al., 2003).

    Args:
        key: key of the image's fields.
        shape: rows and columns.
        sigma: standard deviation of the filter, in pixels.

    Returns:
        float32 [2, rows, columns], each field with a root mean square of 1.
    """
    words = np.random.Philox(key=np.array([key, 1], dtype=np.uint64)).random_raw(2 * math.prod(shape))
    noise = (words >> np.uint64(40)).astype(np.float32).reshape(2, *shape) * np.float32(2.0**-23) - 1
    fields = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in noise])
    return fields / np.sqrt(np.square(fields).mean(axis=(1, 2), keepdims=True))


@functools.lru_cache(maxsize=8)
def _level_quantiles(sigma: float) -> NDArray[np.int16]:
    """Return 65,536 levels among which level k is as frequent as a Gaussian of 255 * sigma that rounds to k."""
    levels = np.arange(-255, 256, dtype=np.int16)
    below = [0.5 * (1 + math.erf((level + 0.5) / (255 * sigma * math.sqrt(2)))) for level in levels[:-1].tolist()]
    edges = np.rint(65536 * np.array([0.0, *below, 1.0])).astype(np.int64)
    return np.repeat(levels, np.diff(edges))


def _mix(words: UInt64s) -> UInt64s:
    """The finaliser of SplitMix64, a bijection of the 64-bit words (arithmetic modulo 2^64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
