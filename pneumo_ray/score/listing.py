"""What becomes the list of images of a job: the files of an archive, or the rows of a manifest."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pneumo_ray import storage
from pneumo_ray.console import Ticker, log, progress
from pneumo_ray.data.archive import Entry, ListingCount, list_archives
from pneumo_ray.data.frames import count_frames, may_hold_frames
from pneumo_ray.data.manifest import SPAN_FIELD, read_manifest
from pneumo_ray.data.person import PERSON_FIELDS, person_columns
from pneumo_ray.data.spans import Span
from pneumo_ray.dicomweb.images import Private
from pneumo_ray.errors import ArchiveError, ManifestError
from pneumo_ray.images.augment import boxes_of_input
from pneumo_ray.images.isolation import DECODE_SECONDS, guarded
from pneumo_ray.model import Preprocessing
from pneumo_ray.ray_cluster import is_retry
from pneumo_ray.records import Row
from pneumo_ray.score.image_list import ROW_GROUP, SCHEMA, Source, write_tables

LUNG_COLUMNS = ("lung_x0", "lung_y0", "lung_x1", "lung_y1")
"""Columns of a manifest: the lung box of an image, in its own pixels; x1 and y1 are the first outside."""


def list_images(archives: Sequence[str], uri: str, image_size: int, private: Private | None = None) -> Source:
    """Write the list of an archive's images, one row per frame. Needs a running Ray to count the frames of multi-frame files.

    Args:
        archives: as for `list_archives`.
        uri: where the list goes.
        image_size: side of the network's input, in pixels.
        private: as for `list_archives`.

    Raises:
        ArchiveError: if the archive is missing or has no images.
    """
    count = ListingCount()
    with progress("listing", None) as tick:
        rows = _rows(_chunks(list_archives(archives, count, private)), tick)
        source = write_tables(rows, uri, image_size, count.passed_over)
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
    of_others = {
        "span",
        *(field.name for field in PERSON_FIELDS),
    }  # a manifest's own column of a place is SPAN_FIELD; it may have any column of the name span
    for name in SCHEMA.names:
        if name in table.column_names and name not in of_others:
            listed[name] = _taken(table, name, manifest)
    if SPAN_FIELD.name in table.column_names:
        places = table[SPAN_FIELD.name]  # a list of any length where another program has written the table again
        listed["span"] = places if places.type == SPAN_FIELD.type else pa.array(places.to_pylist(), SPAN_FIELD.type)
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


def _rows(chunks: Iterable[list[Entry]], tick: Ticker) -> Iterator[pa.Table]:
    """Yield the rows of the entries: one each, or one per frame."""
    counting = ray.remote(num_cpus=1)(_count)
    for chunk in chunks:
        unsure = [
            (e.uri, e.member, e.span)
            for e in chunk
            if e.error is None and e.frames is None and may_hold_frames(e.member or e.uri)
        ]
        counted = ray.get([counting.remote(unsure[i : i + 64]) for i in range(0, len(unsure), 64)]) if unsure else []
        frames = dict(zip(unsure, itertools.chain.from_iterable(counted), strict=True))
        rows: list[Row] = []
        for e in chunk:
            row = {
                "image_id": e.image_id,
                "uri": e.uri,
                "member": e.member,
                "frame": None,
                "error": e.error,
                "span": e.span,
            }
            number = e.frames or frames.get((e.uri, e.member, e.span), 1)
            rows += (
                [row | {"image_id": f"{e.image_id}#{i}", "frame": i} for i in range(number)] if number > 1 else [row]
            )
        tick(len(rows))
        yield pa.Table.from_pylist(rows, schema=SCHEMA)


def _count(images: list[tuple[str, str | None, Span | None]]) -> list[int]:
    with guarded(DECODE_SECONDS, careful=is_retry()) as call:
        return [count_frames(uri, member, span, call) for uri, member, span in images]
