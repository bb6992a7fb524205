"""The scores of an archive, read from Parquet: one table, the maps as an array, and the metadata."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.errors import ManifestError
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.records import JsonObject

FORMAT = "pneumo_ray.scores 1"
LAST_COLUMNS = ("config_hash", "zone_groups", "decode_note", "peak_in_lungs", "site_hash", "prob_std_within")
"""The last columns of the scores, in their order, by version."""
CROP = ("crop_x0", "crop_y0", "crop_x1", "crop_y1")
"""Columns of what the network saw, as fractions of the image; scores of earlier versions have none."""


@dataclass(frozen=True)
class Scores:
    """The scores written by jobs/explain.py."""

    table: pa.Table
    """All rows, failed ones included, in the order of the shards."""
    map_size: tuple[int, int]
    zones: tuple[str, ...]
    threshold: float
    """On `prob_mean`."""
    target: str
    """What the maps explain: predicted, pneumonia or normal."""
    zone_mode: str = "image"
    """What the zones divide: the network's input (image), a box of the lungs (box), or each lung (lungs)."""
    temperature: float = 1.0
    """Calibrated probability = sigmoid(logit / temperature + intercept)."""
    intercept: float = 0.0
    """See `temperature`; 0 where the metadata has none, as before there was one."""

    @property
    def calibration(self) -> Calibration:
        """How raw logits became probabilities."""
        return Calibration(self.temperature, self.intercept)

    def maps(self, column: str) -> NDArray[np.float32]:
        """Return `cam_mean` or `cam_std`, float32 [n, h, w]; NaN for failed rows."""
        values = self.table[column].combine_chunks()
        known = pc.is_valid(values).to_numpy(zero_copy_only=False)
        maps = np.full((len(values), *self.map_size), np.nan, np.float32)
        maps[known] = values.drop_null().flatten().to_numpy().reshape(-1, *self.map_size)
        return maps

    def zone_groups(self) -> NDArray[np.float64] | None:
        """Return the zone means of each independent group of passes, float64 [n, G, 6]; None in scores without them."""
        if "zone_groups" not in self.table.column_names:
            return None
        values = self.table["zone_groups"].combine_chunks()
        known = pc.is_valid(values).to_numpy(zero_copy_only=False)
        if not known.any():
            return None
        groups = np.full((len(values), values.type.list_size // len(self.zones), len(self.zones)), np.nan)
        groups[known] = values.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, *groups.shape[1:])
        return groups

    def ok(self) -> "Scores":
        """Return the rows that did not fail."""
        return self.where(pc.equal(self.table["status"], "ok"))

    def failed(self) -> "Scores":
        """Return the rows that failed."""
        return replace(self, table=self.table.filter(pc.equal(self.table["status"], "failed")))

    def labelled(self) -> "Scores":
        """Return the rows whose class is known; the scores must be joined with the manifest."""
        return self.where(pc.is_valid(self.table["label"]))

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return a column of numbers, float64 [n]; NaN where null."""
        return self.table[column].to_numpy(zero_copy_only=False).astype(np.float64)

    @property
    def num_score_columns(self) -> int:
        """Number of columns of the scores; joined columns follow."""
        names = self.table.column_names
        return 1 + max(names.index(name) for name in LAST_COLUMNS if name in names)

    def of_split(self, split: str) -> "Scores":
        """Return the rows of one split; the scores must be joined with the manifest."""
        return self.where(pc.equal(self.table["split"], split))

    def where(self, chosen: pa.ChunkedArray) -> "Scores":
        """Return the chosen rows; without copying the maps if all rows are chosen."""
        if not chosen.null_count and pc.all(chosen, min_count=0).as_py():
            return self
        return replace(self, table=self.table.filter(chosen))

    def taken(self, rows: pa.Array) -> "Scores":
        """Return the rows of these numbers, in this order."""
        return replace(self, table=self.table.take(rows))

    def joined(
        self, manifest: pa.Table, columns: tuple[str, ...] = ("label", "split", "subtype", "patient_id")
    ) -> "Scores":
        """Return the scores joined with columns of the manifest; null where the manifest lacks the image."""
        place = pc.index_in(self.table["image_id"], value_set=manifest["image_id"].combine_chunks())
        table = self.table
        for name in columns:
            table = table.append_column(name, manifest[name].combine_chunks().take(place.combine_chunks()))
        return replace(self, table=table)


def read_run(folder: str) -> JsonObject:
    """Return `_run.json` of a finished job: the options, the data and the model.

    Raises:
        ManifestError: if it is no JSON object.
    """
    try:
        run = json.loads(storage.read_bytes(storage.join(storage.absolute(folder), "_run.json")))
    except ValueError:
        run = None
    if not isinstance(run, dict):
        raise ManifestError(f"--scores {folder}: _run.json is not that of jobs/explain.py")
    return run


def fact(record: JsonObject, *path: str) -> Any:
    """Return a value of nested JSON; None if it is missing or has another structure (a foreign bundle).

    Args:
        record: from `read_run`, or the provenance of a bundle.
        path: keys, from the outermost to the innermost.
    """
    found: object = record
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def read_scores(folder: str) -> Scores:
    """Read the scores of a finished job.

    Raises:
        ManifestError: if there are none, the job is not finished, or the files are not of this format.
    """
    folder = storage.absolute(folder)
    names = storage.list_files(folder, lambda name: name.endswith(".parquet"))
    if not names:
        raise ManifestError(f"--scores {folder} has no Parquet files; give the folder that jobs/explain.py wrote")
    tables = []
    for name, table in zip(names, storage.read_tables(storage.join(folder, name) for name in names), strict=True):
        tables.append(table)
        if (table.schema.metadata or {}).get(b"format", b"").decode() != FORMAT:
            raise ManifestError(f"--scores {folder}: {name} does not hold scores of jobs/explain.py")
    if not storage.exists(storage.join(folder, "_run.json")):
        raise ManifestError(f"--scores {folder} is of a job that is not finished; repeat its command first")
    facts = tables[0].schema.metadata
    hashes = {(table.schema.metadata.get(b"model_hash"), table.schema.metadata.get(b"config_hash")) for table in tables}
    if len(hashes) > 1:
        raise ManifestError(
            f"--scores {folder} mixes the scores of {len(hashes)} models or configs; give the folder of one job"
        )
    height, width = json.loads(facts[b"map_shape"])
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    if repeated := len(table) - len(pc.unique(table["image_id"])):
        raise ManifestError(f"--scores {folder} has {repeated:,} image(s) more than once; give the folder of one job")
    return Scores(
        table=table,
        map_size=(height, width),
        zones=tuple(json.loads(facts[b"zones"])),
        threshold=float(facts[b"threshold"]),
        target=json.loads(facts[b"method"])["target"],
        zone_mode=json.loads(facts[b"method"]).get("zones", "image"),
        temperature=float(facts[b"temperature"]),
        intercept=float(facts.get(b"intercept", b"0")),
    )
