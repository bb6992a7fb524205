"""What a folder of scores holds: the rows of every shard, counted from the files themselves."""

import json
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.data.manifest import count_notes
from pneumo_ray.errors import StorageError
from pneumo_ray.score.image_list import Source, part_name


@dataclass(frozen=True)
class ScoreSummary:
    """Summary of a finished job."""

    out: str
    num_rows: int
    num_failed: int
    failures: dict[str, int]
    """Number of failures by `stage: kind`."""
    decode_notes: dict[str, int]
    """Number of images by what of their file took no part in their pixels."""


def summarise(out: str, source: Source, model_hash: str, config_hash: str) -> ScoreSummary:
    """Count the rows of every shard and check them against the list.

    Args:
        out: folder of the scores.
        source: list of images.
        model_hash: that every file must have.
        config_hash: that every file must have.

    Raises:
        StorageError: naming a file that is damaged, or of another job.
    """
    failures, notes = Counter[str](), Counter[str]()
    rows = 0
    names = (storage.join(out, part_name(shard)) for shard in range(source.num_shards))
    tables = storage.read_tables(names, ["error_stage", "error"], where_present=["decode_note"])
    for shard in range(source.num_shards):
        try:
            table = next(tables)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{part_name(shard)} in {out} is damaged; remove it and repeat the command") from error
        facts = table.schema.metadata or {}
        hashes = (facts.get(b"model_hash", b"").decode(), facts.get(b"config_hash", b"").decode())
        if len(table) != source.length(shard) or hashes != (model_hash, config_hash):
            raise StorageError(f"{part_name(shard)} in {out} belongs to another job; remove it and repeat the command")
        rows += len(table)
        failed = table.filter(pc.is_valid(table["error_stage"]))
        for stage, reason in zip(*(failed[name].to_pylist() for name in ("error_stage", "error")), strict=True):
            failures[f"{stage}: {reason.split(':', 1)[0]}"] += 1
        if "decode_note" in table.column_names:
            notes.update(count_notes(table["decode_note"].to_pylist()))
    return ScoreSummary(out, rows, failures.total(), dict(failures.most_common()), dict(notes.most_common()))


def read_summary(out: str) -> ScoreSummary:
    """Return the summary of a finished job from its `_run.json`."""
    facts = json.loads(storage.read_bytes(storage.join(out, "_run.json")))
    return ScoreSummary(out, facts["rows"], facts["failed"], facts["failures"], facts.get("decode_notes", {}))
