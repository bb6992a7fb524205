"""Compare rates on a noisy machine: run the candidates in turn, several times, and take medians."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    what: str
    ours: str
    other: str
    ratio: float
    """Not a number where nothing was measured."""
    goal: str

    def __str__(self) -> str:
        """Return the row in Markdown."""
        return f"{self.without_goal()} {self.goal} |"

    def without_goal(self) -> str:
        """Return the row as the documentation has it."""
        ratio = "" if math.isnan(self.ratio) else f"{self.ratio:.2f}"
        return f"| {self.what} | {self.ours} | {self.other} | {ratio} |"


HEADER = "| what | ours | compared with | ratio | goal |\n| --- | --- | --- | --- | --- |"
PAGE_HEADER = "| what | measured | compared with | ratio |\n| --- | --- | --- | ---: |"
"""Of the documentation: what a reader measures has no goal."""


def rates(candidates: dict[str, Callable[[], int]], rounds: int = 5) -> dict[str, float]:
    """Return the median rate of each candidate, in items per second.

    Args:
        candidates: functions that do some work and return how many items they did; run once each to warm up.
        rounds: how often the candidates take turns.
    """
    measured: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, work in candidates.items():
            start = time.perf_counter()
            items = work()
            if number:
                measured[name].append(items / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in measured.items()}
