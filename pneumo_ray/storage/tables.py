"""Parquet files, read one after the other or several at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_ray.storage.files import write_bytes
from pneumo_ray.storage.remote import filesystem, retried

READ_AHEAD = 16
"""Files that are read concurrently; on object storage each takes three requests in sequence."""

S = TypeVar("S")

T = TypeVar("T")


def read_table(uri: str, columns: Sequence[str] | None = None, where_present: Sequence[str] = ()) -> pa.Table:
    """Return a Parquet file, or some columns of it.

    Args:
        uri: of the file.
        columns: that it must have; None for all.
        where_present: further columns, which files of earlier versions may lack.

    Raises:
        OSError: as the file system reports it.
        pyarrow.ArrowException: if it is not Parquet.
    """
    fs, path = filesystem(uri)

    def read() -> pa.Table:
        with fs.open_input_file(path) as file:
            if columns is None or not where_present:
                return pq.read_table(file, columns=columns)
            there = pq.read_schema(file).names
            file.seek(0)
            return pq.read_table(file, columns=[*columns, *(name for name in where_present if name in there)])

    return retried("read", uri, read)


def read_tables(
    uris: Iterable[str], columns: Sequence[str] | None = None, where_present: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Yield Parquet files, or some columns of them, in the given order; the next `READ_AHEAD` are read meanwhile.

    Args:
        uris: of the files.
        columns: as `read_table`.
        where_present: as `read_table`.

    Raises:
        OSError: as the file system reports it, when that file is yielded.
        pyarrow.ArrowException: if one is not Parquet.
    """
    return ahead(lambda uri: read_table(uri, columns, where_present), uris)


def ahead(action: Callable[[S], T], items: Iterable[S], count: int = READ_AHEAD) -> Iterator[T]:
    """Yield the result of `action` for each item, in order, while the next `count` are computed.

    Exceptions are raised when that item is yielded.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for item in items:
            waiting.append(pool.submit(action, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_table(table: pa.Table, uri: str) -> None:
    """Write a table as Parquet, complete or not at all.

    Raises:
        StorageError: if the location cannot be written.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(uri, sink.getvalue())
