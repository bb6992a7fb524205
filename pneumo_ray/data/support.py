"""The support of a model's training data: for which images it was made, and why another image is none of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray.data.person import person_columns
from pneumo_ray.records import JsonObject

TAIL = 0.001
"""Share of the training images beyond each end of a range."""
MIN_IMAGES = 50
"""Training images with a known value below which a fact has no range."""
MIN_SHARE = 0.01
"""Share of the training images that a view position needs to count as trained on."""
_ROUNDING = 1e-6
"""Of the larger end of a range: columns are float32 in some tables and float64 in others."""
REASONS = ("age", "view", "size", "shape", "contrast", "lung_area")
"""Words of `outside_support`, in their order."""


@dataclass(frozen=True)
class Support:
    """Ranges that hold nearly all training images, and the views that they have; empty where unknown."""

    ranges: Mapping[str, tuple[float, float]]
    """By reason: age in years, size (shorter side of the file, in pixels), shape (width / height), contrast, lung area."""
    views: tuple[str, ...] = ()

    def to_plain(self) -> JsonObject:
        """Return plain JSON values, as the bundle's provenance holds them."""
        return {"ranges": {name: list(ends) for name, ends in self.ranges.items()}, "views": list(self.views)}

    @classmethod
    def from_plain(cls, plain: Any) -> "Support | None":
        """Return what `to_plain` gave; None for anything else, such as the bundle of an earlier version."""
        try:
            ranges = {str(name): (float(low), float(high)) for name, (low, high) in plain["ranges"].items()}
            return cls(
                {name: ends for name, ends in ranges.items() if name in REASONS}, tuple(map(str, plain["views"]))
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def reasons(self, facts: Mapping[str, Sequence[object]]) -> list[str | None]:
        """Return for each image why it is outside, words of `REASONS` with commas between them; None where it is inside.

        A fact that is not known is no reason. A larger file than in training is none either: it is reduced to the input.

        Args:
            facts: the columns age_years, view_position, image_width, image_height, contrast and lung_area, [n] each.
        """
        width, height = (_numbers(facts[name]) for name in ("image_width", "image_height"))
        measured = _measured(
            _numbers(facts["age_years"]), width, height, _numbers(facts["contrast"]), _numbers(facts["lung_area"])
        )
        outside = {name: np.zeros(len(width), bool) for name in REASONS}
        for name, (low, high) in self.ranges.items():
            with np.errstate(invalid="ignore"):
                slack = _ROUNDING * max(abs(low), abs(high))
                outside[name] = (measured[name] < low - slack) | ((measured[name] > high + slack) & (name != "size"))
        if self.views:
            outside["view"] = np.array(
                [view is not None and view not in self.views for view in facts["view_position"]], bool
            )
        return [",".join(name for name in REASONS if outside[name][row]) or None for row in range(len(width))]


def support_of(rows: pa.Table) -> Support:
    """Return the support of training images.

    Args:
        rows: of a manifest, of any version.
    """
    person = person_columns(rows)

    def column(name: str) -> NDArray[np.float64]:
        return _numbers(rows[name].to_pylist() if name in rows.column_names else [None] * len(rows))

    width, height = column("width"), column("height")
    measured = _measured(
        _numbers(person["age_years"].to_pylist()), width, height, column("contrast"), column("lung_area")
    )
    true_width, true_height = column("shape_width"), column("shape_height")
    known = np.isfinite(true_width) & np.isfinite(true_height)
    measured["shape"] = np.where(known, true_width / true_height, measured["shape"])
    ranges = {}
    for name, values in measured.items():
        values = values[np.isfinite(values)]
        if len(values) >= MIN_IMAGES:
            low, high = np.quantile(values, TAIL, method="lower"), np.quantile(values, 1 - TAIL, method="higher")
            ranges[name] = (float(low), float(high))
    views = person["view_position"].drop_null()
    counted = pc.value_counts(views).to_pylist() if len(views) >= MIN_IMAGES else []
    return Support(ranges, tuple(sorted(c["values"] for c in counted if c["counts"] >= MIN_SHARE * len(views))))


def _measured(
    age: NDArray[np.float64],
    width: NDArray[np.float64],
    height: NDArray[np.float64],
    contrast: NDArray[np.float64],
    lung_area: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    return {
        "age": age,
        "size": np.minimum(width, height),
        "shape": width / height,
        "contrast": contrast,
        "lung_area": lung_area,
    }


def _numbers(values: Sequence[object]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)
