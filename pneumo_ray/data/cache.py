"""Radiographs decoded and resized once, read back at random without decoding.

A shard is an Arrow IPC file with one record batch per image, so that one image is one short range of bytes: a
memory map on a local disk, a range read on object storage. Images are found by the hash of their
file; a changed file has another key, and the next run uses the shards of an interrupted one.
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pneumo_ray import storage

DECODE_VERSION = b"3"
"""Incremented when the same file would decode to other pixels; older shards are then ignored."""

Key = tuple[str, int]
"""SHA-256 of the file in hexadecimal, and the frame."""


def cache_folder(run: str, size: int) -> str:
    """Return the folder of the cache of images with `size` x `size` pixels in a run's folder."""
    return storage.join(run, f"cache-{size}")


def write_shard(
    folder: str, size: int, images: Sequence[tuple[Key, np.ndarray]], unlisted: Collection[Key] = ()
) -> str:
    """Write images, uint8 [size, size] each, as one shard; return its file name, which is a hash of their keys.

    Args:
        folder: of the cache.
        size: rows and columns of the images, in pixels.
        images: key and pixels of each.
        unlisted: keys that `scan_cache` does not find, because decoding them also returned a note.
    """
    names = [f"{sha}:{frame}" for (sha, frame), _ in images]
    digest = hashlib.sha256(";".join(names).encode()).hexdigest()
    keys = ";".join("" if key in unlisted else name for name, (key, _) in zip(names, images, strict=True)).encode()
    # The keys are in the footer, so that listing a shard reads no pixels.
    schema = pa.schema(
        [("pixels", pa.binary(size * size))],
        metadata={b"decode_version": DECODE_VERSION, b"size": str(size).encode(), b"keys": keys},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for _, pixels in images:
            column = pa.array([pixels.tobytes()], pa.binary(size * size))
            writer.write_batch(pa.record_batch([column], schema=schema))
    name = f"{digest[:24]}.arrow"
    storage.write_bytes(storage.join(folder, name), sink.getvalue(), durable=False)
    return name


def scan_cache(folder: str, size: int) -> dict[Key, tuple[str, int]]:
    """Return the place of each cached image: key -> (shard, row). A shard that cannot be read is skipped."""
    found: dict[Key, tuple[str, int]] = {}
    for name in storage.list_files(folder, lambda file: file.endswith(".arrow")):
        try:
            reader = _open_shard(storage.join(folder, name))
            metadata = reader.schema.metadata or {}
            if metadata.get(b"decode_version") != DECODE_VERSION or metadata.get(b"size") != str(size).encode():
                continue
            for row, key in enumerate(metadata[b"keys"].decode().split(";")):
                if not key:
                    continue
                sha, _, frame = key.partition(":")
                found[sha, int(frame)] = (name, row)
        except (OSError, pa.ArrowInvalid):
            continue
    return found


def read_cached(folder: str, size: int, names: Sequence[str], rows: Sequence[int]) -> np.ndarray:
    """Return cached images, uint8 [n, size, size], in the order asked for.

    Raises:
        OSError: if a shard is gone or damaged.
    """
    out = np.empty((len(names), size * size), np.uint8)
    for position, (name, row) in enumerate(zip(names, rows, strict=True)):
        try:
            pixels = _open_shard(storage.join(folder, name)).get_batch(row).column(0)
        except pa.ArrowInvalid as error:
            raise OSError(f"cache shard {name} is damaged: {error}") from error
        out[position] = np.frombuffer(pixels.buffers()[1], np.uint8, size * size)
    return out.reshape(-1, size, size)


@lru_cache(maxsize=256)
def _open_shard(uri: str) -> pa.ipc.RecordBatchFileReader:
    if storage.is_local(uri):
        return pa.ipc.open_file(pa.memory_map(os.fsdecode(storage.local_path(uri))))
    fs, path = storage.filesystem(uri)
    return pa.ipc.open_file(fs.open_input_file(path))
