"""How an image is fitted into the network's square input; reading it needs no OpenCV."""

from typing import Literal

Fit = Literal["squash", "pad", "lungs"]
"""`squash`: the whole image, resized to a square whatever its shape. `pad`: the whole image in its true shape, padded
with black. `lungs`: the lungs' box and a margin, in its true shape."""

MARGIN = 0.08
"""Margin around the lungs on each side, as a share of their box's longer true side."""
