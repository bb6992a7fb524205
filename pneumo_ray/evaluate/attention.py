"""Agreement of maps with true boxes and with the maps of another model."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pneumo_ray.evaluate.localisation import energy_in_box, pointing_game
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.explain.zones import Box
from pneumo_ray.images.augment import boxes_of_input


def pointing_line(scores: Scores, boxes: pa.Table, resize_size: int, image_size: int) -> str:
    """Return in plain text how the maps of true positives agree with true boxes.

    Args:
        scores: of images that did not fail, joined with the `label` of the manifest.
        boxes: see `pointing`.
        resize_size: of the model's preprocessing.
        image_size: of the model's preprocessing.
    """
    label = pc.fill_null(scores.table["label"], -1).to_numpy()
    found = pointing(scores, label, boxes, resize_size, image_size)
    return (
        f"pointing game: in {found.hits} of {found.total} true positives the map's maximum lies in a true box; "
        f"{found.energy:.0%} of the activation lies in the boxes, which are {found.area:.0%} of the image"
    )


@dataclass(frozen=True)
class Pointing:
    """How the maps of true positives agree with true boxes."""

    hits: int
    """Maps whose maximum lies in a true box."""
    total: int
    energy: float
    """Mean share of the map inside the boxes."""
    area: float
    """Mean share of the image inside the boxes: the expected share of a uniform map."""


def pointing(scores: Scores, label: NDArray[np.int64], boxes: pa.Table, resize_size: int, image_size: int) -> Pointing:
    """Compute the pointing game on true positives whose map explains pneumonia.

    Args:
        scores: scores of images that did not fail.
        label: their classes, int [n].
        boxes: `image_id`, `x0`, `y0`, `x1`, `y1` in pixels of the radiograph, `width`, `height` of it; one row per box.
        resize_size: of the model's preprocessing.
        image_size: of the model's preprocessing.
    """
    table = scores.table
    corners, sizes = (
        np.stack([boxes[name].to_numpy().astype(float) for name in names], axis=1)
        for names in (("x0", "y0", "x1", "y1"), ("width", "height"))
    )
    true: dict[str, list[Box]] = {}
    for name, box in zip(
        boxes["image_id"].to_pylist(), boxes_of_input(corners, sizes, resize_size, image_size), strict=True
    ):
        true.setdefault(name, []).append((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
    found = table["predicted"].to_numpy() == 1
    chosen = np.flatnonzero(found & (label == 1) & (table["target"].to_numpy() == 1))
    picked = [true.get(name, []) for name in table["image_id"].take(pa.array(chosen)).to_pylist()]
    maps, size = scores.maps("cam_mean")[chosen], (image_size, image_size)
    if not len(chosen):
        return Pointing(0, 0, float("nan"), float("nan"))
    flat = np.ones((len(chosen), 1, 1), np.float32)
    return Pointing(
        hits=int(pointing_game(maps, picked, size).sum()),
        total=len(chosen),
        energy=float(np.nanmean(energy_in_box(maps, picked, size))),
        area=float(np.nanmean(energy_in_box(flat, picked, size))),
    )


def map_similarity(a: Scores, b: Scores) -> float:
    """Return the mean Spearman correlation of two models' maps of the same images and the same class, none blank.

    With a model trained on permuted labels (jobs/train.py --permute-labels) as `b` it is the label randomisation test of
    Adebayo et al. 2018 (arXiv 1810.03292): maps that stay the same do not depend on what was learned.
    """
    order = pc.index_in(a.table["image_id"], value_set=b.table["image_id"].combine_chunks())
    first, second = a.maps("cam_mean"), b.maps("cam_mean")[pc.fill_null(order, 0).to_numpy()]
    targets = [pc.fill_null(scores.table["target"], -1).to_numpy() for scores in (a, b)]
    known = pc.is_valid(order).to_numpy(zero_copy_only=False).astype(bool)
    known &= targets[0] == targets[1][pc.fill_null(order, 0).to_numpy()]
    values = [
        spearmanr(x.ravel(), y.ravel()).statistic
        for x, y, both in zip(first, second, known, strict=True)
        if both and np.ptp(x) > 0 and np.ptp(y) > 0
    ]
    return float(np.mean(values)) if values else float("nan")
