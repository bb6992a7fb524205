"""Averages of masks over the cells of a window, against pixels counted one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lung_shapes import LUNGS, rectangle

from pneumo_ray.anatomy.frames import cell_means


def test_whole_cells_are_means_of_their_pixels():
    cells = cell_means(LUNGS, (4, 8))
    np.testing.assert_allclose(cells, LUNGS.reshape(4, 32, 8, 16).mean(axis=(1, 3)), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    window=st.tuples(st.integers(-8, 6), st.integers(-8, 6), st.integers(1, 20), st.integers(1, 20)),
)
def test_any_window_equals_counting_fine_pixels(size, window):
    """A window on a grid of 1/8 and cells on a grid of 1/420 of it: every small pixel lies in one cell and one pixel."""
    mask = np.random.default_rng(0).random((8, 8)) < 0.5
    x0, y0, width, height = window
    padded = np.zeros((48, 48), bool)
    padded[16:24, 16:24] = mask
    seen = padded[16 + y0 : 16 + y0 + height, 16 + x0 : 16 + x0 + width]
    h, w = size
    fine = np.kron(seen, np.ones((h, w)))  # each pixel in h x w parts, so that cells are whole numbers of parts
    expected = fine.reshape(h, height, w, width).mean(axis=(1, 3))
    actual = cell_means(mask, size, (x0 / 8, y0 / 8, (x0 + width) / 8, (y0 + height) / 8))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_stacks_of_masks_are_averaged_alike():
    masks = np.stack([LUNGS, rectangle(0, 0, 64, 64)])
    cells = cell_means(masks, (7, 7), (0.1, 0.1, 0.9, 0.8))
    np.testing.assert_array_equal(cells[0], cell_means(LUNGS, (7, 7), (0.1, 0.1, 0.9, 0.8)))


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="no area"):
        cell_means(LUNGS, (4, 4), (0.5, 0.0, 0.5, 1.0))
