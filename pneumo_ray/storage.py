"""Files on local disks and any `pyarrow.fs` URI, read and written the same way.

A file appears under its name only when it is complete: it is written to a temporary name beside
it and renamed, so that no reader sees half a file. A remote operation that fails
temporarily is tried again.
"""

import csv
import io
import json
import os
import random
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TypeVar
from urllib.parse import quote, unquote, unquote_to_bytes

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from pneumo_ray.console import log
from pneumo_ray.errors import StorageError

TRIES = 5
"""Attempts of a remote operation; pyarrow's S3 client itself repeats each request for 6 seconds."""

FIRST_WAIT = 0.5
"""Seconds before the second attempt; doubled before each further one."""

LONGEST_WAIT = 8.0
"""Longest wait between two attempts, in seconds."""

READ_AHEAD = 16
"""Files that are read concurrently; on object storage each takes three requests in sequence."""

_REFUSALS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_REFUSED = re.compile(
    r"AWS Error (NO_SUCH|ACCESS_DENIED|INVALID_|SIGNATURE_|UNRECOGNIZED_|MISSING_|RESOURCE_NOT_FOUND|ACCOUNT_|OPT_IN)"
    r"|HTTP status (3\d\d|40[0-7]|41\d)|[Bb]ucket '[^']*' not found"
)

S = TypeVar("S")
T = TypeVar("T")


class RetriesExhaustedError(StorageError, OSError):
    """A remote operation that failed in all attempts; also an OSError, for callers that do not require the file."""


class RefusedError(StorageError, OSError):
    """A remote operation that was refused for good; also an OSError, as above."""


def retried(verb: str, uri: str, action: Callable[[], T]) -> T:
    """Return the result of `action`; on a remote location, try again after a temporary error.

    Args:
        verb: the operation, for messages: read, write, list.
        uri: the location.
        action: may be called several times.

    Raises:
        FileNotFoundError: and similar errors, immediately, as the file system reports them.
        RefusedError: immediately if the refusal is final (no such bucket to write to, no access).
        RetriesExhaustedError: if it failed `TRIES` times.
    """
    if is_local(uri):
        return action()
    # A message must contain neither the query nor a key before the bucket.
    place = re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])
    attempt = 1
    while True:
        try:
            return action()
        except OSError as error:
            if isinstance(error, (*_REFUSALS, RefusedError, RetriesExhaustedError)):
                raise
            if _REFUSED.search(str(error)):
                hint = (
                    "; the environment must have credentials with this permission"
                    if "ACCESS_DENIED" in str(error)
                    else ""
                )
                raise RefusedError(f"cannot {verb} {place}: {str(error).rstrip('.')}{hint}") from error
            if attempt >= TRIES:
                raise RetriesExhaustedError(f"cannot {verb} {place} after {TRIES} tries: {error}") from error
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            log(f"warning: cannot {verb} {place} (try {attempt} of {TRIES}), again in {wait:.1f} s: {error}")
        time.sleep(wait)
        attempt += 1


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine (a plain path or a `file://` URI)."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> bytes | str:
    """Return the path behind a local URI, as bytes where the name is not valid UTF-8."""
    if uri.startswith("file://"):
        return unquote_to_bytes(uri.removeprefix("file://"))
    return os.path.abspath(uri)


def uri_of(path: bytes) -> str:
    """Return the URI of a local path: the path itself, or `file://` with escapes if it is not valid UTF-8."""
    try:
        return path.decode("utf-8")
    except UnicodeDecodeError:
        return "file://" + quote(path)


def absolute(uri: str) -> str:
    """Return an absolute `uri`, independent of the working directory."""
    if uri.startswith("file://"):
        return uri_of(os.fsencode(local_path(uri))).rstrip("/")
    return uri.rstrip("/") if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def base_name(uri: str) -> str:
    """Return the last name of a path or URI."""
    return split_query(uri)[0].rstrip("/").rsplit("/", 1)[-1]


def split_query(uri: str) -> tuple[str, str]:
    """Return a path or URI without its query, and the query with its question mark, empty where there is none."""
    address, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return address, mark + query


def parent(uri: str) -> str:
    """Return the folder that holds the file or folder at a path or URI; a URI keeps its query."""
    address, query = split_query(uri)
    return address.rstrip("/").rpartition("/")[0] + query


