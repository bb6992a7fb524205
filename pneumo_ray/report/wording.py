"""Formatting of numbers for the page, and cells of sortable tables."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pneumo_ray.evaluate.intervals import Interval
from pneumo_ray.evaluate.number_text import number_text, percent_text
from pneumo_ray.evaluate.soft_scores import AgainstReaders
from pneumo_ray.evaluate.tables import ends_text

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
    return number_text(value) if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def interval_text(interval: Sequence[float] | None) -> str:
    """Return an interval as `ends_text`, with the decimals of the larger end; empty where there is none."""
    if interval is None:
        return ""
    return ends_text(interval, 3 if max(abs(end) for end in interval) >= 0.01 else 5)


def percents_text(interval: Sequence[float] | None) -> str:
    """Return an interval of shares in per cent, `low to high %`; empty where there is none."""
    return "" if interval is None else f"{ends_text([100 * end for end in interval], 1, 100.0)} %"


def passes_text(passes: int | str | None) -> str:
    """Return how an explanation was made."""
    return "closed forms without passes" if passes == "exact" else f"{passes or '?'} Monte Carlo passes"


def words_of(name: str) -> str:
    """Return the display name of a measure."""
    return _WORDS.get(name, name.replace("_", " "))


def range_cell(interval: Sequence[float] | None) -> Cell:
    """Return a cell with an interval, which sorts by its lower end."""
    return Cell(None if interval is None else interval[0], interval_text(interval))


def percent_cell(value: float | None, decimals: int = 0) -> Cell:
    """Return a cell with a share in per cent, without decimals unless some are asked for."""
    return Cell(value, "-" if value is None else percent_text(value, decimals))


def with_range(value: float | None, interval: Sequence[float] | None) -> Cell:
    """Return a cell with a value and its interval below it."""
    below = "" if interval is None else f"\n({interval_text(interval)})"
    return Cell(value, ("-" if value is None else figure_text(value)) + below)


def plain_text(value: object) -> str:
    """Return the value of an option as JSON, strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def readers_text(found: AgainstReaders | None) -> str:
    """Return a sentence on the probabilities against the answers of readers; empty where no image was read."""
    if found is None:
        return ""

    def text(value: float, interval: Interval | None) -> str:
        return figure_text(value) + (f" ({interval_text(interval)})" if interval else "")

    return (
        f"Against the answers of readers, {found.readers:.1f} on average of {found.images:,} images: log loss "
        f"{text(found.log_loss, found.log_loss_interval)}, Brier score {text(found.brier, found.brier_interval)}. Where readers disagree "
        f"no probability predicts every answer: the share of their answers would itself have {figure_text(found.log_loss_least)} and "
        f"{figure_text(found.brier_least)}."
    )
