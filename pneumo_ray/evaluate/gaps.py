"""Gaps between subgroups: how much a measure differs between two groups of one column, with an interval over patients.

Two groups whose intervals overlap may still differ. The interval of the gap follows from those of the two groups, whatever
method each has (MOVER: Newcombe 1998, Statistics in Medicine 17:873; Zou and Donner 2008, 27:1693), so that a group
without an error has one as well. It takes the groups as independent; where a patient is in both it is rather too wide.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MEASURES = ("auc", "recall", "specificity")
OF_SUBTYPES = ("recall",)
"""Measures of a subtype: all of them share the normal images, so that only the sensitivity is a group's own."""
SUBTYPE = "subtype"

Interval = tuple[float, float]


@dataclass(frozen=True)
class MeasuredGroup:
    """A group of a column with its measures and their intervals."""

    column: str
    value: str
    patients: int
    values: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None]


@dataclass(frozen=True)
class Gap:
    """The difference of a measure between a group and the largest group of its column."""

    column: str
    value: str
    other: str
    """The group with most patients."""
    measure: str
    here: float
    """The measure of `value`."""
    there: float
    """The measure of `other`."""
    gap: float
    """`here` minus `there`."""
    low: float
    high: float


def measure_gaps(groups: Sequence[MeasuredGroup]) -> list[Gap]:
    """Compare each group with the one of its column that has most patients.

    Args:
        groups: of all columns; a measure without an interval is of too few patients and has no gap.

    Returns:
        The gaps by column, in the order of the groups; intervals are 95 %, each by itself.
    """
    found = []
    for column in dict.fromkeys(group.column for group in groups):
        of_column = [group for group in groups if group.column == column]
        largest = max(of_column, key=lambda group: group.patients)
        for group in of_column:
            for measure in OF_SUBTYPES if column == SUBTYPE else MEASURES:
                if group is not largest and (gap := _gap(group, largest, measure)) is not None:
                    found.append(gap)
    return found


def _gap(group: MeasuredGroup, other: MeasuredGroup, measure: str) -> Gap | None:
    here, there = group.values.get(measure), other.values.get(measure)
    ends, other_ends = group.intervals.get(measure), other.intervals.get(measure)
    if here is None or there is None or ends is None or other_ends is None:
        return None
    gap = here - there
    low = gap - math.hypot(here - ends[0], other_ends[1] - there)
    high = gap + math.hypot(ends[1] - here, there - other_ends[0])
    return Gap(group.column, group.value, other.value, measure, here, there, gap, low, high)
