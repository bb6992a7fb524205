"""Sharpness and contrast of an image, for comparison with the errors of a model.

Both are measured at one size, because files differ in resolution: in a file k times as wide and
high the same chest has second differences k^2 times smaller, and their variance is k^4 times smaller. The aspect ratio is
kept, unlike in the model's input: squeezing wide images would sharpen them, and in the archive of Kermany
et al. 2018 the aspect ratio correlates with the class.
"""

import cv2
import numpy as np

from pneumo_ray.images.grey_levels import rms_contrast

SIDE = 256
"""The image is measured at `SIDE * SIDE` pixels in all, aspect kept: about what the model sees."""


def sharpness(image: np.ndarray) -> float:
    """Return the variance of the Laplacian, 0 for a flat image (LAPV of Pertuz et al. 2013, Pattern Recognition 46:1415).

    It grows with the square of the contrast, and noise counts as detail: compare images of similar contrast.

    Args:
        image: uint8 [H, W].

    Returns:
        Squared grey levels (of 255) per pixel^4 of the resized image.
    """
    # The outermost pixels have no neighbours on one side; what OpenCV makes up for them is not measured.
    curvature = cv2.Laplacian(_at_one_size(image), cv2.CV_32F)[1:-1, 1:-1]
    return float(curvature.var(dtype=np.float64)) if curvature.size else 0.0


def contrast(image: np.ndarray) -> float:
    """Return the RMS contrast: the standard deviation of the grey levels, white being 1 (Peli 1990, JOSA A 7:2032).

    Black borders and white markers count: a frame around a faint chest raises it.

    Args:
        image: uint8 [H, W].

    Returns:
        From 0 (flat) to 0.5 (half black, half white).
    """
    return rms_contrast(_at_one_size(image))


def _at_one_size(image: np.ndarray) -> np.ndarray:
    """Return the image with about `SIDE * SIDE` pixels, float32, so that no step of a grey level is added."""
    height, width = image.shape
    scale = SIDE / np.sqrt(height * width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Area averaging when shrinking, against aliasing; cubic when growing, because linear interpolation adds edges.
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image.astype(np.float32), size, interpolation=way)
