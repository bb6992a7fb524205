"""How an image is fitted into the network's square input; reading it needs no OpenCV."""

from typing import Literal

Fit = Literal["squash", "pad", "lungs", "lungs-squash"]
"""`squash`: the whole image, resized to a square whatever its shape. `pad`: the whole image in its true shape, padded
with black. `lungs`: the lungs' box and a margin, in its true shape. `lungs-squash`: the same box and a margin, resized to a
square whatever its shape, so that neither shape nor padding says how the image was framed."""

OF_LUNGS: tuple[Fit, ...] = ("lungs", "lungs-squash")
"""Those that need to know where the lungs are."""

AUTO: Fit = "lungs-squash"
"""Taken for `auto` where lungs are known."""

MARGIN = 0.08
"""Margin around the lungs on each side, as a share of their box's longer true side (of each side with `lungs-squash`)."""
