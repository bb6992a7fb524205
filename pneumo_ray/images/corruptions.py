"""Corrupted and partly blackened images, for tests of robustness and of shortcuts.

Noise, blur, JPEG and contrast are the first three of the five severities of Hendrycks and Dietterich 2019 (ImageNet-C,
arXiv 1903.12261, defined for 224 pixels); the last two leave a radiograph unreadable for people too. Gamma and
rotation are defined here. Blackening tests for shortcuts (DeGrave, Janizek and Lee 2021, Nature Machine
Intelligence 3, 610): a model that separates the classes without the lungs uses something else.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumo_ray.images.rng import gaussian_levels, stream_key

Grey = NDArray[np.uint8]

SEVERITIES = {
    "noise": (0.08, 0.12, 0.18),
    "blur": (1.0, 2.0, 3.0),
    "jpeg": (25, 18, 15),
    "contrast": (0.4, 0.3, 0.2),
    "gamma": (1.25, 1.5, 2.0),
    "rotation": (5.0, 10.0, 20.0),
}
"""The setting at severity 1, 2 and 3; described in `SETTINGS`."""

SETTINGS = {
    "as_it_is": "the unchanged input of the model",
    "noise": "Gaussian noise with a standard deviation of {:g} of full scale",
    "blur": "Gaussian blur with a standard deviation of {:g} pixels in 224",
    "jpeg": "compressed as JPEG of quality {:g}",
    "contrast": "differences from the mean grey level times {:g}",
    "gamma": "grey level to the power of {:g} or of its inverse, drawn per image",
    "rotation": "rotated by {:g} degrees in either direction, drawn per image",
    "lungs_black": "the lungs blackened",
    "only_lungs": "everything but the lungs blackened",
    "corners_black": "four corners blackened, where side markers are",
}

CENTRAL_BOX = (0.05, 0.05, 0.95, 0.85)
"""x0, y0, x1, y1 as fractions of the image, for images whose lungs are not known.
It contains nearly all of the lungs of Kermany's radiographs (checked on the mean of 400 of each class), which fill the
width of the image and end above its lower edge. It also contains the heart and part of the flanks."""

CORNER = 0.15
"""Side of a blackened corner, as a fraction of the image's side."""


@dataclass(frozen=True)
class Condition:
    """A change that is applied to every image."""

    name: str
    """A key of `SETTINGS`."""
    severity: int = 0
    """1 mild to 3 strong; 0 for a condition without severities."""

    @property
    def description(self) -> str:
        """The change, in words."""
        return SETTINGS[self.name].format(self._setting)

    @property
    def _setting(self) -> float:
        return SEVERITIES[self.name][self.severity - 1] if self.severity else 0.0


AS_IT_IS = Condition("as_it_is")

CONDITIONS = (
    AS_IT_IS,
    *(Condition(name, severity) for name in SEVERITIES for severity in (1, 2, 3)),
    Condition("lungs_black"),
    Condition("only_lungs"),
    Condition("corners_black"),
)
"""All conditions, the unchanged image first."""


def apply_condition(
    image: Grey,
    condition: Condition,
    image_id: str,
    seed: int,
    lungs: tuple[int, int, int, int] | NDArray[np.bool_] | None = None,
) -> Grey:
    """Return an image under a condition.

    Noise and sides are drawn from (seed, image_id), so they depend on neither order nor worker; the severities of one
    image share them, so that a stronger noise is the same noise, amplified.

    Args:
        image: uint8 [S, S] as the network sees it; left as it is.
        condition: the change.
        image_id: the image's name.
        seed: of the draws.
        lungs: a mask of them, bool [S, S], or a box, x0, y0, x1, y1 in pixels of the image, x1 and y1 the first outside;
            None takes `CENTRAL_BOX`.

    Returns:
        uint8 [S, S].

    Raises:
        ValueError: if there is no such condition.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"no condition {condition.name} of severity {condition.severity}")
    key = stream_key(seed, f"corruption/{image_id}")
    setting, size = condition._setting, len(image)
    match condition.name:
        case "noise":
            noise = gaussian_levels(np.uint64(key), image.shape, setting)
            return cv2.add(image, noise, dtype=cv2.CV_8U)
        case "blur":
            return cv2.GaussianBlur(image, (0, 0), setting * size / 224, borderType=cv2.BORDER_REPLICATE)
        case "jpeg":
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(setting)])
            read = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
            assert read is not None
            return read
        case "contrast":
            mean = image.mean()
            return _looked_up(image, mean + setting * (np.arange(256) - mean))
        case "gamma":
            power = setting if key & 1 else 1 / setting
            return _looked_up(image, 255 * (np.arange(256) / 255) ** power)
        case "rotation":
            return _rotated(image, setting if key & 2 else -setting)
        case "lungs_black" | "only_lungs":
            inside = _inside(size, lungs)
            return np.where(inside == (condition.name == "lungs_black"), np.uint8(0), image)
        case "corners_black":
            side = round(CORNER * size)
            out = image.copy()
            for rows in (slice(0, side), slice(size - side, size)):
                out[rows, :side] = out[rows, size - side :] = 0
            return out
    return image


def central_box(size: int) -> tuple[int, int, int, int]:
    """Return `CENTRAL_BOX` in pixels of an image of `size` by `size`."""
    x0, y0, x1, y1 = (round(size * part) for part in CENTRAL_BOX)
    return x0, y0, x1, y1


def _inside(size: int, lungs: tuple[int, int, int, int] | NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    if isinstance(lungs, np.ndarray):
        return lungs
    x0, y0, x1, y1 = central_box(size) if lungs is None else lungs
    inside = np.zeros((size, size), bool)
    inside[y0:y1, x0:x1] = True
    return inside


def _looked_up(image: Grey, levels: NDArray[np.float64]) -> Grey:
    table = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return table[image]


def _rotated(image: Grey, degrees: float) -> Grey:
    """Rotate an image counter-clockwise about its centre; its border is extended, so that no new edge appears."""
    size = len(image)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
