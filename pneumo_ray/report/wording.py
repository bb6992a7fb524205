"""Formatting of numbers for the page, and cells of sortable tables."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

_WORDS = {
    "prob_std": "standard deviation of the probability",
    "mean of cam_std": "mean of the uncertainty map",
    "cam_std": "mean of the uncertainty map",
    "logit_std": "standard deviation of the logit",
    "distance over its deviation": "distance to the threshold over the standard deviation of the logit",
    "before_temperature": "before calibration",
    "after_temperature": "calibrated, without dropout",
    "monte_carlo_mean": "calibrated, mean over the weights",
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table that shows one thing and sorts by another."""

    value: float | None
    text: str


CellValue = str | float | int | None | Cell
"""What a table of the page can show; None is a dash."""


def figure_text(value: float | int | None) -> str:
    """Return a number as text: counts with separators, others with three decimals or two digits."""
    if value is None:
        return "undefined"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def percent_text(value: float | None) -> str:
    """Return a share in per cent, as the page's script writes it."""
    return "undefined" if value is None else f"{100 * value:.1f} %"


def interval_text(interval: Sequence[float] | None) -> str:
    """Return an interval as `low to high`, both with the decimals of the larger; empty where there is none."""
    if interval is None:
        return ""
    decimals = 3 if max(abs(end) for end in interval) >= 0.01 else 5
    low, high = (f"{end:.{decimals}f}" for end in interval)
    return f"{low} to {high}"


def passes_text(passes: int | str | None) -> str:
    """Return how an explanation was made."""
    return "closed forms without passes" if passes == "exact" else f"{passes or '?'} Monte Carlo passes"


def words_of(name: str) -> str:
    """Return the display name of a measure."""
    return _WORDS.get(name, name.replace("_", " "))


def range_cell(interval: Sequence[float] | None) -> Cell:
    """Return a cell with an interval, which sorts by its lower end."""
    return Cell(None if interval is None else interval[0], interval_text(interval))


def percent_cell(value: float | None) -> Cell:
    """Return a cell with a share in whole per cent."""
    return Cell(value, "-" if value is None else f"{100 * value:.0f} %")


def with_range(value: float | None, interval: Sequence[float] | None) -> Cell:
    """Return a cell with a value and its interval below it."""
    below = "" if interval is None else f"\n({interval_text(interval)})"
    return Cell(value, ("-" if value is None else figure_text(value)) + below)


def plain_text(value: object) -> str:
    """Return the value of an option as JSON, strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value)
