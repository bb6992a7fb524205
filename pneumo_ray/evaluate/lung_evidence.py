"""How much of the maps' evidence lies in the lungs, by class and outcome, beside the lungs' share of the area.

A map that is the same everywhere has the lungs' share of the input's area as its evidence in the lungs: that is chance.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.anatomy.frames import cell_means
from pneumo_ray.anatomy.lungs import PLAUSIBLE
from pneumo_ray.anatomy.masks import MaskError, decode_mask
from pneumo_ray.evaluate.intervals import LEVEL
from pneumo_ray.evaluate.scores import CROP, Scores
from pneumo_ray.evaluate.shares import mean_share
from pneumo_ray.evaluate.zone_table import groups_of

Floats = NDArray[np.float64]


def lung_evidence(scores: Scores) -> dict[str, Any] | None:
    """Return the share of the evidence that lies in the lungs, and counts of views and of lungs that are not plausible.

    Args:
        scores: from `numbers.match`, joined with `lung_mask` where the manifest has it: without, chance is not known.

    Returns:
        Plain JSON values: `views`, the number of images that are frontal and doubtful; `quality`, by `lung_quality`; `zones_of`, what the
        zones divide; and for each group of labelled images, classes and outcomes as in the zone table, `groups`: its
        `pictures`, `explained_class`, and `mean_share` records of `lung_share` (with chance, the lungs' share of the input's
        area) and `peak_in_lungs` (likewise). None for scores of which no image had its lungs looked for.
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
        groups.append(
            {
                "pictures": name,
                "explained_class": explained,
                "lung_share": mean_share(share[rows], ids, area[rows]),
                "peak_in_lungs": mean_share(peak[rows], ids, area[rows]),
            }
        )
    return {
        "views": {"frontal": quality.get(PLAUSIBLE, 0), "doubtful": sum(quality.values()) - quality.get(PLAUSIBLE, 0)},
        "quality": quality,
        "zones_of": scores.zone_mode,
        "level": LEVEL,
        "unit": "patient",
        "groups": groups,
    }


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
