"""The list of images of a job, written once at its start; it determines the shards."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from pneumo_ray import storage
from pneumo_ray.console import log, progress
from pneumo_ray.data.archive import Entry, ListingCount, list_archives
from pneumo_ray.data.frames import count_frames, may_hold_frames
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.data.names import PassedOver
from pneumo_ray.data.person import PERSON_FIELDS, person_columns
from pneumo_ray.errors import ArchiveError, ManifestError, StorageError
from pneumo_ray.images.augment import boxes_of_input
from pneumo_ray.images.isolation import DECODE_SECONDS, guarded
from pneumo_ray.model import Preprocessing
from pneumo_ray.ray_cluster import is_retry

LUNG_COLUMNS = ("lung_x0", "lung_y0", "lung_x1", "lung_y1")
"""Columns of a manifest: the lung box of an image, in its own pixels; x1 and y1 are the first outside."""

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
        *PERSON_FIELDS,
    ]
)
"""`error`: why listing already knows that it cannot be read; `box`: a box of the lungs in pixels of the network's input,
or, where every image has another frame, `image_box` in fractions of the image; the rest as in the manifest."""

ROW_GROUP = 4096
"""Rows of the list that are read together; a multiple of every shard length."""


_PASSED_OVER = b"passed_over"
"""Key of the file's metadata: what the listing passed over, as JSON."""

MAX_SHARD_BYTES = 1 << 26
"""Bytes of decoded images of one shard."""


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


def list_images(archives: Sequence[str], uri: str, image_size: int) -> Source:
    """Write the list of an archive's images, one row per frame. Needs a running Ray to count the frames of multi-frame files.

    Args:
        archives: as for `list_archives`.
        uri: where the list goes.
        image_size: side of the network's input, in pixels.

    Raises:
        ArchiveError: if the archive is missing or has no images.
    """
    count = ListingCount()
    with progress("listing", None) as tick:
        rows = _rows(_chunks(list_archives(archives, count)), tick)
        source = _write(rows, uri, image_size, count.passed_over)
    words = source.passed_over.sentence()
    if not source.num_images:
        storage.remove(uri)
        raise ArchiveError(f"--archive {' '.join(archives)} has no images in it; {words or 'it is empty'}")
    if words:
        log(words)
    return source


def manifest_images(manifest: str, preprocessing: Preprocessing, *, boxes: bool) -> pa.Table:
    """Return the list of a manifest's images, failed rows included.

    Args:
        manifest: where it is.
        preprocessing: of the model.
        boxes: include lung boxes, in pixels of the network's input.

    Raises:
        ManifestError: if it breaks the contract, is empty, has a column of the wrong type, or has no lung boxes where they are asked for.
    """
    table = read_manifest(storage.absolute(manifest))
    if not len(table):
        raise ManifestError(f"manifest {manifest} has no images in it")
    listed = {name: pa.nulls(len(table), SCHEMA.field(name).type) for name in SCHEMA.names}
    person = {field.name for field in PERSON_FIELDS}
    for name in SCHEMA.names:
        if name in table.column_names and name not in person:
            listed[name] = _taken(table, name, manifest)
    listed |= person_columns(table)
    listed["error"] = pa.nulls(len(table), pa.string())  # the manifest's is of an earlier attempt
    if boxes:
        if missing := [name for name in LUNG_COLUMNS if name not in table.column_names]:
            raise ManifestError(
                f"manifest {manifest} lacks {', '.join(missing)}, which --zones box needs; add them with --labels, or use --zones image"
            )
        squashed = preprocessing.fit == "squash"
        listed["box" if squashed else "image_box"] = _boxes(table, preprocessing) if squashed else _image_boxes(table)
    return pa.table([listed[name] for name in SCHEMA.names], schema=SCHEMA).combine_chunks()


def _taken(table: pa.Table, name: str, manifest: str) -> pa.ChunkedArray:
    try:
        return table[name].cast(SCHEMA.field(name).type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ManifestError(
            f"manifest {manifest} has a column {name} of the wrong type; make it with jobs/prepare.py"
        ) from error


def list_fingerprint(listed: pa.Table) -> str:
    """Return the sha256 (hex) of a list: images, locations and boxes."""
    digest = hashlib.sha256()
    for batch in listed.combine_chunks().to_batches(ROW_GROUP):
        digest.update(json.dumps(batch.to_pylist(), default=bytes.hex).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def write_list(listed: pa.Table, uri: str, image_size: int) -> Source:
    """Write a list."""
    return _write((listed.slice(start, ROW_GROUP) for start in range(0, len(listed), ROW_GROUP)), uri, image_size)


def _boxes(table: pa.Table, preprocessing: Preprocessing) -> pa.Array:
    """Return lung boxes in pixels of the network's input, null where there is none or too little of it is left."""
    corners, sizes, known = _corners(table)
    boxes = boxes_of_input(corners, sizes, preprocessing.resize_size, preprocessing.image_size)
    good = known & (boxes[:, 2] - boxes[:, 0] >= 2) & (boxes[:, 3] - boxes[:, 1] >= 3)
    return pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4, mask=pa.array(~good))


def _image_boxes(table: pa.Table) -> pa.Array:
    """Return lung boxes as fractions of the image, null where there is none."""
    corners, sizes, known = _corners(table)
    boxes = pa.array((corners / np.tile(sizes, 2)).astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(boxes, 4, mask=pa.array(~known))


def _corners(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes [n, 4] and sizes [n, 2] in pixels of each image, and where both are known, bool [n]."""
    corners, sizes = (
        np.stack([pc.fill_null(table[name].cast(pa.float64()), np.nan).to_numpy() for name in names], axis=1)
        for names in (LUNG_COLUMNS, ("width", "height"))
    )
    known = np.isfinite(corners).all(1) & (sizes > 0).all(1)
    corners[~known], sizes[~known] = 0, 1
    return corners, sizes, known


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while chunk := list(itertools.islice(iterator, ROW_GROUP)):
        yield chunk


def _rows(chunks: Iterable[list[Entry]], tick: Any) -> Iterator[pa.Table]:
    """Yield the rows of the entries: one each, or one per frame."""
    counting = ray.remote(num_cpus=1)(_count)
    for chunk in chunks:
        unsure = [(e.uri, e.member) for e in chunk if e.error is None and may_hold_frames(e.member or e.uri)]
        counted = ray.get([counting.remote(unsure[i : i + 64]) for i in range(0, len(unsure), 64)]) if unsure else []
        frames = dict(zip(unsure, itertools.chain.from_iterable(counted), strict=True))
        rows: list[dict[str, Any]] = []
        for e in chunk:
            row = {"image_id": e.image_id, "uri": e.uri, "member": e.member, "frame": None, "error": e.error}
            number = frames.get((e.uri, e.member), 1)
            rows += (
                [row | {"image_id": f"{e.image_id}#{i}", "frame": i} for i in range(number)] if number > 1 else [row]
            )
        tick(len(rows))
        yield pa.Table.from_pylist(rows, schema=SCHEMA)


def _count(images: list[tuple[str, str | None]]) -> list[int]:
    with guarded(DECODE_SECONDS, careful=is_retry()) as call:
        return [count_frames(uri, member, call) for uri, member in images]


def _write(tables: Iterable[pa.Table], uri: str, image_size: int, passed_over: PassedOver | None = None) -> Source:
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
                    np.array([_hash(name) for name in names], np.uint64)
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


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
