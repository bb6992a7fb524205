"""Kinds and strengths of the augmentations; the defaults are those of arXiv 2507.18647."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pneumo_ray.config import did_you_mean, require
from pneumo_ray.errors import ConfigError

Outside = Literal["none", "blur", "black", "swap"]
"""What becomes of what lies outside the lungs: nothing, a strong blur, black, or another image's outside."""

Operation = Literal["flip", "rotation", "crop", "brightness", "contrast", "noise"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images; the defaults are those of the paper."""

    flip_probability: float = 0.5
    """Share of images that are mirrored left to right (anatomically wrong, but the setting of the paper)."""
    rotation_degrees: float = 10.0
    """Images are rotated by at most this angle in either direction, in degrees."""
    crop_area: tuple[float, float] | None = (0.8, 1.0)
    """Share of the resized image's area that is cropped and resized; None for the centre crop of evaluation."""
    crop_aspect: tuple[float, float] = (0.9, 1.1)
    """Width over height of the crop before it is resized to a square."""
    brightness: float = 0.2
    """Grey levels are multiplied by a factor between 1 - this and 1 + this."""
    contrast: float = 0.2
    """Differences from the mean grey level are multiplied by a factor between 1 - this and 1 + this."""
    noise_probability: float = 0.3
    """Share of images that get Gaussian noise."""
    noise_sigma: float = 0.02
    """Standard deviation of the noise, as a fraction of full scale."""
    affine_shear_degrees: float = 0.0
    """Images are sheared along x by at most this angle in either direction; off, as in the paper."""
    affine_translate: float = 0.0
    """Images are shifted by at most this fraction of their side along each axis; off, as in the paper."""
    elastic_alpha: float = 0.0
    """Root mean square of the elastic displacement along each axis, in pixels of the network's input; 0 is off."""
    elastic_sigma: float = 10.0
    """Smoothness of the elastic displacement: sigma of its Gaussian filter, in pixels of the network's input."""

    gamma: float = 0.0
    """Grey levels, as fractions of full scale, are raised to powers from e^-gamma to e^gamma; 0 is off, as in the paper."""
    histogram: float = 0.0
    """Grey levels follow a random rising curve, whose slopes before scaling lie between e^-histogram and e^histogram; 0
    is off, as in the paper."""
    outside: Outside = "none"
    """What becomes of what lies outside the lungs, for images whose lungs were found: none, blur, black, or swap for that
    of another image of the batch."""
    outside_probability: float = 0.5
    """Share of these images to which that happens."""

    def __post_init__(self) -> None:
        """Refuse ranges from which no image can be made."""
        for name in (
            "flip_probability",
            "noise_probability",
            "noise_sigma",
            "brightness",
            "contrast",
            "affine_translate",
            "outside_probability",
        ):
            self._require_that(name, "between 0 and 1", lambda value: 0 <= value <= 1)
        self._require_that("rotation_degrees", "between 0 and 180", lambda value: 0 <= value <= 180)
        self._require_that("affine_shear_degrees", "at least 0 and below 90", lambda value: 0 <= value < 90)
        self._require_that("elastic_alpha", "0 or more pixels", lambda value: 0 <= value < float("inf"))
        self._require_that("elastic_sigma", "a positive number of pixels", lambda value: 0 < value < float("inf"))
        for name in ("gamma", "histogram"):
            self._require_that(name, "between 0 and 3", lambda value: 0 <= value <= 3)
        self._require_that("outside", f"one of {', '.join(get_args(Outside))}", lambda v: v in get_args(Outside))
        self._require_that(
            "crop_area", "two increasing shares above 0 and at most 1", lambda v: v is None or 0 < v[0] <= v[1] <= 1
        )
        self._require_that("crop_aspect", "two positive numbers with 1 between them", lambda v: 0 < v[0] <= 1 <= v[1])

    def _require_that(self, name: str, what: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        require(holds(value), f"augment.{name} must be {what}, got {value}.")

    @classmethod
    def none(cls) -> "AugmentConfig":
        """Return the config without augmentation, as in evaluation."""
        config = cls()
        for operation in OPERATIONS:
            config = config.without(operation)
        return config

    def without(self, operation: str) -> "AugmentConfig":
        """Return this config with one operation turned off, for ablations.

        Args:
            operation: one of `OPERATIONS`.

        Raises:
            ConfigError: if there is no such operation.
        """
        off = {
            "flip": lambda: dataclasses.replace(self, flip_probability=0.0),
            "rotation": lambda: dataclasses.replace(self, rotation_degrees=0.0),
            "crop": lambda: dataclasses.replace(self, crop_area=None),
            "brightness": lambda: dataclasses.replace(self, brightness=0.0),
            "contrast": lambda: dataclasses.replace(self, contrast=0.0),
            "noise": lambda: dataclasses.replace(self, noise_probability=0.0),
        }
        if operation not in off:
            raise ConfigError(
                f"augmentation has no operation {operation!r}{did_you_mean(operation, OPERATIONS)} "
                f"(known: {', '.join(OPERATIONS)})"
            )
        return off[operation]()
