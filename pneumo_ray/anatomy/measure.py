"""How well a segmenter finds the lungs: overlap with annotators by class, under corruptions, and beside a constant."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.anatomy.lungs import MASK_SIZE, PLAUSIBLE, lung_quality
from pneumo_ray.anatomy.masks import Mask
from pneumo_ray.anatomy.objective import dice
from pneumo_ray.anatomy.segmenter import LungSegmenter
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.images.corruptions import AS_IT_IS, SEVERITIES, Condition, apply_condition
from pneumo_ray.records import JsonObject

Grey = NDArray[np.uint8]

CONDITIONS = (AS_IT_IS, *(Condition(name, severity) for name in SEVERITIES for severity in (1, 2, 3)))
"""Corruptions of `--robustness` that leave the lungs where they can be seen."""

_SEED = 0


def measure(
    segmenter: LungSegmenter,
    images: Grey,
    masks: Sequence[Grey],
    image_ids: Sequence[str],
    labels: Sequence[int | None],
    mean_mask: Mask,
    tick: Callable[[int], None] = lambda done: None,
) -> JsonObject:
    """Measure a segmenter on images with true masks.

    Args:
        segmenter: what to measure.
        images: uint8 [n, R, R], whole images resized to squares, at least `MASK_SIZE` a side; corruptions are applied
            at this size.
        masks: n of uint8 [R, R], share of each pixel that is lung, times 255.
        image_ids: n names, which key the noise.
        labels: n of 0, 1 or None.
        mean_mask: bool [S, S], what a constant would answer.
        tick: called with the number of images that were segmented.

    Returns:
        `images`; `dice` {all, normal, pneumonia} of {mean, p05, images}; `dice_of_mean_mask`; `plausible`, the share of
        images with a plausible mask; `conditions`, a list of {condition, severity, dice, plausible}.
    """
    rows: list[JsonObject] = []
    clean = np.zeros(0)
    small = np.stack([resize_grey(mask, MASK_SIZE) >= 128 for mask in masks])
    for condition in CONDITIONS:
        turned = condition.name == "rotation"
        worse, true = np.empty((len(images), MASK_SIZE, MASK_SIZE), np.uint8), small.copy()
        for i, (image, image_id) in enumerate(zip(images, image_ids, strict=True)):
            worse[i] = resize_grey(apply_condition(image, condition, image_id, _SEED), MASK_SIZE)
            if turned:
                true[i] = resize_grey(apply_condition(masks[i], condition, image_id, _SEED), MASK_SIZE) >= 128
        found = segmenter.find(worse)
        overlap = dice(found, true)
        plausible = float(np.mean([lung_quality(mask) == PLAUSIBLE for mask in found]))
        name = {"condition": condition.name, "severity": condition.severity}
        rows.append({**name, "dice": float(overlap.mean()), "plausible": plausible})
        if condition == AS_IT_IS:
            clean = overlap
        tick(len(images))
    label = np.array([-1 if value is None else value for value in labels])
    groups = {"all": label >= -1, "normal": label == 0, "pneumonia": label == 1}
    return {
        "images": len(images),
        "dice": {name: _summary(clean[chosen]) for name, chosen in groups.items() if chosen.any()},
        "dice_of_mean_mask": float(dice(np.broadcast_to(mean_mask, small.shape), small).mean()),
        "plausible": rows[0]["plausible"],
        "conditions": rows,
    }


def measured_lines(split: str, facts: JsonObject) -> list[str]:
    """Return lines of text about what `measure` returned for a split."""
    by_class = ", ".join(f"{name} {values['mean']:.4f}" for name, values in facts["dice"].items())
    lines = [
        f"{split}: Dice {by_class} ({facts['images']:,} images; a constant mean mask {facts['dice_of_mean_mask']:.4f}); "
        f"plausible {facts['plausible']:.2%}"
    ]
    for name in SEVERITIES:
        graded = [row for row in facts["conditions"] if row["condition"] == name]
        lines.append(f"  {name:<9} severity 1, 2, 3: Dice " + ", ".join(f"{row['dice']:.4f}" for row in graded))
    return lines


def _summary(overlap: NDArray[np.float64]) -> dict[str, float | int]:
    return {"mean": float(overlap.mean()), "p05": float(np.quantile(overlap, 0.05)), "images": len(overlap)}
