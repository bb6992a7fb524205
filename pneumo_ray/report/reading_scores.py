"""Scores and maps for a reading page that is not blinded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.scores import fact, read_run, read_scores
from pneumo_ray.explain.case import passes_interval
from pneumo_ray.images.framing import WHOLE, Box
from pneumo_ray.report.cases import crops
from pneumo_ray.report.embedded import short_number


@dataclass(frozen=True)
class Opinion:
    """Score and map of one image."""

    prob: float
    """Calibrated probability of pneumonia."""
    low: float
    """Ends of the interval over the passes."""
    high: float
    target: int
    """The class that the map explains."""
    map: tuple[float, ...]
    """`cam_mean`, row by row, in logit units."""
    window: Box
    """What the map lies over, as fractions of the image."""


@dataclass(frozen=True)
class ModelView:
    """Scores and maps of several images."""

    opinions: dict[str, Opinion]
    """By the name of the image."""
    map_size: tuple[int, int]
    threshold: float
    """On the probability."""


def model_view(folder: str, names: Sequence[str]) -> ModelView:
    """Return the scores and maps of some images from a folder of scores.

    Raises:
        ManifestError: if there are no scores, or an image has none.
    """
    scores = read_scores(folder).ok()
    place = pc.index_in(pa.array(names, pa.string()), value_set=scores.table["image_id"].combine_chunks())
    if place.null_count:
        missing = names[place.is_null().to_pylist().index(True)]
        raise ManifestError(
            f"--scores {folder} have no score of {place.null_count:,} of {len(names):,} images to read, such as {missing!r}; "
            "score them with jobs/explain.py, or leave --reveal out"
        )
    chosen = scores.taken(place)
    rows = np.arange(len(names))
    maps = chosen.maps("cam_mean").reshape(len(names), -1)
    columns = ("prob_mean", "logit_mean", "logit_std", "target")
    calibration, middle = scores.calibration, _middle(folder)
    opinions = {}
    for name, row, values, window in zip(
        names, chosen.table.select(columns).to_pylist(), maps, crops(chosen, rows), strict=True
    ):
        low, high = passes_interval(row["logit_mean"], row["logit_std"], calibration.temperature, calibration.intercept)
        cells = tuple(short_number(float(value)) for value in values)
        opinions[name] = Opinion(row["prob_mean"], low, high, row["target"], cells, window or middle)
    return ModelView(opinions, scores.map_size, scores.threshold)


def _middle(folder: str) -> Box:
    """Return what the network saw of every image where the scores have no columns for it: the middle of all of it, squashed."""
    sizes = (fact(read_run(folder), "model", "preprocessing", name) for name in ("image_size", "resize_size"))
    seen, base = (size if isinstance(size, int) and size > 0 else None for size in sizes)
    if seen is None or base is None or seen >= base:
        return WHOLE
    edge = (1 - seen / base) / 2
    return (edge, edge, 1 - edge, 1 - edge)
