"""Agreement of maps with true boxes and with the maps of another model."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.influence import Influence
from pneumo_ray.evaluate.intervals import LEVEL, MIN_PATIENTS, reach_of
from pneumo_ray.evaluate.localisation import (
    GRID,
    average_precision,
    boxes_on_grid,
    energy_in_box,
    overlap,
    pixel_counts,
    pointing_game,
    tune_overlap_threshold,
    visible_share,
)
from pneumo_ray.evaluate.metrics import number_groups
from pneumo_ray.evaluate.number_text import percent_text
from pneumo_ray.evaluate.scores import CROP, Scores, fact
from pneumo_ray.evaluate.shares import Share, mean_share, on_logit
from pneumo_ray.explain import zones
from pneumo_ray.images.augment import center_offset
from pneumo_ray.images.framing import Box
from pneumo_ray.records import JsonObject

HALF_MAXIMUM = 0.5
"""Share of a map's maximum from which a pixel is marked, for IoU and Dice, where no boxes of validation images are known."""
MEASURES = ("pointing", "energy", "iou", "dice", "average_precision")
COLUMNS = (
    *("image_id", "split", "label", "predicted", "prob_mean", "num_boxes", "visible"),
    *(*MEASURES, "chance", "chance_dice"),
)
"""Of localisation.csv. `visible` is the share of the boxes' area that the network's input shows; `chance` the share of the
input's area inside the boxes, which is what a flat map has of all measures but Dice, where it has `chance_dice`."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Localisation:
    """How the maps of images with true boxes agree with these."""

    threshold: float
    """Share of a map's maximum from which a pixel is marked, for IoU and Dice."""
    threshold_from: str
    """`validation` or `fixed`."""
    images: int
    boxes: int
    visible: float
    """Share of the boxes' area that the network's input shows."""
    level: float
    unit: str
    grid: int
    groups: Mapping[str, Mapping[str, Share]]
    """Of `all` images and of those that are `called` pneumonia: the `MEASURES`, each with chance and the difference from it,
    and `pixels`, the average precision of the pixels of all images together."""


@dataclass(frozen=True)
class _Boxed:
    """Images with true boxes, whose map explains pneumonia."""

    scores: Scores
    maps: NDArray[np.float32]
    """[n, h, w]."""
    boxes: list[list[zones.Box]]
    """Of each image, in pixels of the grid of `GRID` x `GRID` over the network's input."""
    visible: Floats
    """[n], the share of the boxes' area that the input shows."""


def measure_localisation(
    scores: Scores, split: str | None, boxes: Mapping[str, tuple[Box, ...]], run: JsonObject
) -> tuple[Localisation, list[Sequence[object]]]:
    """Measure how the maps of images with true boxes agree with these.

    An image counts if it has a box and its map explains pneumonia. Everything is measured in the network's input: of a
    box only what the input shows, and the map also where the input shows no image. So a flat map has the share of the
    input's area inside the boxes as its energy, IoU and average precision, and a random point hits with this probability.

    Args:
        scores: from `matching.match`, of all splits.
        split: to measure; None for all.
        boxes: from `read_boxes`.
        run: `_run.json`, for scores without the columns of the part of an image that their maps show.

    Returns:
        The record, and the rows of localisation.csv, the header first.

    Raises:
        ConfigError: if no image counts.
    """
    chosen = _boxed(scores if split is None else scores.of_split(split), boxes, run)
    if not len(chosen.maps):
        raise ConfigError(
            f"--boxes has no box of an image of the split {split or 'all'} whose scores explain pneumonia; choose another "
            "--split, or score with --target pneumonia"
        )
    threshold, origin = HALF_MAXIMUM, "fixed"
    if split != "val" and len((tuning := _boxed(scores.of_split("val"), boxes, run)).maps):
        threshold, origin = tune_overlap_threshold(tuning.maps, tuning.boxes, (GRID, GRID)), "validation"
    table, size = chosen.scores.table, (GRID, GRID)
    flat = np.ones((len(chosen.maps), 1, 1), np.float32)
    found, expected = (_measures(maps, chosen.boxes, size, threshold) for maps in (chosen.maps, flat))
    expected["pointing"] = expected["energy"]  # a random point; a flat map points nowhere
    counts, chance_counts = (pixel_counts(maps, chosen.boxes, size) for maps in (chosen.maps, flat))
    found["average_precision"], expected["average_precision"] = average_precision(counts), expected["energy"]
    patients = table["patient_id"].to_pylist()
    called = table["predicted"].to_numpy() == 1
    groups: dict[str, dict[str, Share]] = {}
    for name, rows in (("all", np.ones(len(called), bool)), ("called", called)):
        ids = [patients[row] for row in np.flatnonzero(rows)]
        groups[name] = {
            measure: mean_share(found[measure][rows], ids, expected[measure][rows]) for measure in MEASURES
        } | {"pixels": _pooled(counts[rows], chance_counts[rows], ids)}
    record = Localisation(
        threshold=threshold,
        threshold_from=origin,
        images=len(chosen.maps),
        boxes=sum(map(len, chosen.boxes)),
        visible=float(chosen.visible.mean()),
        level=LEVEL,
        unit="patient",
        grid=GRID,
        groups=groups,
    )
    columns = [table[name].to_pylist() for name in COLUMNS[:5]]
    columns += [[len(true) for true in chosen.boxes], chosen.visible.tolist()]
    columns += [[None if np.isnan(v) else v for v in found[name].tolist()] for name in MEASURES]
    columns += [expected["energy"].tolist(), expected["dice"].tolist()]
    return record, [COLUMNS, *zip(*columns, strict=True)]


