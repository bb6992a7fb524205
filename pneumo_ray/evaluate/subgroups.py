"""The same metrics for parts of the images: subtypes against the shared normals, and the columns that labels brought."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.evaluate.intervals import with_intervals
from pneumo_ray.evaluate.scores import Scores

MIN_SUBGROUP = 20
"""Images (of a subtype: its own, without the normals) below which a subgroup is named and not measured."""
MIN_CLASS = 10
"""Images of a class in a subgroup below which nothing is said of that class."""
MAX_VALUES = 20
"""Values above which a column of words is not a grouping; numbers are then cut into quarters."""
UNKNOWN = "unknown"

_NEEDS = {"auc": (0, 1), "average_precision": (0, 1), "kappa": (0, 1), "mcc": (0, 1), "f1": (1,), "recall": (1,),
          "precision": (0, 1), "specificity": (0,)}  # fmt: skip
"""Classes that a measure speaks of."""

Mask = NDArray[np.bool_]


def measure_subgroups(
    labelled: Scores, label: NDArray[np.int64], prob: NDArray[np.float64], seed: int
) -> list[dict[str, Any]]:
    """Measure every subgroup at the stored threshold.

    Args:
        labelled: from `numbers.match`, images with a label.
        label: [n].
        prob: [n].
        seed: of the bootstrap.

    Returns:
        A record a group: `column`, `value`, `n`, `normal`, `pneumonia`, and where there are enough images the fields
        of `with_intervals`, None for what too few images of a class would say. A column that is no grouping has a
        record with `left_out`, the reason.
    """
    patients = np.array(labelled.table["patient_id"].to_pylist(), dtype=object)
    records: list[dict[str, Any]] = []
    for column, value, rows, own in [*_subtypes(labelled, label), *_columns(labelled, records)]:
        counts = [int((label[rows] == c).sum()) for c in (0, 1)]
        record: dict[str, Any] = {
            "column": column,
            "value": value,
            "n": sum(counts),
            "normal": counts[0],
            "pneumonia": counts[1],
        }
        if own >= MIN_SUBGROUP:
            record |= with_intervals(label[rows], prob[rows], labelled.threshold, patients[rows].tolist(), seed)
            for name, classes in _NEEDS.items():
                if any(counts[c] < MIN_CLASS for c in classes):
                    record["values"][name] = record["intervals"][name] = None
        records.append(record)
    return records


def _subtypes(labelled: Scores, label: NDArray[np.int64]) -> list[tuple[str, str, Mask, int]]:
    subtype = np.array(labelled.table["subtype"].to_pylist(), dtype=object)
    groups = []
    for value in sorted({value for value in subtype[label == 1] if value}):
        own = (subtype == value) & (label == 1)
        groups.append(("subtype", f"{value} against all normals", own | (label == 0), int(own.sum())))
    return groups


def _columns(labelled: Scores, records: list[dict[str, Any]]) -> list[tuple[str, str, Mask, int]]:
    """Return the groups of every further column; add to the records what is left out, and why."""
    known = {"label", "split", "subtype", "patient_id", "width", "height"}
    groups: list[tuple[str, str, Mask, int]] = []
    for column in sorted(set(labelled.table.column_names[labelled.num_score_columns :]) - known):
        values = labelled.table[column].combine_chunks()
        names = _groups(values)
        if isinstance(names, str):
            records.append({"column": column, "value": None, "n": len(values), "left_out": names})
            continue
        for value in sorted(set(names.tolist()), key=lambda name: (name == UNKNOWN, name)):
            rows = names == value
            groups.append((column, value, rows, int(rows.sum())))
    return groups


def _groups(values: pa.Array) -> NDArray[np.object_] | str:
    """Return the name of each image's group, or why the column is no grouping."""
    given = values.to_pylist()
    distinct = {value for value in given if value is not None}
    if len(distinct) < 2:
        return "it has the same value everywhere" if distinct else "it is empty"
    if len(distinct) <= MAX_VALUES:
        return np.array([UNKNOWN if value is None else str(value) for value in given], dtype=object)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return f"it has {len(distinct):,} different values that are not numbers"
    numbers = np.array([np.nan if value is None else value for value in given], np.float64)
    cuts = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    which = np.clip(np.searchsorted(cuts, numbers, side="right") - 1, 0, len(cuts) - 2)
    names = [
        f"{low:g} to {'below ' if i < len(cuts) - 2 else ''}{high:g}"
        for i, (low, high) in enumerate(itertools.pairwise(cuts))
    ]
    return np.array([UNKNOWN if np.isnan(x) else names[i] for x, i in zip(numbers, which, strict=True)], dtype=object)
