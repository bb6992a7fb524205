"""Contact sheets of lungs: outlines lie on the edges of the lungs, in the colours that the heading names."""

import io

import numpy as np
from lung_shapes import LEFT, LUNGS, RIGHT
from PIL import Image

from pneumo_ray.anatomy.lungs import lungs_of
from pneumo_ray.anatomy.overlay import LEFT_COLOUR, OTHER_COLOUR, RIGHT_COLOUR, Overlay, draw_overlay, draw_overlays

GREY = np.full((128, 128), 90, np.uint8)


def coloured(canvas, colour):
    return (canvas == colour).all(axis=2)


def test_outlines_lie_on_the_edges_of_each_lung():
    canvas = draw_overlay(Overlay("a", GREY, lungs_of(LUNGS)))
    for mask, colour in ((RIGHT, RIGHT_COLOUR), (LEFT, LEFT_COLOUR)):
        line = coloured(canvas, colour)
        assert line.sum() > 100
        assert mask[line].all()
        inner = mask.copy()
        for axis in (0, 1):
            inner &= np.roll(mask, 3, axis) & np.roll(mask, -3, axis)
        assert not line[inner].any()


def test_implausible_masks_are_drawn_as_found():
    found = LUNGS[::-1].copy()
    canvas = draw_overlay(Overlay("a", GREY, lungs_of(found), found))
    assert coloured(canvas, OTHER_COLOUR).sum() > 100
    assert not coloured(canvas, RIGHT_COLOUR).any()


def test_sheets_are_png_of_any_number_of_images():
    for count in (0, 1, 7):
        sheet = draw_overlays(
            [Overlay("folder/" * 9 + "name.png", GREY[:100], lungs_of(RIGHT), RIGHT)] * count, "Lungs"
        )
        assert Image.open(io.BytesIO(sheet)).format == "PNG"
