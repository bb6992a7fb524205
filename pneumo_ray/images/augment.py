"""Augmentation as one affine warp and one intensity table per image, with every draw keyed by (seed, slot).

The operations are those of arXiv 2507.18647: flip, rotation, random resized crop, brightness, contrast, noise.
Composed before any pixel is read, they take one interpolation instead of three and one table look-up instead of four.
"""

import dataclasses

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.draws import AugmentDraws, draw_augmentations, draw_copies
from pneumo_ray.images.framing import resized
from pneumo_ray.images.intensities import Stage, intensity_tables
from pneumo_ray.images.rng import gaussian_levels, smooth_field

Floats = NDArray[np.float64]
Grey = NDArray[np.uint8]


def base_size(image_size: int) -> int:
    """Return the side to resize a radiograph to before it is cropped to `image_size`: 256 for 224, as in the paper."""
    return round(image_size * 256 / 224)


def resize_grey(image: Grey, size: int) -> Grey:
    """Resize a radiograph to a square; the aspect ratio is not kept, as in the paper.

    Each axis is averaged over areas where it shrinks and interpolated linearly where it grows, so there is no aliasing.

    Args:
        image: uint8 [H, W].
        size: side of the result, in pixels.

    Returns:
        uint8 [size, size].
    """
    return resized(image, size, size)


def center_crop(image: Grey, size: int) -> Grey:
    """Return the middle of a square image: with `resize_grey`, the whole of the evaluation transform.

    Args:
        image: uint8 [R, R].
        size: side of the result, at most R.

    Returns:
        uint8 [size, size], a view of `image`.

    Raises:
        ValueError: if the image is smaller than the crop.
    """
    if min(image.shape) < size:
        raise ValueError(f"an image of {image.shape} has no centre crop of {size} pixels")
    start = center_offset(len(image), size)
    return image[start : start + size, start : start + size]


def boxes_of_input(boxes: Floats, sizes: Floats, resize_size: int, image_size: int) -> NDArray[np.int32]:
    """Transform boxes of radiographs to pixels of the network's input: resized to a square, then cropped.

    Args:
        boxes: [n, 4], x0, y0, x1, y1 in pixels of each radiograph; x1 and y1 are the first outside.
        sizes: [n, 2], width and height of each radiograph, in pixels.
        resize_size: side of the square.
        image_size: side of the crop.

    Returns:
        int32 [n, 4] in pixels of the crop, clipped at its edges; a box outside the crop has no pixels.
    """
    scaled = np.round(boxes * (resize_size / np.tile(sizes, 2))) - center_offset(resize_size, image_size)
    return np.clip(scaled, 0, image_size).astype(np.int32)


def augment_image(base: Grey, draw: AugmentDraws, image_size: int) -> Grey:
    """Augment one image: `augment_batch` for a batch of one.

    Args:
        base: uint8 [R, R], the radiograph resized to `base_size(image_size)`.
        draw: the draws of one image, for example `draws[3:4]`.
        image_size: side of the result, in pixels.

    Returns:
        uint8 [image_size, image_size].
    """
    return augment_batch(base[None], draw, image_size)[0]


def augment_batch(bases: Grey, draws: AugmentDraws, image_size: int) -> Grey:
    """Augment images, in this order: flip and rotation of the copy, flip, rotation, crop; intensities of the copy, intensities; noise.

    The outside of a rotated image is black. Contrast is scaled about the mean of the cropped image.
    Each result depends on its own image and draw alone.

    Args:
        bases: uint8 [n, R, R], radiographs resized to `base_size(image_size)`, so that the warp's scale stays near 1
            and bilinear sampling does not alias.
        draws: the draws of the n images.
        image_size: side of the results, in pixels.

    Returns:
        uint8 [n, image_size, image_size].
    """
    out = warp_batch(bases, draws, image_size)
    _change_intensities(out, draws)
    for image, sigma, key in zip(out, draws.noise_sigma, draws.pixel_key, strict=True):
        if sigma > 0:
            cv2.add(image, gaussian_levels(key, image.shape, float(sigma)), dst=image, dtype=cv2.CV_8U)
    return out


def warp_batch(bases: Grey, draws: AugmentDraws, image_size: int) -> Grey:
    """Return the geometry of `augment_batch` alone: what a mask of the lungs undergoes with its image.

    Args:
        bases: uint8 [n, R, R], as for `augment_batch`.
        draws: the draws of the n images.
        image_size: side of the results, in pixels.

    Returns:
        uint8 [n, image_size, image_size].
    """
    out = np.empty((len(bases), image_size, image_size), dtype=np.uint8)
    _warp(bases, draws, out)
    return out


