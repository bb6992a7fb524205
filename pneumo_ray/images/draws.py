"""The parameters of augmentations, drawn apart from applying them: every draw is keyed by (seed, slot)."""

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.intensities import NUM_KNOTS
from pneumo_ray.images.rng import UInt64s, combine, random_bits, uniforms

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AugmentDraws:
    """The parameters of n augmentations, one entry per image; `draws[i:j]` and `draws[indices]` are draws again.

    The `copy_` fields are the fixed transformation of a virtual copy, which comes first; they are the identity for an
    original. Angles are in degrees, counter-clockwise; positions are fractions of the image's side.
    """

    copy_flip: Bools
    copy_angle: Floats
    copy_brightness: Floats
    copy_contrast: Floats
    flip: Bools
    angle: Floats
    shear: Floats
    translate: Floats
    """float64 [n, 2]: x, y."""
    crop: Floats | None
    """float64 [n, 4]: left, top, width, height. None: the centre crop of evaluation."""
    power: Floats
    """Of the grey level; 1 leaves it."""
    steepness: Floats
    """float64 [n, NUM_KNOTS]: of the monotone curve; zeros leave the grey levels."""
    brightness: Floats
    contrast: Floats
    noise_sigma: Floats
    """Fraction of full scale; 0 for an image that gets no noise."""
    pixel_key: UInt64s
    """Keys of the draws that are made per pixel."""
    elastic_alpha: Floats
    elastic_sigma: Floats
    """Pixels of the result, as in the config."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.angle)

    def __getitem__(self, index: slice | NDArray[np.intp]) -> "AugmentDraws":
        """Return the draws of some images, in the order of `index`."""
        columns: dict[str, Any] = {name: None if all_ is None else all_[index] for name, all_ in vars(self).items()}
        return AugmentDraws(**columns)


def draw_augmentations(
    config: AugmentConfig,
    seed: int,
    slots: UInt64s,
    *,
    copies: NDArray[np.integer] | None = None,
    image_keys: UInt64s | None = None,
) -> AugmentDraws:
    """Draw the parameters of one augmentation per slot.

    A parameter has its own column of the generator, so turning one operation off leaves the draws of all others as
    they were: ablations are compared on the same crops, angles and noise.

    Args:
        config: ranges and probabilities.
        seed: the run's seed.
        slots: uint64 [n], the slots of the epoch plan.
        copies: int [n], the plan's copy numbers; rows above 0 are first transformed as that copy of their image,
            which depends on (seed, image key, copy) and not on the slot. None: all are originals.
        image_keys: uint64 [n], a stable number per image; needed with `copies`.

    Returns:
        The draws of n images.
    """
    n = len(slots)
    if copies is None or image_keys is None:
        if copies is not image_keys:
            raise ValueError("copies and image_keys are given together or not at all")
        copies, image_keys = np.zeros(n, dtype=np.int16), slots
    u = uniforms(seed, "augment", slots, 12)
    tone = uniforms(seed, "tone", slots, 1 + NUM_KNOTS)
    return AugmentDraws(
        **draw_copies(config, seed, image_keys, copies),
        flip=u[:, 0] < config.flip_probability,
        angle=_symmetric(u[:, 1], config.rotation_degrees),
        crop=_draw_crop(config, u[:, 2:6]),
        power=np.exp(_symmetric(tone[:, 0], config.gamma)),
        steepness=_symmetric(tone[:, 1:], config.histogram),
        brightness=1 + _symmetric(u[:, 6], config.brightness),
        contrast=1 + _symmetric(u[:, 7], config.contrast),
        noise_sigma=np.where(u[:, 8] < config.noise_probability, config.noise_sigma, 0.0),
        shear=_symmetric(u[:, 9], config.affine_shear_degrees),
        translate=_symmetric(u[:, 10:12], config.affine_translate),
        pixel_key=random_bits(seed, "pixels", slots, 1)[:, 0],
        elastic_alpha=np.full(n, config.elastic_alpha),
        elastic_sigma=np.full(n, config.elastic_sigma),
    )


class CopyDraws(TypedDict):
    """The `copy_` fields of `AugmentDraws`."""

    copy_flip: Bools
    copy_angle: Floats
    copy_brightness: Floats
    copy_contrast: Floats


def draw_copies(config: AugmentConfig, seed: int, image_keys: UInt64s, copies: NDArray[np.integer]) -> CopyDraws:
    """Draw the `copy_` fields of `AugmentDraws`, the paper's on-disk copies; copy 0 is the original."""
    u = uniforms(seed, "copy", combine(image_keys, copies.astype(np.uint64)), 4)
    copied = copies > 0
    return {
        "copy_flip": copied & (u[:, 0] < config.flip_probability),
        "copy_angle": copied * _symmetric(u[:, 1], config.rotation_degrees),
        "copy_brightness": 1 + copied * _symmetric(u[:, 2], config.brightness),
        "copy_contrast": 1 + copied * _symmetric(u[:, 3], config.contrast),
    }


def _draw_crop(config: AugmentConfig, u: Floats) -> Floats | None:
    """Draw [n, 4] crop boxes from four uniforms each: area uniform, aspect log-uniform, place uniform."""
    if config.crop_area is None:
        return None
    low, high = config.crop_area
    area = low + (high - low) * u[:, 0]
    # Only aspects whose box fits into the image, max(low, area) .. min(high, 1 / area), so nothing is redrawn.
    log_low = np.log(np.maximum(config.crop_aspect[0], area))
    log_high = np.log(np.minimum(config.crop_aspect[1], 1 / area))
    aspect = np.exp(log_low + (log_high - log_low) * u[:, 1])
    size = np.minimum(np.sqrt(np.stack([area * aspect, area / aspect], axis=1)), 1.0)
    return np.concatenate([(1 - size) * u[:, 2:4], size], axis=1)


def _symmetric(u: Floats, bound: float) -> Floats:
    return (2 * u - 1) * bound
