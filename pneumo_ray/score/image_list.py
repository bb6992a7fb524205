"""The list of images of a job, written once at its start; it determines the shards."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_ray import storage
from pneumo_ray.data.names import PassedOver
from pneumo_ray.data.person import PERSON_FIELDS
from pneumo_ray.errors import ArchiveError, StorageError

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("member", pa.string()),
        ("frame", pa.int32()),
        ("error", pa.string()),
        ("box", pa.list_(pa.int32(), 4)),
        ("image_box", pa.list_(pa.float32(), 4)),
        ("shape_width", pa.float32()),
        ("shape_height", pa.float32()),
        ("lung_quality", pa.string()),
        ("lung_mask", pa.binary()),
        ("span", pa.list_(pa.int64(), 2)),
        *PERSON_FIELDS,
    ]
)
"""`error`: why listing already knows that it cannot be read; `box`: a box of the lungs in pixels of the network's input,
or, where every image has another frame, `image_box` in fractions of the image; `span`: where it lies in a tar file
(absent in the lists of earlier versions); the rest as in the manifest."""

ROW_GROUP = 4096
"""Rows of the list that are read together; a multiple of every shard length."""


_PASSED_OVER = b"passed_over"
"""Key of the file's metadata: what the listing passed over, as JSON."""

MAX_SHARD_BYTES = 1 << 26
"""Bytes of decoded images of one shard."""


def part_name(shard: int) -> str:
    """Return the file name of a shard of the scores."""
    return f"part-{shard:06d}.parquet"


def shard_length(num_images: int, image_size: int) -> int:
    """Return the number of images of a shard, which is one file of scores: a power of two that divides `ROW_GROUP`.

    Small enough that an interruption costs little and a shard fits into memory, large enough that a large archive does
    not become a million files.
    """
    length = 64
    while length > 16 and num_images < 16 * length:  # otherwise some workers would be idle on a small archive
        length //= 2
    while length < ROW_GROUP and num_images / length > (2_000 if length < 512 else 20_000):
        length *= 2
    while length > 1 and length * image_size**2 > MAX_SHARD_BYTES:
        length //= 2
    return length


@dataclass(frozen=True)
class Source:
    """The list of a job's images."""

    uri: str
    """The Parquet file that holds it."""
    num_images: int
    image_size: int
    """Side of the network's input, in pixels."""
    passed_over: PassedOver = field(default_factory=PassedOver, hash=False)
    """What the listing of an archive passed over, by reason; empty for a manifest, whose `audit.json` has it."""

    @property
    def num_shards(self) -> int:
        """How many files the scores become."""
        return -(-self.num_images // shard_length(self.num_images, self.image_size))

    def length(self, shard: int) -> int:
        """Return how many images a shard holds."""
        full = shard_length(self.num_images, self.image_size)
        return min(full, self.num_images - shard * full)

    @cached_property
    def _footer(self) -> pq.FileMetaData:
        """Footer of the file. It grows with the list, so a process reads it once and not for every shard."""
        fs, path = storage.filesystem(self.uri)

        def read() -> pq.FileMetaData:
            with fs.open_input_file(path) as file:
                return pq.read_metadata(file)

        return storage.retried("read", self.uri, read)

    def read(self, shard: int) -> pa.Table:
        """Return the images of one shard."""
        full = shard_length(self.num_images, self.image_size)
        fs, path = storage.filesystem(self.uri)

        def read() -> pa.Table:
            with fs.open_input_file(path) as file:
                return pq.ParquetFile(file, metadata=self._footer).read_row_group(shard * full // ROW_GROUP)

        return storage.retried("read", self.uri, read).slice(shard * full % ROW_GROUP, self.length(shard))


def open_source(uri: str, image_size: int) -> Source:
    """Return the list that an earlier run of the job wrote.

    Raises:
        StorageError: if it is damaged.
    """
    fs, path = storage.filesystem(uri)
    try:
        with fs.open_input_file(path) as file:
            footer = pq.ParquetFile(file).metadata
            passed_over = PassedOver(json.loads((footer.metadata or {}).get(_PASSED_OVER, b"{}")))
            return Source(uri, footer.num_rows, image_size, passed_over)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"the list of images {uri} cannot be read ({error}); choose another --out") from error


def list_fingerprint(listed: pa.Table) -> str:
    """Return the sha256 (hex) of a list: images, locations and boxes."""
    digest = hashlib.sha256()
    listed = listed.drop_columns("span")  # only of an archive; earlier versions had none
    for batch in listed.combine_chunks().to_batches(ROW_GROUP):
        digest.update(json.dumps(batch.to_pylist(), default=bytes.hex).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def write_list(listed: pa.Table, uri: str, image_size: int) -> Source:
    """Write a list."""
    return write_tables((listed.slice(start, ROW_GROUP) for start in range(0, len(listed), ROW_GROUP)), uri, image_size)


def write_tables(
    tables: Iterable[pa.Table], uri: str, image_size: int, passed_over: PassedOver | None = None
) -> Source:
    """Write tables as one file with row groups of `ROW_GROUP`, refusing duplicate names.

    Args:
        tables: rows of the list.
        uri: of the file.
        image_size: side of the network's input, in pixels.
        passed_over: complete when the last of the tables is made; goes into the file's metadata.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    hashes: list[np.ndarray] = []
    total = 0
    with storage.atomic_file(uri) as temporary:
        fs, path = storage.filesystem(temporary)
        with fs.open_output_stream(path) as stream, pq.ParquetWriter(stream, SCHEMA, compression="zstd") as writer:
            pending: list[pa.Table] = []
            for table in tables:
                names = table["image_id"].to_pylist()
                hashes.append(
                    np.array([name_hash(name) for name in names], np.uint64)
                )  # 8 bytes per image instead of its name
                total += len(table)
                pending.append(table)
                merged = pa.concat_tables(pending)
                full = len(merged) // ROW_GROUP * ROW_GROUP
                if full:
                    writer.write_table(merged.slice(0, full), row_group_size=ROW_GROUP)
                pending = [merged.slice(full)]
            if pending and len(pending[0]):
                writer.write_table(pending[0], row_group_size=ROW_GROUP)
            writer.add_key_value_metadata({_PASSED_OVER: json.dumps(passed_over).encode()})
        if hashes and (twice := total - len(np.unique(np.concatenate(hashes)))):
            raise ArchiveError(
                f"{twice} image(s) share their image_id with another image; rename them, because rows are found by it"
            )
    return Source(uri, total, image_size, passed_over)


def name_hash(name: str) -> int:
    """Return 64 bits by which twins among the names of a list are found."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
