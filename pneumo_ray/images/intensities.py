"""Grey levels changed by one table of 256 entries per image, for any number of operations.

Brightness and contrast are those of arXiv 2507.18647; tone is what differs between detectors and their processing: a
power of the grey level, and a random monotone curve.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Grey = NDArray[np.uint8]

NUM_KNOTS = 8
"""Pieces of equal width of the monotone curve."""


@dataclass(frozen=True)
class Stage:
    """One change of the grey levels of n images: tone first, then brightness, then contrast about the mean."""

    brightness: Floats
    """[n], factors."""
    contrast: Floats
    """[n], factors of the distance from the mean."""
    power: Floats | None = None
    """[n], of the grey level as a fraction of full scale; None changes nothing."""
    steepness: Floats | None = None
    """[n, NUM_KNOTS], logarithms of the slopes of the monotone curve, up to a factor that makes it end at full scale."""

    @property
    def changes(self) -> bool:
        """Whether any image is changed."""
        tones = (self.power is not None and np.any(self.power != 1)) or (
            self.steepness is not None and np.any(self.steepness != 0)
        )
        return bool(tones or np.any(self.brightness != 1) or np.any(self.contrast != 1))


def intensity_tables(histograms: Floats, stages: list[Stage]) -> Grey:
    """Return the tables that apply some stages, one after the other.

    The means come from the histograms, so no image is touched between the stages; rounding is done once.

    Args:
        histograms: [n, 256], pixels of each grey level.
        stages: what to do.

    Returns:
        uint8 [n, 256]; an image's table does not depend on the other images.
    """
    counts = histograms.sum(axis=1, keepdims=True)
    levels = np.tile(np.arange(256.0), (len(histograms), 1))
    for stage in stages:
        if stage.power is not None and np.any(stage.power != 1):
            changed = 255 * (levels / 255) ** stage.power[:, None]
            levels = np.where(stage.power[:, None] == 1, levels, changed)
        if stage.steepness is not None and np.any(stage.steepness != 0):
            changed = np.stack(
                [monotone_curve(row, slopes) for row, slopes in zip(levels, stage.steepness, strict=True)]
            )
            levels = np.where(np.any(stage.steepness != 0, axis=1, keepdims=True), changed, levels)
        levels = np.minimum(stage.brightness[:, None] * levels, 255)
        mean = (histograms * levels).sum(axis=1, keepdims=True) / counts
        # In this form a contrast of 1 changes no bit, so an image's table does not depend on its batch's stages.
        levels = np.clip(stage.contrast[:, None] * levels + (1 - stage.contrast[:, None]) * mean, 0, 255)
    return np.rint(levels).astype(np.uint8)


def monotone_curve(levels: Floats, steepness: Floats) -> Floats:
    """Return grey levels on a rising curve of straight pieces that keeps black and white.

    The result is an equalisation towards a random histogram: where the curve is steep, contrast is raised.

    Args:
        levels: [m], 0 to 255.
        steepness: [NUM_KNOTS], logarithms of the pieces' slopes, up to a common factor; zeros are the identity.

    Returns:
        [m], 0 to 255.
    """
    heights = np.concatenate([[0.0], np.cumsum(np.exp(steepness))])
    knots = np.linspace(0, 255, NUM_KNOTS + 1)
    curve: Floats = np.interp(levels, knots, 255 * heights / heights[-1])
    return curve
