"""The cells of a table of labels: CSV with commas, semicolons or tabs, in UTF-8, UTF-16 or Windows-1252, or Parquet.

Parsed here and not by Arrow, whose messages quote the cell that they cannot read, and which needs the dialect in advance.
"""

import csv
import io
import itertools
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.errors import ManifestError

BLANKS = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"})
"""Words, in small letters, by which tables say that nothing is known."""


class Columns(NamedTuple):
    """A table before its columns have a meaning."""

    names: list[str]
    values: list[pa.Array]
    """Text where it was a CSV file, null where a cell is empty."""
    is_csv: bool


def read_columns(uri: str, option: str = "--labels") -> Columns:
    """Read a table, every cell of a CSV file as text without blanks around it.

    Args:
        uri: of the table.
        option: that named it, for messages.

    Raises:
        ManifestError: one sentence, if it is missing, empty, or neither CSV nor Parquet.
    """
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ManifestError(f"{option} {uri} does not exist") from error
    except storage.RetriesExhaustedError:
        raise
    except OSError as error:
        raise ManifestError(f"{option} {uri} cannot be read: {error.strerror or error}") from error
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ManifestError(f"{option} {uri} is a workbook of a spreadsheet; save its sheet as CSV (UTF-8)")
    if data.startswith(b"PAR1") or storage.base_name(uri).lower().endswith((".parquet", ".pq")):
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (OSError, pa.ArrowException):
            raise ManifestError(f"{option} {uri} is not a Parquet table that can be read") from None
        return Columns([n.strip() for n in table.column_names], [c.combine_chunks() for c in table.columns], False)
    return _parse(_text(data, uri, option), uri, option)


def _text(data: bytes, uri: str, option: str) -> str:
    start = data[:1000]
    encoding = "utf-8-sig"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif start.count(0) > len(start) / 4:  # UTF-16 of letters without an accent has a zero in each
        encoding = "utf-16-le" if start[1::2].count(0) >= start[::2].count(0) else "utf-16-be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise ManifestError(f"{option} {uri} is neither a CSV nor a Parquet table that can be read") from None
        text = data.decode("cp1252", "replace")
        log(f"{option} {storage.base_name(uri)} is not UTF-8, and was read as Windows-1252 (Latin-1)")
    if "\0" in text:
        raise ManifestError(f"{option} {uri} is neither a CSV nor a Parquet table that can be read")
    return text.lstrip("\ufeff")


def _parse(text: str, uri: str, option: str) -> Columns:
    if match := re.match(r"sep=(.)\r?\n?", text, re.IGNORECASE):  # the line that names the separator for Excel
        text, delimiter = text[match.end() :], match[1]
    else:
        delimiter = _delimiter(text)
    try:
        rows = list(_records(text, delimiter))
    except csv.Error:
        raise ManifestError(
            f"{option} {uri} is not a CSV table that can be read: a quotation mark in it is not closed, or not doubled inside a cell"
        ) from None
    if not rows:
        raise ManifestError(f"{option} {uri} is empty")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) > width and any(cell.strip() for cell in row[width:]):
            raise ManifestError(
                f"{option} {uri} has {len(row)} cells in row {number} and {width} in its header; put a cell that holds "
                f"{delimiter!r} into quotation marks"
            )
    names = [name.strip() for name in rows[0]]
    columns = ([clean(row[k]) if k < len(row) else None for row in rows[1:]] for k in range(width))
    return Columns(names, [pa.array(column, pa.string()) for column in columns], True)


def _records(text: str, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))  # a report may be long; the default is 131,072 characters
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)


def _delimiter(text: str) -> str:
    """Return the separator that parts the header into most columns, one that the next rows have too before others."""

    def fits(delimiter: str) -> tuple[bool, int]:
        rows: list[list[str]] = []
        try:
            for row in _records(text, delimiter):
                rows.append(row)
                if len(rows) == 20:
                    break
        except csv.Error:
            pass
        width = len(rows[0]) if rows else 0
        return width > 1 and all(len(row) in (0, width) for row in rows), width

    return max((",", ";", "\t", "|"), key=fits)


def clean(cell: str) -> str | None:
    """Return a cell without blanks and byte order marks around it, None if nothing is left."""
    return cell.strip().strip("\ufeff\u200b") or None


def typed(columns: list[pa.Array]) -> list[pa.Array]:
    """Return columns of text as Arrow's CSV reader types them: numbers, truth values, dates."""
    if not columns:
        return []
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(range(len(columns) + 1))
    # A column more, because a row of one empty cell would be an empty line, which counts for nothing.
    writer.writerows(zip(*(column.to_pylist() for column in columns), itertools.repeat(0)))
    data = stream.getvalue().encode("utf-8", "replace")
    # In one block: types are guessed from the first, and a cell of the next that does not fit would end it.
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        read_options=pyarrow.csv.ReadOptions(block_size=len(data) + 1),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True, null_values=[""]),
    )
    return [column.combine_chunks() for column in table.columns[:-1]]
