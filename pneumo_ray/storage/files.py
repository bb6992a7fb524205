"""Read, write, list and remove files; a file appears under its name only when it is complete.

It is written to a temporary name beside it and renamed, so that no reader sees half a file.
"""

import csv
import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from pyarrow import fs as pafs

from pneumo_ray.errors import StorageError
from pneumo_ray.storage.addresses import is_local, join, local_path, split_query
from pneumo_ray.storage.remote import RetriesExhaustedError, filesystem, retried

Pieces = tuple[bytes | memoryview, ...]
"""Content of a file in pieces, one after the other: large ones need no copy to be put together."""


class Sink(Protocol):
    """What content is written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append to it."""

    def flush(self) -> object:
        """Hand on what was appended."""


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


def write_bytes(uri: str, data: bytes | Pieces, *, durable: bool = True) -> None:
    """Write a file so that it appears complete or not at all.

    Args:
        uri: where.
        data: its content.
        durable: wait until a local disk has it, so that a power failure cannot leave an empty file; not
            needed for files that can be made again.

    Raises:
        StorageError: if the location cannot be written (read-only, no such bucket, disk full).
    """
    pieces = data if isinstance(data, tuple) else (data,)

    def write(stream: Sink) -> None:
        for piece in pieces:
            stream.write(piece)

    write_with(uri, write, durable=durable)


def write_with(uri: str, write: Callable[[Sink], None], *, durable: bool = True) -> None:
    """Do the same with content that is never in memory as a whole.

    Args:
        uri: where.
        write: writes the content to a stream that is open; called again where a write to another machine is retried.
        durable: as above.

    Raises:
        StorageError: if the location cannot be written.
    """
    with atomic_file(uri, durable=durable) as temporary:
        if is_local(uri):
            with open(local_path(temporary), "wb") as file:
                _write_to(file, write)
        else:
            fs, path = filesystem(temporary)

            def attempt() -> None:
                with fs.open_output_stream(path) as stream:
                    _write_to(stream, write)

            retried("write", uri, attempt)


class _Watched:
    """A sink that remembers its own failure: PyTorch raises one of its own over it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview, /) -> object:
        with self._remembered():
            return self._sink.write(data)

    def flush(self) -> object:
        with self._remembered():
            return self._sink.flush()

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


def _write_to(sink: Sink, write: Callable[[Sink], None]) -> None:
    watched = _Watched(sink)
    try:
        write(watched)
    except Exception:
        if watched.error is not None:
            raise watched.error from None
        raise


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
            retried("write", uri, lambda: move_written(fs, path, final))
    except BaseException as error:
        with suppress(OSError):
            fs.delete_file(path)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise StorageError(f"cannot write {uri}: {error.strerror or error}") from error
        raise


def move_written(fs: pafs.FileSystem, path: str, final: str) -> None:
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
