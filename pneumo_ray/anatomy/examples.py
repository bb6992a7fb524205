"""What the segmenter is trained on: images and masks warped together, and images that are no upright frontal chest.

The counterexamples have empty masks, so that a network that only ever met chests does not find lungs in a hand.
"""

from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from pneumo_ray.data.augment import resize_grey
from pneumo_ray.data.draws import stream_key

Grey = NDArray[np.uint8]

Counterexample = Literal["upside_down", "on_its_side", "inverted", "shuffled", "limb", "blank", "enlarged"]
"""Kinds of images without an upright frontal chest, all made from the image at hand or drawn."""

COUNTEREXAMPLE_SHARE = 0.08
"""Share of the training examples that are counterexamples."""

_AS_EXPOSED = 0.5
"""Share of the training examples in which nothing is hidden, blurred, compressed or covered by noise."""


def example(image: Grey, mask: Grey, seed: int, slot: int) -> tuple[Grey, Grey]:
    """Return one training example, every draw keyed by (seed, slot).

    Args:
        image: uint8 [S, S].
        mask: uint8 [S, S], share of each pixel that is lung, times 255.
        seed: the run's seed.
        slot: number of the example in the run.

    Returns:
        The image and its mask, uint8 [S, S] each.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([stream_key(seed, "lungs"), slot], dtype=np.uint64)))
    if rng.random() < COUNTEREXAMPLE_SHARE:
        kinds = get_args(Counterexample)
        image, mask = counterexample(image, kinds[rng.integers(len(kinds))], rng), np.zeros_like(mask)
    image, mask = _warped(image, mask, rng)
    return _exposed(image, rng), mask


def counterexample(image: Grey, kind: Counterexample, rng: np.random.Generator) -> Grey:
    """Return an image, uint8 [S, S], in which there is no upright frontal chest.

    Args:
        image: uint8 [S, S], a frontal chest.
        kind: what to make of it.
        rng: draws what the kind leaves open.
    """
    size = len(image)
    match kind:
        case "upside_down":
            return np.ascontiguousarray(image[::-1])
        case "on_its_side":
            return np.ascontiguousarray(np.rot90(image, rng.choice([1, 3])))
        case "inverted":
            return 255 - image
        case "shuffled":
            parts = int(rng.choice([2, 4]))
            side = size // parts
            tiles = [
                image[i * side : (i + 1) * side, j * side : (j + 1) * side] for i in range(parts) for j in range(parts)
            ]
            order = (
                np.roll(np.arange(parts**2), int(rng.integers(1, parts**2)))
                if parts == 2
                else rng.permutation(parts**2)
            )
            rows = [np.hstack([tiles[k] for k in order[i * parts : (i + 1) * parts]]) for i in range(parts)]
            return resize_grey(np.vstack(rows), size)
        case "enlarged":
            # A sixth of the image, in which no lung can be told by its outline.
            side = size // 6
            y, x = rng.integers(0, size - side, 2)
            return resize_grey(image[y : y + side, x : x + side], size)
        case "limb":
            return _limb(size, rng)
        case "blank":
            level, slope = rng.uniform(0, 255), rng.normal(0, 60, 2)
            y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
            return np.clip(level + slope[0] * y + slope[1] * x, 0, 255).astype(np.uint8)


def _limb(size: int, rng: np.random.Generator) -> Grey:
    """Draw soft tissue with long bones in it, before a dark or a bright background: a hand, a leg or a hip of sorts."""
    flesh, bones = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    direction = rng.uniform(0, np.pi)
    spread = rng.uniform(0.1, 0.7)
    for _ in range(rng.integers(1, 7)):
        angle = direction + rng.normal(0, spread)
        start = rng.uniform(0.1, 0.9, 2) * size
        step = rng.uniform(0.25, 0.9) * size * np.array([np.cos(angle), np.sin(angle)])
        width = rng.uniform(0.05, 0.22) * size
        ends = [tuple(int(v) for v in np.rint(16 * point)) for point in (start - step / 2, start + step / 2)]
        cv2.line(flesh, ends[0], ends[1], 255, max(1, int(2.4 * width)), cv2.LINE_AA, 4)
        cv2.line(bones, ends[0], ends[1], 255, max(1, int(width)), cv2.LINE_AA, 4)
        if rng.random() < 0.7:
            cv2.line(bones, ends[0], ends[1], int(rng.uniform(90, 190)), max(1, int(0.5 * width)), cv2.LINE_AA, 4)
        for end in ends:
            if rng.random() < 0.5:
                cv2.circle(bones, end, int(16 * width * rng.uniform(0.5, 1.2)), 220, -1, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(flesh, (0, 0), rng.uniform(1, 6)).astype(np.float32)
    hard = cv2.GaussianBlur(bones, (0, 0), rng.uniform(0.5, 2)).astype(np.float32)
    field = cv2.resize(rng.standard_normal((6, 6), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    drawn = (
        rng.uniform(0, 40) + rng.uniform(0.2, 0.5) * soft + rng.uniform(0.2, 0.6) * hard + rng.uniform(0, 15) * field
    )
    drawn = np.clip(drawn, 0, 255).astype(np.uint8)
    return 255 - drawn if rng.random() < 0.3 else drawn


def _warped(image: Grey, mask: Grey, rng: np.random.Generator) -> tuple[Grey, Grey]:
    """Flip, scale, stretch, turn and shift an image with its mask."""
    size = len(image)
    scale, stretch = rng.uniform(0.8, 1.2), np.exp(rng.uniform(-0.12, 0.12))
    # Mostly small turns; some as large as the strongest corruption.
    angle = np.deg2rad(rng.uniform(-10, 10) if rng.random() < 0.85 else rng.uniform(-22, 22))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    mirror = -1 if rng.random() < 0.5 else 1
    linear = turn @ np.diag([mirror * scale * stretch, scale / stretch])
    middle = (size - 1) / 2
    shift = rng.uniform(-0.08, 0.08, 2) * size
    matrix = np.column_stack([linear, middle + shift - linear @ [middle, middle]])
    border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    # Both go on in the same way beyond the edge, or lungs that are cut off there would end where the image does not.
    image, mask = (
        cv2.warpAffine(plane, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
        for plane in (image, mask)
    )
    return image, mask


def _exposed(image: Grey, rng: np.random.Generator) -> Grey:
    """Change gamma, contrast and brightness; of every second image hide a part, blur, compress and add noise perhaps."""
    size = len(image)
    levels = 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(-0.7, 0.7))
    contrast = rng.uniform(0.15, 1) if rng.random() < 0.15 else rng.uniform(0.8, 1.3)
    mean = levels[image].mean()
    levels = mean + contrast * (levels - mean) + rng.uniform(-30, 30)
    image = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)[image]
    if rng.random() < _AS_EXPOSED:
        return image
    if rng.random() < 0.2:  # an opacity without an edge, a device, a marker
        y, x = rng.integers(0, size, 2)
        height, width = rng.integers(size // 16, size // 3, 2)
        image[y : y + height, x : x + width] = rng.integers(0, 256)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 2.0))
    if rng.random() < 0.2:
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(10, 50))])[1]
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)
    if rng.random() < 0.5:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(255 * rng.uniform(0, 0.15))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image