def localisation_line(record: Localisation) -> str:
    """Return in plain text how maps agree with true boxes."""
    name = "called" if record.groups["called"]["pointing"].n else "all"
    hits, energy = (record.groups[name][measure] for measure in ("pointing", "energy"))
    assert hits.value is not None, "there are images, and each is a hit or a miss"
    words = "images with true boxes that are called pneumonia" if name == "called" else "images with true boxes"
    text = f"pointing game: in {round(hits.value * hits.n):,} of {hits.n:,} {words} the map's maximum lies in a box"
    if energy.value is None:
        return f"{text}; all maps are blank"
    return f"{text}; {percent_text(energy.value, 0)} of the activation lies in the boxes, which are {percent_text(hits.chance, 0)} of what the network sees"


def windows(scores: Scores, run: JsonObject) -> list[Box]:
    """Return which part of its image each map shows, as fractions of the image.

    Scores without these columns are of the centre of an image that was squashed to a square, which `run` describes.

    Raises:
        ConfigError: if neither has it.
    """
    names = scores.table.column_names
    corners = np.stack(
        [scores.numbers(name) if name in names else np.full(len(scores.table), np.nan) for name in CROP], 1
    )
    if (missing := ~np.isfinite(corners).all(1)).any():
        resized, size = (fact(run, "model", "preprocessing", name) for name in ("resize_size", "image_size"))
        if not isinstance(resized, int) or not isinstance(size, int) or not 0 < size <= resized:
            raise ConfigError(
                "--boxes needs scores with the part of an image that their maps show (crop_x0 to crop_y1); score the archive again with jobs/explain.py"
            )
        start = center_offset(resized, size)
        low, high = start / resized, (start + size) / resized
        corners[missing] = low, low, high, high
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in corners.tolist()]


def _boxed(scores: Scores, boxes: Mapping[str, tuple[Box, ...]], run: JsonObject) -> _Boxed:
    known = pc.is_in(scores.table["image_id"], value_set=pa.array(list(boxes), pa.string()))
    scores = scores.where(pc.and_(known, pc.equal(scores.table["target"], 1)))
    shown = windows(scores, run)
    true = [boxes[name] for name in scores.table["image_id"].to_pylist()]
    pairs = list(zip(true, shown, strict=True))
    return _Boxed(
        scores,
        scores.maps("cam_mean"),
        [boxes_on_grid(*pair) for pair in pairs],
        np.array([visible_share(*pair) for pair in pairs]),
    )


def _measures(
    maps: NDArray[np.float32], boxes: list[list[zones.Box]], size: tuple[int, int], threshold: float
) -> dict[str, Floats]:
    iou, dice = overlap(maps, boxes, size, threshold)
    hits = pointing_game(maps, boxes, size).astype(np.float64)
    return {"pointing": hits, "energy": energy_in_box(maps, boxes, size), "iou": iou, "dice": dice}


def _pooled(counts: NDArray[np.int64], flat: NDArray[np.int64], patients: Sequence[Hashable]) -> Share:
    """Return the average precision of the pixels of all images together, by the jackknife that leaves out each patient.

    Args:
        counts: [n, levels, 2], from `pixel_counts`.
        flat: likewise, of flat maps.
        patients: [n] ids.
    """
    patient_of, num_patients = number_groups(patients)
    value, chance = (float(average_precision(each.sum(0))) for each in (counts, flat))
    if np.isnan(value):
        return Share(len(counts), num_patients, None, None, None)
    interval = None
    if num_patients >= MIN_PATIENTS:
        of_patient = np.zeros((num_patients, *counts.shape[1:]), np.int64)
        np.add.at(of_patient, patient_of, counts)
        without = average_precision(counts.sum(0) - of_patient)
        if np.isfinite(without).all():
            moved = (without.mean() - without) * (num_patients - 1) / num_patients
            interval = on_logit(value, reach_of(Influence(value, moved)))
    return Share(len(counts), num_patients, value, interval, chance)


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