def join(base: str, *parts: str) -> str:
    """Join names to a path or URI; in a URI the names are escaped and its query (`?endpoint_override=...`) stays last."""
    if "://" not in base:
        return "/".join([base.rstrip("/"), *parts])
    address, query = split_query(base)
    return "/".join([address.rstrip("/"), *map(quote, parts)]) + query


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow file system of a URI and the path inside it.

    Raises:
        StorageError: if the scheme is unknown, the URI is malformed, or it contains a secret.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), os.fsdecode(local_path(uri))
    scheme, _, rest = uri.partition("://")
    address, mark, query = rest.partition("?")
    bucket, _, path = address.partition("/")
    if ":" in bucket.rpartition("@")[0]:
        raise StorageError(
            f"the address {scheme}://...@{bucket.rpartition('@')[2]} contains a key, which would be written into manifests and "
            "models; leave it out and give it through the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    try:
        if scheme in ("s3", "gs"):
            root = f"{scheme}://{bucket}{mark}{query}"
            fs, base = retried("reach", uri, lambda: _client(root))
            return fs, "/".join([base, *filter(None, unquote(path).rstrip("/").split("/"))])
        return retried("reach", uri, lambda: pafs.FileSystem.from_uri(uri))
    except (RetriesExhaustedError, RefusedError):
        raise
    except (ValueError, OSError) as error:
        raise StorageError(f"cannot use the address {uri!r}: {error}") from error


@lru_cache(maxsize=32)
def _client(root: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a bucket; its connections are reused."""
    return pafs.FileSystem.from_uri(root)


def read_bytes(uri: str, limit: int = -1) -> bytes:
    """Return the content of a file, or its first `limit` bytes.

    Raises:
        OSError: as the file system reports it (FileNotFoundError, PermissionError, ...).
    """
    if is_local(uri):
        with open(local_path(uri), "rb") as file:
            return file.read(limit)
    fs, path = filesystem(uri)

    def read() -> bytes:
        # Not as a stream, which would request 256 kB at a time.
        with fs.open_input_file(path) as file:
            return bytes(file.readall() if limit < 0 else file.read(limit))

    return retried("read", uri, read)


def write_bytes(uri: str, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that it appears complete or not at all.

    Args:
        uri: where.
        data: its content.
        durable: wait until a local disk has it, so that a power failure cannot leave an empty file; not
            needed for files that can be made again.

    Raises:
        StorageError: if the location cannot be written (read-only, no such bucket, disk full).
    """
    with atomic_file(uri, durable=durable) as temporary:
        if is_local(uri):
            with open(local_path(temporary), "wb") as file:
                file.write(data)
        else:
            fs, path = filesystem(temporary)

            def write() -> None:
                with fs.open_output_stream(path) as stream:
                    stream.write(data)

            retried("write", uri, write)


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


def ahead(action: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield the result of `action` for each item, in order, while the next `READ_AHEAD` are computed.

    Exceptions are raised when that item is yielded.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for item in items:
            waiting.append(pool.submit(action, item))
            if len(waiting) > READ_AHEAD:
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


def write_json(value: object, uri: str, *, allow_nan: bool = True) -> None:
    """Write a value as indented JSON, complete or not at all.

    Args:
        value: what JSON can hold.
        uri: where.
        allow_nan: write NaN and infinity, which strict readers refuse, instead of raising ValueError.

    Raises:
        StorageError: if the location cannot be written.
    """
    write_bytes(uri, (json.dumps(value, indent=2, allow_nan=allow_nan) + "\n").encode())


def write_csv(rows: Iterable[Sequence[object]], uri: str) -> None:
    """Write rows as CSV, complete or not at all; characters that cannot be encoded become question marks.

    Raises:
        StorageError: if the location cannot be written.
    """
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_bytes(uri, text.getvalue().encode("utf-8", "replace"))


@contextmanager
def atomic_file(uri: str, *, durable: bool = True) -> Iterator[str]:
    """Yield a temporary name beside `uri`; it replaces `uri` when the block ends without an exception.

    Args:
        uri: where.
        durable: wait until a local disk has it, so that a power failure cannot leave an empty file; not
            needed for files that can be made again.

    Raises:
        StorageError: if the location cannot be written.
    """
    address, query = split_query(uri)
    temporary = f"{address}.{uuid.uuid4().hex[:8]}.tmp{query}"
    fs, path = filesystem(temporary)
    _, final = filesystem(uri)
    try:
        if is_local(uri):
            os.makedirs(os.path.dirname(final), exist_ok=True)
        yield temporary
        if is_local(uri):
            if durable:
                _sync(path)
            os.replace(path, final)
        else:
            retried("write", uri, lambda: _move(fs, path, final))
    except BaseException as error:
        with suppress(OSError):
            fs.delete_file(path)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise StorageError(f"cannot write {uri}: {error.strerror or error}") from error
        raise


def _move(fs: pafs.FileSystem, path: str, final: str) -> None:
    """Rename a file that was written; a file that an earlier attempt moved, although its response was lost, counts as moved."""
    try:
        fs.move(path, final)
    except OSError:
        there = [info.type for info in fs.get_file_info([path, final])]
        if there != [pafs.FileType.NotFound, pafs.FileType.File]:
            raise


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(uri: str) -> None:
    """Remove a file if it is there."""
    fs, path = filesystem(uri)
    try:
        retried("remove", uri, lambda: fs.delete_file(path))
    except FileNotFoundError:
        pass
    except RetriesExhaustedError:
        raise
    except OSError as error:
        if exists(uri):
            raise StorageError(f"cannot remove {uri}: {error}") from error


def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`."""
    if is_local(uri):
        return os.path.exists(local_path(uri))
    fs, path = filesystem(uri)
    return bool(retried("look for", uri, lambda: fs.get_file_info(path)).type != pafs.FileType.NotFound)


def list_files(folder: str, accept: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Return the names of the files directly in `folder`, sorted; empty if there is no such folder."""
    fs, path = filesystem(folder)
    infos = retried("list", folder, lambda: fs.get_file_info(pafs.FileSelector(path, allow_not_found=True)))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.File and accept(info.base_name))


def require_writable(folder: str) -> None:
    """Create `folder` and check that a file can be written there.

    Raises:
        StorageError: one sentence naming the folder, if not.
    """
    probe = join(folder, ".pneumo_ray_write_test")
    filesystem(probe)  # an invalid address has its own message
    try:
        write_bytes(probe, b"")
    except (StorageError, OSError) as error:
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        text = getattr(reason, "strerror", None) or str(reason)
        raise StorageError(f"--out {folder} cannot be written ({text}); choose another folder") from error
    remove(probe)
