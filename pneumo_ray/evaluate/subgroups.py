"""Metrics of subgroups: subtypes compared with all normal images, and the columns of the label table."""

import itertools
import math
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.evaluate.intervals import MIN_CLASS_PATIENTS, MIN_PATIENTS, AtThreshold, with_intervals
from pneumo_ray.evaluate.metrics import Metrics, number_groups
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.records import ABSENT, INLINE, JsonObject

MIN_SUBGROUP = MIN_PATIENTS
"""Patients (of a subtype: its own, without the normals) below which a subgroup is listed but not measured."""
MIN_CLASS = MIN_CLASS_PATIENTS
"""Patients of a class in a subgroup below which that class is not measured."""
MAX_VALUES = 20
"""Number of values above which a text column is not a grouping; numbers are then divided into quarters."""
UNKNOWN = "unknown"

_NEEDS = {"auc": (0, 1), "average_precision": (0, 1), "kappa": (0, 1), "mcc": (0, 1), "f1": (1,), "recall": (1,),
          "precision": (0, 1), "specificity": (0,)}  # fmt: skip
"""Classes that a measure describes."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Subgroup:
    """A group of images, measured if it has enough patients; or a column that is no grouping."""

    column: str
    value: str | None
    """None of a column that is no grouping."""
    n: int
    normal: int | None = field(default=None, metadata=ABSENT)
    pneumonia: int | None = field(default=None, metadata=ABSENT)
    patients: int | None = field(default=None, metadata=ABSENT)
    """Of a subtype: its own, without the normals."""
    measured: AtThreshold | None = field(default=None, metadata=INLINE)
    """None with too few patients; in it, None for measures of too few patients of a class."""
    left_out: str | None = field(default=None, metadata=ABSENT)
    """Why a column is no grouping."""


def measure_subgroups(
    labelled: Scores, label: NDArray[np.int64], prob: NDArray[np.float64], seed: int
) -> list[Subgroup]:
    """Measure every subgroup at the stored threshold.

    Args:
        labelled: from `matching.match`, images with a label.
        label: [n].
        prob: [n].
        seed: of the calibration test.

    Returns:
        A record per column that is no grouping, then one per group.
    """
    patient_of, _ = number_groups(labelled.table["patient_id"].to_pylist())
    records: list[Subgroup] = []
    for column, value, rows, own in [*_subtypes(labelled, label), *_columns(labelled, records)]:
        seen = [_count_patients(patient_of[rows & (label == c)]) for c in (0, 1)]
        patients = _count_patients(patient_of[own])
        measured = None
        if patients >= MIN_SUBGROUP:
            measured = with_intervals(label[rows], prob[rows], labelled.threshold, patient_of[rows], seed)
            unknown = [name for name, classes in _NEEDS.items() if any(seen[c] < MIN_CLASS for c in classes)]
            measured = _without(measured, unknown)
        normal, pneumonia = (int((label[rows] == c).sum()) for c in (0, 1))
        records.append(Subgroup(column, value, int(rows.sum()), normal, pneumonia, patients, measured))
    return records


def _without(measured: AtThreshold, names: list[str]) -> AtThreshold:
    """Return the metrics with None for some of them."""
    kept: JsonObject = {name: None if name in names else value for name, value in asdict(measured.values).items()}
    return replace(measured, values=Metrics(**kept), intervals=measured.intervals | dict.fromkeys(names))


def _count_patients(patient_of: NDArray[np.int64]) -> int:
    return len(np.unique(patient_of))


def _subtypes(labelled: Scores, label: NDArray[np.int64]) -> list[tuple[str, str, Mask, Mask]]:
    subtype = np.array(labelled.table["subtype"].to_pylist(), dtype=object)
    groups = []
    for value in sorted({value for value in subtype[label == 1] if value}):
        own = (subtype == value) & (label == 1)
        groups.append(("subtype", f"{value} against all normals", own | (label == 0), own))
    return groups


def _columns(labelled: Scores, records: list[Subgroup]) -> list[tuple[str, str, Mask, Mask]]:
    """Return the groups of every other column; add a record with the reason for each column that is left out."""
    known = {"label", "split", "subtype", "patient_id", "width", "height", "label_soft", "num_readers"}
    groups: list[tuple[str, str, Mask, Mask]] = []
    for column in sorted(set(labelled.table.column_names[labelled.num_score_columns :]) - known):
        values = labelled.table[column].combine_chunks()
        found = groups_of_column(values)
        if isinstance(found, str):
            records.append(Subgroup(column, None, len(values), left_out=found))
            continue
        names, which = found
        groups += [(column, name, which == number, which == number) for number, name in enumerate(names)]
    return [group for group in groups if group[2].any()]


def groups_of_column(values: pa.Array) -> tuple[list[str], NDArray[np.int64]] | str:
    """Divide a column: return the names of the groups, what is unknown first, and the number of each image's group; or why there are none.

    A number that is not finite is no value, like null.
    """
    given = [None if isinstance(value, float) and not math.isfinite(value) else value for value in values.to_pylist()]
    distinct = {value for value in given if value is not None}
    if len(distinct) < 2:
        return "it has the same value everywhere" if distinct else "it is empty"
    if len(distinct) <= MAX_VALUES:
        ordered = sorted(value for value in distinct if str(value) != UNKNOWN)
        place = {value: number + 1 for number, value in enumerate(ordered)}
        return [UNKNOWN, *map(str, ordered)], np.array([place.get(value, 0) for value in given])
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return f"it has {len(distinct):,} different values that are not numbers"
    numbers = np.array([np.nan if value is None else value for value in given], np.float64)
    cuts = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    ends = _printed(cuts, numbers)
    names = [
        f"{low} to {'below ' if i < len(cuts) - 2 else ''}{high}"
        for i, (low, high) in enumerate(itertools.pairwise(ends))
    ]
    return [UNKNOWN, *names], np.where(np.isnan(numbers), 0, _quarter_of(numbers, cuts) + 1)


def _quarter_of(numbers: NDArray[np.float64], cuts: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.clip(np.searchsorted(cuts, numbers, side="right") - 1, 0, len(cuts) - 2)


def _printed(cuts: NDArray[np.float64], numbers: NDArray[np.float64]) -> list[str]:
    """Print the cuts with as few digits, from six on, as put every number on the same side as the cuts do.

    Args:
        cuts: [k], ascending.
        numbers: [n], NaN where unknown.
    """
    known = numbers[~np.isnan(numbers)]
    whole = len(str(int(np.abs(cuts).max()))) if np.abs(cuts).max() < 1e15 else 6  # so that a date is no power of ten
    for digits in range(max(6, whole), 18):
        ends = [f"{cut:.{digits}g}" for cut in cuts]
        inner = np.array(ends[1:-1], np.float64)
        if np.array_equal(np.searchsorted(inner, known, "right"), np.searchsorted(cuts[1:-1], known, "right")) and len(
            set(ends)
        ) == len(ends):
            break
    return ends
