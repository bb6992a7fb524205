"""What is compared between two archives without labels: columns of the scores, and what follows from them."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.evaluate.scores import Scores

Floats = NDArray[np.float64]
Words = NDArray[np.object_]

_NUMBERS = (
    "prob_mean",
    "logit",
    "mutual_information",
    "lung_share",
    "lung_area",
    "bytes_per_pixel",
    "contrast",
    "age_years",
)
_WORDS = ("status", "view", "lung_quality", "image_mode", "view_position", "sex", "manufacturer")
UNKNOWN = "unknown"


def quantities(scores: Scores) -> dict[str, Floats | Words]:
    """Return every quantity that the scores have, [n] each: numbers with NaN where unknown, or words.

    Args:
        scores: all rows, failed ones included; scores of earlier versions have fewer columns.
    """
    table = scores.table
    found: dict[str, Floats | Words] = {}
    for name in _NUMBERS:
        if name in table.column_names:
            found[name] = scores.numbers(name)
    if {"image_width", "image_height"} <= {*table.column_names}:
        width, height = scores.numbers("image_width"), scores.numbers("image_height")
        found["shorter_side"] = np.minimum(width, height)
        found["shape"] = width / height
    found |= _zone_shares(scores)
    ok = np.array(table["status"].to_pylist(), object) == "ok"
    for name in _WORDS:
        if name in table.column_names and not pa.types.is_null(table.schema.field(name).type):
            words = np.array([UNKNOWN if w is None else str(w) for w in table[name].to_pylist()], object)
            if name != "status":
                words[~ok] = None
            found[name] = words
    return found


def _zone_shares(scores: Scores) -> dict[str, Floats | Words]:
    """Return the share of each zone in the sum of the six zone means; NaN where a zone is unknown or all are 0."""
    means = np.stack([scores.numbers(f"zone_mean_{zone}") for zone in scores.zones], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = means / means.sum(1, keepdims=True)
    return {f"zone_share_{zone}": shares[:, place] for place, zone in enumerate(scores.zones)}


def known(values: Floats | Words) -> Floats | Words:
    """Return the values that are known."""
    if values.dtype == object:
        return values[np.array([value is not None for value in values], bool)]
    return values[np.isfinite(values.astype(np.float64))]


def taken(found: Mapping[str, Floats | Words], rows: NDArray[np.bool_]) -> dict[str, Floats | Words]:
    """Return the quantities of some rows."""
    return {name: values[rows] for name, values in found.items()}
