"""Readings as data: one row per answer of a reader about an image.

A label is an opinion, so answers are kept as they were given, and nothing is lost when they become labels. A reader may
read an image again, which shows how far readers agree with themselves. The last answer makes the label; the first, which
no earlier look has formed, measures agreement.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.data.label_merge import rows_meant
from pneumo_ray.data.table_cells import Columns, read_columns
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
_CANNOT_SAY = {"", "nan", "na", "n/a", "<na>", "null", "none", "cannot say"}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Readings:
    """Answers of readers about images."""

    table: pa.Table
    """Columns of `SCHEMA`; no two rows are equal."""

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of the readers, sorted."""
        return tuple(sorted(pc.unique(self.table["reader"]).to_pylist()))

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """Images that were read, in order of their first reading."""
        return tuple(pc.unique(self.table["image_id"]).to_pylist())

    def first(self) -> "Readings":
        """Return each reader's first answer about each image: by time, and where a time is missing by row."""
        return self._one(0)

    def last(self) -> "Readings":
        """Return each reader's last answer about each image."""
        return self._one(-1)

    def _one(self, place: int) -> "Readings":
        rows = sorted(group[place] for group in self.repeats().values())
        return Readings(self.table.take(pa.array(rows, pa.int64())))

    def repeats(self) -> dict[tuple[str, str], list[int]]:
        """Return the rows of each image and reader, in the order in which they were given."""
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        names = zip(self.table["image_id"].to_pylist(), self.table["reader"].to_pylist(), strict=True)
        for row, name in enumerate(names):
            groups[name].append(row)
        times = self.table["at"].to_pylist()
        for rows in groups.values():
            if all(times[row] is not None for row in rows):
                rows.sort(key=lambda row: times[row])
        return dict(groups)

    def where(self, chosen: Sequence[bool] | NDArray[np.bool_]) -> "Readings":
        """Return some of the answers."""
        return Readings(self.table.filter(pa.array(chosen, pa.bool_())))

    def votes(self, image_ids: Sequence[str]) -> NDArray[np.float64]:
        """Return the answers as a table of images by readers.

        Args:
            image_ids: rows of the result.

        Returns:
            float64 [images, readers], readers in the order of `readers`: 0, 1, NaN for cannot say and for images that a
            reader has not read. The last answer counts where there are several; take `first()` or `last()` before.
        """
        image_of = {name: row for row, name in enumerate(image_ids)}
        reader_of = {name: column for column, name in enumerate(self.readers)}
        votes = np.full((len(image_ids), len(reader_of)), np.nan)
        columns = (self.table[name].to_pylist() for name in REQUIRED)
        for image_id, reader, label in zip(*columns, strict=True):
            if image_id in image_of:
                votes[image_of[image_id], reader_of[reader]] = np.nan if label is None else label
        return votes

    def matched(self, image_ids: Sequence[str], option: str) -> "Readings":
        """Return the readings with the names that an archive gives to their images.

        Args:
            image_ids: of the archive; a reading may name the end of one, in whole names of folders (`rows_meant`).
            option: that named the files, for messages.

        Raises:
            ManifestError: if an image is unknown, or could be several, or answers contradict each other as in
                `read_readings`.
        """
        known = set(image_ids)
        if known.issuperset(self.image_ids):
            return self
        meant = dict(zip(self.image_ids, rows_meant(self.image_ids, image_ids), strict=True))
        if wrong := [name for name, rows in meant.items() if len(rows) != 1]:
            why = "could be several" if meant[wrong[0]] else "is unknown"
            raise ManifestError(
                f"{option}: {len(wrong):,} of {len(meant):,} images that were read are not in the manifest, "
                f"the first {why}: {wrong[0]!r}; give readings of this archive"
            )
        names = [image_ids[meant[name][0]] for name in self.table["image_id"].to_pylist()]
        named = Readings(self.table.set_column(0, SCHEMA.field("image_id"), pa.array(names, pa.string())))
        _refuse_contradictions(named, option)
        return named


def read_readings(uris: Sequence[str], option: str = "--readings") -> Readings:
    """Read and merge the answers of any number of readers from CSV or Parquet files.

    Equal rows count once, so that a later export may repeat an earlier one. Columns other than those of `SCHEMA` are
    not used.

    Args:
        uris: of the files.
        option: that named them, for messages.

    Raises:
        ManifestError: one sentence, if a file cannot be read, is empty, lacks a column, has a value outside its scale, or
            a reader answers twice about an image in different ways and no time says which answer is the later one.
    """
    tables = [_read(uri, option) for uri in uris]
    table = pa.concat_tables(tables).combine_chunks()
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    unique = {row: number for number, row in reversed(list(enumerate(rows)))}
    readings = Readings(table.take(pa.array(sorted(unique.values()), pa.int64())))
    _refuse_contradictions(readings, option)
    return readings


def write_readings(readings: Readings, uri: str) -> None:
    """Write readings as Parquet, complete or not at all; `read_readings` returns them equal.

    Raises:
        StorageError: if the location cannot be written.
    """
    storage.write_table(readings.table, uri)


def _refuse_contradictions(readings: Readings, option: str) -> None:
    labels, times = (readings.table[name].to_pylist() for name in ("label", "at"))
    for (image_id, reader), rows in readings.repeats().items():
        if len({labels[row] for row in rows}) > 1 and len({times[row] for row in rows} - {None}) < len(rows):
            raise ManifestError(
                f"{option}: reader {reader!r} answers twice about {image_id!r}, differently, and the column `at` does not "
                "say which answer is the later one; keep one of them, or give both their times"
            )


def _read(uri: str, option: str) -> pa.Table:
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
    if not len(found.values[0]):
        raise ManifestError(f"{option} {uri} has no readings in it")
    return pa.table([_column(spec, found, names, uri, option) for spec in SCHEMA], schema=SCHEMA)


def _column(spec: pa.Field, found: Columns, names: Sequence[str], uri: str, option: str) -> pa.Array:
    """Return a column with the type of its field; all null where the file lacks it."""
    if spec.name not in names:
        return pa.nulls(len(found.values[0]), spec.type)
    values = []
    for number, value in enumerate(found.values[names.index(spec.name)].to_pylist(), 2):
        try:
            values.append(_PARSED[spec.name](value))
        except (ValueError, TypeError, OverflowError):
            raise ManifestError(
                f"{option} {uri} has a {spec.name} in row {number} that is none; give {_ALLOWED[spec.name]}"
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
        if _word(value) in _CANNOT_SAY:
            return None
        number = float(str(value).replace(",", "."))
        if not 0 <= number <= high:  # NaN too
            raise ValueError
        return number

    return parse


def _truth(value: object) -> bool | None:
    word = _word(value)
    if word in _CANNOT_SAY:
        return None
    if word not in _TRUTH:
        raise ValueError
    return _TRUTH[word]


def _time(value: object) -> datetime | None:
    if _word(value) in _CANNOT_SAY:
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
