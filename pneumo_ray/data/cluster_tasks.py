"""What is done to a whole archive on the cluster, block by block: inspect its entries, fill the cache."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pyarrow as pa

from pneumo_ray.data.archive import Entry
from pneumo_ray.data.cache import Key, write_shard
from pneumo_ray.data.dataset import CACHE_SIZE, load_squares
from pneumo_ray.data.find_lungs import GivenLungs
from pneumo_ray.data.inspect import INSPECTED_SCHEMA, InspectConfig, inspect_entries
from pneumo_ray.data.manifest import SPAN_FIELD
from pneumo_ray.data.spans import Span
from pneumo_ray.errors import ManifestError, ModelError, PneumoError, StorageError
from pneumo_ray.ray_cluster import Shared, block_size, fetch_once, is_retry, map_blocks, share

_ABORTED = "aborted"
"""Status of a row that ends the job; it is never written to a manifest."""

_WORDS = ("image_id", "uri", "member", "facts_path", "error")
_ENTRY_SCHEMA = pa.schema([*((name, pa.string()) for name in _WORDS), ("span", pa.list_(pa.int64(), 2))])
_GIVEN_FIELDS = (("mask", pa.binary()), ("width", pa.float32()), ("height", pa.float32()))
_ERRORS = {kind.__name__: kind for kind in (ManifestError, ModelError, StorageError)}


def inspect_archive(
    entries: Iterable[Entry], config: InspectConfig, given: Sequence[GivenLungs | None] | None = None
) -> Iterator[pa.Table]:
    """Inspect entries on the whole cluster; yield manifest rows in the order of the entries, block by block.

    Args:
        entries: what `list_archives` found.
        config: how to inspect them. What the cache already holds is shipped to the workers once.
        given: for each entry, what a table has of its lungs; None to find them.

    Raises:
        ManifestError: if a given mask cannot be the image's.
        ModelError: if there is no segmenter.
        StorageError: if the cache cannot be read or written.
    """
    rows = [(e.image_id, e.uri, e.member, e.facts_path, e.error, e.span) for e in entries]
    block = block_size(len(rows))
    tables = [
        pa.table(
            [
                pa.array(column, field.type)
                for column, field in zip(zip(*rows[start : start + block], strict=True), _ENTRY_SCHEMA, strict=True)
            ],
            schema=_ENTRY_SCHEMA,
        )
        for start in range(0, len(rows), block)
    ]
    if given is not None:
        columns = [pa.array([g and g[i] for g in given], kind) for i, (_, kind) in enumerate(_GIVEN_FIELDS)]
        for number, start in enumerate(range(0, len(rows), block)):
            for (name, _), column in zip(_GIVEN_FIELDS, columns, strict=True):
                tables[number] = tables[number].append_column(name, column.slice(start, block))
    for table in map_blocks(tables, partial(_inspect_block, config=share(config))):
        if len(table) and table["status"][0].as_py() == _ABORTED:
            raise _ERRORS[table["mode"][0].as_py()](table["error"][0].as_py())
        yield table


def _inspect_block(block: pa.Table, config: Shared) -> pa.Table:
    try:
        entries = [
            Entry(**row | {"span": Span.of(row["span"])}) for row in block.select(_ENTRY_SCHEMA.names).to_pylist()
        ]
        given = None
        if _GIVEN_FIELDS[0][0] in block.column_names:
            given = [GivenLungs(**row) for row in block.select([name for name, _ in _GIVEN_FIELDS]).to_pylist()]
        return inspect_entries(entries, fetch_once(config), given, careful=is_retry())
    except (ManifestError, ModelError, StorageError) as error:
        # Ray wraps the message of an exception in its own; a row carries it unchanged.
        kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
        row = {"image_id": "", "status": _ABORTED, "mode": kind, "error": str(error)}
        return pa.Table.from_pylist([row], schema=INSPECTED_SCHEMA)


def cache_images(rows: pa.Table, folder: str) -> Iterator[dict[Key, tuple[str, int]]]:
    """Decode the images of manifest rows on the whole cluster, once each; yield where the cache has them, block by block.

    Raises:
        ManifestError: naming a file that can no longer be read.
        StorageError: if the folder cannot be written.
    """
    block = block_size(len(rows))
    names = ["image_id", "uri", "member", "frame", "content_sha256", SPAN_FIELD.name]
    columns = rows.select([name for name in names if name in rows.column_names]).replace_schema_metadata()
    tables = [columns.slice(start, block).combine_chunks() for start in range(0, len(rows), block)]
    for table in map_blocks(tables, partial(_cache_block, folder=folder)):
        made = table.to_pylist()
        for row in made:
            if row["error"] is not None:
                raise (StorageError if row["cache_file"] == _ABORTED else ManifestError)(row["error"])
        yield {(row["sha"], row["frame"]): (row["cache_file"], row["cache_row"]) for row in made}


def _cache_block(block: pa.Table, folder: str) -> pa.Table:
    keys = [(row["content_sha256"], row["frame"] or 0) for row in block.to_pylist()]
    name, error = "", None
    try:
        images = load_squares(block, CACHE_SIZE)
        name = write_shard(folder, CACHE_SIZE, list(zip(keys, images, strict=True)))
    except StorageError as reason:
        name, error = _ABORTED, str(reason)
    except PneumoError as reason:
        error = str(reason)
    return pa.table(
        {
            "sha": [sha for sha, _ in keys],
            "frame": [frame for _, frame in keys],
            "cache_file": [name] * len(keys),
            "cache_row": list(range(len(keys))),
            "error": pa.array([error] * len(keys), pa.string()),
        }
    )
