"""A file of readings: which columns it has, and what its cells may hold.

A message names the row and the column of a bad cell, and never repeats it: it may be text of a report.
"""

import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pneumo_ray.data.table_cells import BLANKS, Columns, read_columns
from pneumo_ray.errors import ManifestError

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("reader", pa.string(), nullable=False),
        ("label", pa.int8()),
        ("confidence", pa.float64()),
        ("seconds", pa.float64()),
        ("blinded", pa.bool_()),
        ("at", pa.timestamp("ms", "UTC")),
    ]
)
"""`label`: 0 normal, 1 pneumonia, null cannot say. `confidence`: 0 to 1. `seconds`: time that the answer took. `blinded`:
the reader saw neither score nor map before the answer. `at`: when it was given. All but the first two may be null."""
REQUIRED = ("image_id", "reader", "label")
"""Columns that a file of readings must have."""
MAX_NAME = 200
"""Characters of a reader's name."""

_LABELS = {"0": 0, "0.0": 0, "normal": 0, "1": 1, "1.0": 1, "pneumonia": 1}
_CANNOT_SAY = BLANKS | {"cannot say"}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def read_file(uri: str, option: str) -> pa.Table:
    """Read one file of readings.

    Args:
        uri: of a CSV or Parquet file.
        option: that named it, for messages.

    Returns:
        Columns of `SCHEMA`, one row per row of the file that holds more than the name of an image.

    Raises:
        ManifestError: one sentence, if it cannot be read, has no readings, lacks a column, or has a bad cell.
    """
    found = read_columns(uri, option)
    names = [name.strip().lower() for name in found.names]
    for name in SCHEMA.names:
        if names.count(name) > 1:
            raise ManifestError(f"{option} {uri} has more than one column {name}; remove one of them")
    if missing := [name for name in REQUIRED if name not in names]:
        raise ManifestError(
            f"{option} {uri} has no column {missing[0]}; a file of readings has the columns image_id, reader, label and, "
            "where known, confidence, seconds, blinded and at"
        )
    filled = [found.values[names.index(name)] for name in SCHEMA.names[1:] if name in names]
    rows = [row for row in range(len(filled[0])) if any(values[row].is_valid for values in filled)]
    if not rows:
        raise ManifestError(f"{option} {uri} has no readings in it")
    return pa.table([_column(spec, found, names, rows, f"{option} {uri}") for spec in SCHEMA], schema=SCHEMA)


def _column(spec: pa.Field, found: Columns, names: Sequence[str], rows: Sequence[int], file: str) -> pa.Array:
    """Return some rows of a column with the type of its field; all null where the file lacks it."""
    if spec.name not in names:
        return pa.nulls(len(rows), spec.type)
    column = found.values[names.index(spec.name)]
    values = []
    for row in rows:
        try:
            values.append(_PARSED[spec.name](column[row].as_py()))
        except (ValueError, TypeError, OverflowError):
            raise ManifestError(
                f"{file} has a {spec.name} in row {row + 2} that is none; give {_ALLOWED[spec.name]}"
            ) from None
    return pa.array(values, spec.type)


def _word(value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return "" if value is None else str(value).strip().lower()


def _label(value: object) -> int | None:
    word = _word(value)
    if word in _CANNOT_SAY:
        return None
    if word not in _LABELS:
        raise ValueError(word)
    return _LABELS[word]


def _name(value: object) -> str:
    text = "" if value is None else str(value).strip()
    if not text or len(text) > MAX_NAME or re.search(r"[\0-\x1f]", text):
        raise ValueError
    return text


def _image(value: object) -> str:
    if value is None or not str(value):
        raise ValueError
    return str(value)


def _number(high: float) -> Callable[[object], float | None]:
    def parse(value: object) -> float | None:
        if _word(value) in BLANKS:
            return None
        number = float(str(value).replace(",", "."))
        if not 0 <= number <= high:  # NaN too
            raise ValueError
        return number

    return parse


def _truth(value: object) -> bool | None:
    word = _word(value)
    if word in BLANKS:
        return None
    if word not in _TRUTH:
        raise ValueError
    return _TRUTH[word]


def _time(value: object) -> datetime | None:
    if _word(value) in BLANKS:
        return None
    time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


_PARSED: dict[str, Callable[[Any], object]] = {
    "image_id": _image,
    "reader": _name,
    "label": _label,
    "confidence": _number(1.0),
    "seconds": _number(float("inf")),
    "blinded": _truth,
    "at": _time,
}
_ALLOWED = {
    "image_id": "the name of an image",
    "reader": f"a name of 1 to {MAX_NAME} characters in one line",
    "label": "0 or normal, 1 or pneumonia, or nothing for `cannot say`",
    "confidence": "a number from 0 to 1, or nothing",
    "seconds": "a number from 0, or nothing",
    "blinded": "true or false, or nothing",
    "at": "a time as in 2026-01-31T12:00:00Z, or nothing",
}
