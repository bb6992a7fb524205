import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pneumo_ray.images.framing import MARGIN, WHOLE, Shape, enlarged, framed, in_window, upsampling, window_of

SHAPES = st.builds(Shape, st.integers(32, 4000), st.integers(32, 4000))


@st.composite
def boxes(draw) -> tuple[float, float, float, float]:
    x0, y0 = draw(st.floats(0, 0.8)), draw(st.floats(0, 0.8))
    return (x0, y0, x0 + draw(st.floats(0.1, 1 - x0)), y0 + draw(st.floats(0.1, 1 - y0)))


def true_sides(window, shape: Shape) -> tuple[float, float]:
    return (window[2] - window[0]) * shape.width, (window[3] - window[1]) * shape.height


@given(SHAPES, boxes())
def test_windows_are_square_in_true_pixels(shape, box):
    for fit in ("pad", "lungs"):
        width, height = true_sides(window_of(fit, shape, box), shape)
        assert width == pytest.approx(height)


@given(SHAPES, boxes())
def test_the_lung_window_holds_box_and_margin(shape, box):
    window = window_of("lungs", shape, box)
    width, height = true_sides(box, shape)
    assert true_sides(window, shape)[0] == pytest.approx((1 + 2 * MARGIN) * max(width, height))
    inside = in_window(box, window)
    room = MARGIN / (1 + 2 * MARGIN)
    assert min(inside[:2]) == pytest.approx(room)
    assert max(inside[2:]) == pytest.approx(1 - room)
    assert (inside[0] + inside[2]) / 2 == pytest.approx(0.5)


@given(SHAPES, boxes())
def test_a_squashed_window_has_side_margins(shape, box):
    inside = in_window(box, window_of("lungs-squash", shape, box))
    room = MARGIN / (1 + 2 * MARGIN)
    assert inside == pytest.approx((room, room, 1 - room, 1 - room))
    assert window_of("lungs-squash", shape, None) == WHOLE


@given(SHAPES)
def test_padding_shows_the_whole_image(shape):
    inside = in_window(WHOLE, window_of("pad", shape, None))
    assert min(inside) == pytest.approx(0)
    assert max(inside) == pytest.approx(1)
    assert window_of("lungs", shape, None) == window_of("pad", shape, None)


def test_squashing_ignores_shape_and_lungs():
    assert window_of("squash", Shape(2000, 1000), (0.2, 0.2, 0.8, 0.8)) == WHOLE


def test_the_whole_image_at_its_size_is_unchanged():
    square = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    np.testing.assert_array_equal(framed(square, WHOLE, 64), square)


@pytest.mark.parametrize(("x0", "y0", "side"), [(0, 0, 32), (8, 16, 32), (-16, -8, 64), (40, 40, 40)])
def test_a_window_of_whole_pixels_is_a_copy(x0, y0, side):
    square = np.random.default_rng(1).integers(1, 256, (64, 64), np.uint8)
    window = (x0 / 64, y0 / 64, (x0 + side) / 64, (y0 + side) / 64)
    padded = np.zeros((192, 192), np.uint8)
    padded[64:128, 64:128] = square
    expected = padded[64 + y0 : 64 + y0 + side, 64 + x0 : 64 + x0 + side]
    np.testing.assert_array_equal(framed(square, window, side), expected)


def test_a_squashed_circle_is_round_again():
    """A circle in an image of 2 : 1 is an ellipse in the square, and a circle in the padded input."""
    rows, columns = np.indices((256, 256))
    square = np.where(((columns - 127.5) / 40) ** 2 + ((rows - 127.5) / 80) ** 2 <= 1, 255, 0).astype(np.uint8)
    shown = framed(square, window_of("pad", Shape(2000, 1000), None), 256) > 127
    width, height = shown.any(0).sum(), shown.any(1).sum()
    assert width == pytest.approx(height, abs=2)


@given(st.builds(Shape, st.integers(600, 1500), st.integers(600, 1500)), boxes(), st.integers(64, 160))
def test_a_box_arrives_at_its_window(shape, box, size):
    edges = [round(edge * 128) for edge in box]
    square = np.zeros((128, 128), np.uint8)
    square[edges[1] : edges[3], edges[0] : edges[2]] = 255
    window = enlarged(window_of("lungs", shape, box), 8 / 7)
    shown = framed(square, window, size) > 127
    expected = np.array(in_window(tuple(edge / 128 for edge in edges), window)) * size
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    # A pixel of the result, and half a pixel of the square to which the window is rounded.
    across, down = (size / 128 / (window[i + 2] - window[i]) for i in (0, 1))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    np.testing.assert_array_less(np.abs(found - expected), 1.5 + np.array([across, down] * 2))


def test_a_window_beside_the_image_is_refused():
    with pytest.raises(ValueError, match="nothing of the image"):
        framed(np.zeros((8, 8), np.uint8), (1.0, 0.0, 2.0, 1.0), 8)


@pytest.mark.parametrize(("cells", "size"), [(7, 224), (7, 7), (14, 33), (7, 3), (1, 5), (3, 1)])
def test_upsampling_is_that_of_torch(cells, size):
    rows = np.random.default_rng(cells).random((4, cells)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(rows)[None], size=size, mode="linear")[0].numpy()
    assert np.abs(rows @ upsampling(cells, size).T - expected).max() < 1e-6
