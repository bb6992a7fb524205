"""The private index of an archive in a PACS: which instance stands behind the name of an image.

Rows and logs know an image by a hash; the three UIDs, by which the PACS knows it, stand in this one file. Only its owner may
read it, and without it nobody can go from a row to a patient: it may be deleted when the images are not needed again.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.dicomweb.listing import Instance
from pneumo_ray.dicomweb.server import Server
from pneumo_ray.dicomweb.web import ServerError
from pneumo_ray.errors import ArchiveError

SUFFIX = ".pacs"
"""Ends the name of an index, and tells it from a tar or zip file, which holds images too."""
_BATCH = 1024
_SCHEMA = pa.schema([(name, pa.string()) for name in ("image", "study", "series", "instance")])

Add = Callable[[str, Instance], int]


class IndexGoneError(ServerError):
    """An index that cannot be read."""


def is_index(uri: str) -> bool:
    """Whether a URI is that of an index."""
    return storage.base_name(uri).endswith(SUFFIX)


@contextmanager
def written(uri: str, server: Server) -> Iterator[Add]:
    """Write an index; yield a function that adds an image and returns its row. It is there, whole, when the block ends.

    Args:
        uri: of the file; a local folder around it is for its owner alone.
        server: that has the instances.

    Raises:
        StorageError: if it cannot be written.
    """
    if storage.is_local(uri):
        folder = os.fsdecode(os.path.dirname(os.fsencode(storage.local_path(uri))))
        os.makedirs(folder, mode=0o700, exist_ok=True)
    metadata = {"server": server.url, "verify_tls": str(int(server.verify_tls))}
    schema = _SCHEMA.with_metadata(metadata)
    waiting: list[tuple[str, str, str, str]] = []
    count = 0
    with storage.atomic_file(uri) as temporary:
        fs, path = storage.filesystem(temporary)
        with fs.open_output_stream(path) as stream, pa.ipc.new_file(stream, schema) as writer:
            if storage.is_local(temporary):
                os.chmod(path, 0o600)

            def write() -> None:
                columns = [pa.array(column, pa.string()) for column in zip(*waiting, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=schema))
                waiting.clear()

            def add(image: str, found: Instance) -> int:
                nonlocal count
                waiting.append((image, found.study, found.series, found.instance))
                count += 1
                if len(waiting) == _BATCH:
                    write()
                return count - 1

            yield add
            if waiting:
                write()


def find_instance(uri: str, image: str, row: int | None = None) -> tuple[Server, Instance]:
    """Return the server and the instance behind the name of an image.

    Args:
        uri: of the index.
        image: its name.
        row: where the listing put it; None, or another image there, is looked for by name.

    Raises:
        IndexGoneError: if it is gone or damaged: no other image can be found either.
        ArchiveError: if it has no such image.
    """
    try:
        for attempt in range(2):
            index = _opened(uri)
            found = index.at(row, image) if row is not None else None
            found = found or index.named(image)
            if found is not None:
                return index.server, found
            if attempt == 0:
                _opened.cache_clear()  # it may have been written anew
    except (OSError, pa.ArrowException, KeyError) as error:
        raise IndexGoneError(
            f"{uri}, which says where in the PACS the images are, cannot be read ({_words(error)}); repeat the command that lists the archive, with another --out"
        ) from error
    raise ArchiveError(f"{uri} has no image {image}; repeat the command that lists the archive, with another --out")


class _Index:
    """An opened index. What is read of a local one is mapped, and common to all processes."""

    def __init__(self, uri: str) -> None:
        if storage.is_local(uri):
            source: object = pa.memory_map(os.fsdecode(storage.local_path(uri)))
        else:
            fs, path = storage.filesystem(uri)
            source = storage.retried("read", uri, lambda: fs.open_input_file(path))
        self._reader = pa.ipc.open_file(source)
        metadata = self._reader.schema.metadata or {}
        self.server = Server(metadata[b"server"].decode(), metadata[b"verify_tls"] == b"1")
        self._order: tuple[np.ndarray, np.ndarray] | None = None

    def at(self, row: int, image: str) -> Instance | None:
        """Return the instance in a row, if it is that of an image."""
        if not 0 <= row // _BATCH < self._reader.num_record_batches:
            return None
        batch = self._reader.get_batch(row // _BATCH)
        if row % _BATCH >= len(batch):
            return None
        name, *uids = (column[row % _BATCH].as_py() for column in batch.columns)
        return Instance(*uids) if name == image else None

    def named(self, image: str) -> Instance | None:
        """Return the instance of an image, if there is one. Needs 16 bytes of memory for each image of the archive."""
        if self._order is None:
            hashes = [
                hash(name)
                for number in range(self._reader.num_record_batches)
                for name in self._reader.get_batch(number).column(0).to_pylist()
            ]
            keys = np.array(hashes, np.int64)
            rows = np.argsort(keys)
            self._order = keys[rows], rows
        keys, rows = self._order
        first, last = (int(np.searchsorted(keys, hash(image), side)) for side in ("left", "right"))
        return next(filter(None, (self.at(int(row), image) for row in rows[first:last])), None)


@lru_cache(maxsize=8)
def _opened(uri: str) -> _Index:
    return _Index(uri)


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
