"""How much of the maps' evidence lies in the lungs, by class and outcome, beside the lungs' share of the area.

A map that is the same everywhere has the lungs' share of the input's area as its evidence in the lungs: that is chance.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.anatomy.frames import cell_means
from pneumo_ray.anatomy.lungs import PLAUSIBLE
from pneumo_ray.anatomy.masks import MaskError, decode_mask
from pneumo_ray.evaluate.intervals import LEVEL
from pneumo_ray.evaluate.scores import CROP, Scores
from pneumo_ray.evaluate.shares import MeanShare, mean_share
from pneumo_ray.evaluate.zone_table import groups_of
from pneumo_ray.records import named

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Views:
    """Numbers of images."""

    frontal: int
    """Whose lungs are plausible."""
    doubtful: int


@dataclass(frozen=True)
class LungGroup:
    """The evidence in the lungs of a group of labelled images, a class or an outcome as in the zone table."""

    images: str = field(metadata=named("pictures"))
    """Name of the group."""
    explained_class: str
    lung_share: MeanShare
    """Share of the evidence in the lungs; chance is the lungs' share of the input's area."""
    peak_in_lungs: MeanShare
    """Whether the map's highest cell lies there; chance likewise."""


@dataclass(frozen=True)
class LungEvidence:
    """Where the evidence of the maps lies, as far as lungs were looked for."""

    views: Views
    quality: dict[str, int]
    """Numbers of images by `lung_quality`, the most frequent first."""
    zones_of: str
    """What the zones divide."""
    level: float
    unit: str
    groups: list[LungGroup]


def lung_evidence(scores: Scores) -> LungEvidence | None:
    """Return the share of the evidence that lies in the lungs, and counts of views and of lungs that are not plausible.

    Args:
        scores: from `matching.match`, joined with `lung_mask` where the manifest has it: without, chance is not known.

    Returns:
        None for scores of which no image had its lungs looked for.
    """
    names = scores.table.column_names
    if "lung_quality" not in names or scores.table["lung_quality"].null_count == len(scores.table):
        return None
    # A table of labels may have brought a `view` of its own (AP, PA), so views are counted by what lungs were found.
    quality = dict(
        Counter(value for value in scores.table["lung_quality"].to_pylist() if value is not None).most_common()
    )
    known = scores.labelled()
    share, peak = (known.numbers(name) for name in ("lung_share", "peak_in_lungs"))
    area = lung_areas(known)
    patients = known.table["patient_id"].to_pylist()
    groups = []
    for name, explained, rows in groups_of(known):
        ids = [patients[row] for row in np.flatnonzero(rows)]
        of_share, of_peak = (mean_share(values[rows], ids, area[rows]) for values in (share, peak))
        groups.append(LungGroup(name, explained, of_share, of_peak))
    frontal = quality.get(PLAUSIBLE, 0)
    return LungEvidence(
        views=Views(frontal, sum(quality.values()) - frontal),
        quality=quality,
        zones_of=scores.zone_mode,
        level=LEVEL,
        unit="patient",
        groups=groups,
    )


def lung_areas(scores: Scores) -> Floats:
    """Return the share of the network's input that is lung, float64 [n]; NaN without plausible lungs, a mask or a window."""
    areas = np.full(len(scores.table), np.nan)
    columns = ("lung_quality", "lung_mask", *CROP)
    if not set(columns) <= set(scores.table.column_names):
        return areas
    for number, row in enumerate(scores.table.select(columns).to_pylist()):
        if row["lung_quality"] != PLAUSIBLE or None in row.values():
            continue
        try:
            mask = decode_mask(row["lung_mask"])
        except MaskError:
            continue  # as if there were none: evaluation reads masks only for what stands beside a number
        x0, y0, x1, y1 = (row[name] for name in CROP)
        areas[number] = float(cell_means(mask, (1, 1), (x0, y0, x1, y1))[0, 0])
    return areas
