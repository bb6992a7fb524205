"""Readings as data: one row per answer of a reader about an image.

A label is an opinion, so answers are kept as they were given, and nothing is lost when they become labels. A reader may
read an image again, which shows how far readers agree with themselves. The last answer makes the label; the first, which
no earlier look has formed, measures agreement.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.data.label_merge import is_file_name, rows_meant
from pneumo_ray.errors import ManifestError
from pneumo_ray.readers.reading_file import REQUIRED, SCHEMA, read_file

__all__ = ["SCHEMA", "Readings", "merged_readings", "read_readings", "write_either", "write_readings"]


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
                f"{option}: {len(wrong):,} of {len(meant):,} images that were read are not in the manifest; the first"
                f"{_quoted(wrong[0])} {why}; give readings of this archive"
            )
        names = [image_ids[meant[name][0]] for name in self.table["image_id"].to_pylist()]
        named = Readings(self.table.set_column(0, SCHEMA.field("image_id"), pa.array(names, pa.string())))
        _refuse_contradictions(named, option)
        return named


def read_readings(uris: Sequence[str], option: str = "--readings") -> Readings:
    """Read and merge the answers of any number of readers from CSV or Parquet files.

    Equal rows count once, so that a later export may repeat an earlier one. Rows that name an image and nothing else are
    left out, as those of a sheet that nobody filled in, and so are columns other than those of `SCHEMA`.

    Args:
        uris: of the files.
        option: that named them, for messages.

    Raises:
        ManifestError: one sentence, if a file cannot be read, is empty, lacks a column, has a value outside its scale, or
            a reader answers twice about an image in different ways and no time says which answer is the later one.
    """
    return merged_readings([read_file(uri, option) for uri in uris], option)


def merged_readings(tables: Sequence[pa.Table], option: str) -> Readings:
    """Return the readings of several tables of `SCHEMA`, equal rows once.

    Args:
        tables: checked, as `read_readings` does.
        option: that named their files, for messages.

    Raises:
        ManifestError: if a reader answers twice about an image in different ways and no time says which is later.
    """
    table = pa.concat_tables(tables).combine_chunks()
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    unique = {row: number for number, row in reversed(list(enumerate(rows)))}
    readings = Readings(table.take(pa.array(sorted(unique.values()), pa.int64())))
    _refuse_contradictions(readings, option)
    return readings


def write_readings(readings: Readings, uri: str) -> None:
    """Write readings as Parquet, or as CSV where the name ends so; `read_readings` returns them equal.

    Raises:
        StorageError: if the location cannot be written.
    """
    write_either(readings.table, uri)


def write_either(table: pa.Table, uri: str) -> None:
    """Write a table as Parquet, or as CSV where the name ends so, complete or not at all.

    Raises:
        StorageError: if the location cannot be written.
    """
    if uri.lower().endswith(".csv"):
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink)
        storage.write_bytes(uri, sink.getvalue())
    else:
        storage.write_table(table, uri)


def _quoted(image_id: str) -> str:
    """Return an image's name for a message; nothing where it may be something else, such as a person's."""
    return f", {image_id!r}," if is_file_name(image_id) else ""


def _refuse_contradictions(readings: Readings, option: str) -> None:
    labels, times = (readings.table[name].to_pylist() for name in ("label", "at"))
    for (image_id, reader), rows in readings.repeats().items():
        if len({labels[row] for row in rows}) > 1 and len({times[row] for row in rows} - {None}) < len(rows):
            raise ManifestError(
                f"{option}: reader {reader!r} answers twice about an image{_quoted(image_id)}, differently, and the column `at` "
                "does not say which answer is the later one; keep one of them, or give both their times"
            )
