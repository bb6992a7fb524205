"""Training examples: images and masks move together, counterexamples have empty masks, draws follow their slot."""

from typing import get_args

import numpy as np
import pytest
from lung_shapes import LUNGS, SIZE

from pneumo_ray.anatomy import examples
from pneumo_ray.anatomy.examples import Counterexample, counterexample, example

IMAGE = np.where(LUNGS, 40, 200).astype(np.uint8)
MASK = np.where(LUNGS, 255, 0).astype(np.uint8)


def test_examples_follow_seed_and_slot():
    first, again, other = (example(IMAGE, MASK, 1, slot) for slot in (7, 7, 8))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).mean() > 0.1


def test_masks_move_with_their_images(monkeypatch):
    """Lungs are dark in this image and stay darker than the rest under every warp, tone curve and noise."""
    monkeypatch.setattr(examples, "COUNTEREXAMPLE_SHARE", 0.0)
    monkeypatch.setattr(examples, "_AS_EXPOSED", 1.0)
    for slot in range(60):
        image, mask = example(IMAGE, MASK, 0, slot)
        middle = slice(24, SIZE - 24)  # a border that is filled with black is dark too
        inside, rest = (
            image[middle, middle][mask[middle, middle] > 250],
            image[middle, middle][mask[middle, middle] < 5],
        )
        assert inside.size > 0.05 * SIZE**2
        assert np.quantile(inside, 0.98) < np.quantile(rest, 0.2)


def test_share_of_counterexamples_is_as_stated():
    empty = [not example(IMAGE, MASK, 0, slot)[1].any() for slot in range(1500)]
    share = examples.COUNTEREXAMPLE_SHARE
    assert abs(np.mean(empty) - share) < 4 * np.sqrt(share * (1 - share) / 1500)


@pytest.mark.parametrize("kind", get_args(Counterexample))
def test_counterexamples_are_other_images(kind):
    made = counterexample(IMAGE, kind, np.random.default_rng(0))
    assert (made.dtype, made.shape) == (np.uint8, (SIZE, SIZE))
    assert (made != IMAGE).mean() > 0.1