def materialise_copy(image: Grey, config: AugmentConfig, seed: int, image_key: int, copy: int) -> Grey:
    """Return a virtual copy as a separate image at full size, to be written to a file.

    The rotation is the one that the copy undergoes when it stays virtual, where images have been resized to squares:
    resizing the result gives the same pixels as training on virtual copies. (The mean for the contrast is taken before
    the crop here and after it there, a difference of about one grey level.)

    Args:
        image: uint8 [H, W].
        config: ranges and probabilities.
        seed: the run's seed.
        image_key: the image's key, below 2^64.
        copy: number of the copy, from 1.

    Returns:
        uint8 [H, W].
    """
    key = np.array([image_key], dtype=np.uint64)
    still = draw_augmentations(AugmentConfig.none(), seed, key)
    draws = dataclasses.replace(
        still, crop=np.array([[0.0, 0.0, 1.0, 1.0]]), **draw_copies(config, seed, key, np.array([copy]))
    )
    out = np.empty((1, *image.shape), dtype=np.uint8)
    _warp(image[None], draws, out)
    _change_intensities(out, draws)
    return out[0]


def center_offset(size: int, crop: int) -> int:
    """Return the first pixel of the middle `crop` of `size` pixels."""
    return round((size - crop) / 2)


def _warp(bases: Grey, draws: AugmentDraws, out: Grey) -> None:
    """Write every image's geometry into `out` [n, h, w]."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = out.shape[:0:-1]
    matrices = _inverse_warps(draws, bases.shape, out.shape)
    for i, (base, matrix, image) in enumerate(zip(bases, matrices, out, strict=True)):
        if draws.elastic_alpha[i] > 0:
            displacement = smooth_field(draws.pixel_key[i], image.shape, float(draws.elastic_sigma[i]))
            x, y = _displaced_map(matrix, float(draws.elastic_alpha[i]) * displacement)
            cv2.remap(base, x, y, cv2.INTER_LINEAR, dst=image)
        else:
            cv2.warpAffine(base, matrix, size, dst=image, flags=flags)


def _change_intensities(out: Grey, draws: AugmentDraws) -> None:
    """Change the grey levels of warped images [n, h, w] in place; no noise."""
    stages = [
        Stage(draws.copy_brightness, draws.copy_contrast),
        Stage(draws.brightness, draws.contrast, draws.power, draws.steepness),
    ]
    stages = [stage for stage in stages if stage.changes]
    if stages:
        histograms = np.stack([cv2.calcHist([image], [0], None, [256], [0, 256]).ravel() for image in out])
        for image, table in zip(out, intensity_tables(histograms, stages), strict=True):
            cv2.LUT(image, table, dst=image)


def _inverse_warps(draws: AugmentDraws, source_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Floats:
    """Return [n, 2, 3] matrices from pixels of the result to pixels of the source.

    Positions run from 0 to 1 over the image, so the centre of pixel i of N is (i + 0.5) / N. A result's position goes
    into the crop, and from there back through the operations, last one first, about the image's centre.
    """
    source, result = np.array(source_shape[:0:-1]), np.array(out_shape[:0:-1])
    if draws.crop is None:
        origin = np.array([center_offset(s, r) for s, r in zip(source, result, strict=True)]) / source
        box = np.broadcast_to(result / source, (len(draws), 2))
    else:
        origin, box = draws.crop[:, :2], draws.crop[:, 2:]
    unshear = np.zeros((len(draws), 2, 2))
    unshear[:, 0, 0] = unshear[:, 1, 1] = 1
    unshear[:, 0, 1] = np.tan(np.radians(draws.shear))
    back = unshear @ _unrotate(draws.angle)
    back[:, 0] *= np.where(draws.flip, -1, 1)[:, None]
    back = _unrotate(draws.copy_angle) @ back
    back[:, 0] *= np.where(draws.copy_flip, -1, 1)[:, None]
    step = box / result
    corner = origin + step / 2 - 0.5 - draws.translate
    matrices = np.empty((len(draws), 2, 3))
    matrices[:, :, :2] = source[:, None] * back * step[:, None, :]
    matrices[:, :, 2] = source * ((back @ corner[:, :, None])[:, :, 0] + 0.5) - 0.5
    return matrices


def _unrotate(degrees: Floats) -> Floats:
    """Return [n, 2, 2] inverses of counter-clockwise rotations, with y pointing down."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)


def _displaced_map(matrix: Floats, displacement: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the source's [2, h, w] x and y for every pixel of the result, displaced first by [2, h, w] pixels."""
    rows, columns = np.indices(displacement.shape[1:], dtype=np.float32)
    place = np.stack([columns, rows]) + displacement
    return np.tensordot(matrix[:, :2].astype(np.float32), place, axes=1) + matrix[:, 2, None, None].astype(np.float32)
