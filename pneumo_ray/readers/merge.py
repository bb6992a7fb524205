"""The readings of an archive's images onto its manifest: one label of all readers, and how far it can be relied on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.config import Consensus
from pneumo_ray.data.label_merge import without_stale_subtypes
from pneumo_ray.data.manifest import OPINION_FIELDS
from pneumo_ray.readers.consensus import consensus_of
from pneumo_ray.readers.readings import Readings, read_readings, write_readings

READINGS_FILE = "readings.parquet"


@dataclass(frozen=True)
class Opinions:
    """Readings, and how they become labels."""

    readings: Readings
    consensus: Consensus

    def __call__(self, manifest: pa.Table, out: str) -> pa.Table:
        """Return a manifest with the labels of its readers, and write readings.parquet beside it.

        An image with an answer takes its label from the consensus; a consensus of exactly 0.5 keeps the label that the
        image has. The last answer of a reader counts, and `cannot say` is no answer. The weight is the mean of the
        confidences that its readers state.

        Args:
            manifest: with the labels of the archive or of a table.
            out: folder of the run.

        Raises:
            ManifestError: if a reading is about an unknown image.
        """
        image_ids = manifest["image_id"].to_pylist()
        readings = self.readings.matched(image_ids, "--readings")
        write_readings(readings, storage.join(out, READINGS_FILE))
        votes = readings.last().votes(image_ids)
        soft = consensus_of(votes, self.consensus)
        labels = manifest["label"].to_pylist()
        for row in np.flatnonzero(~np.isnan(soft) & (soft != 0.5)).tolist():
            labels[row] = int(soft[row] > 0.5)
        merged = manifest.set_column(
            manifest.column_names.index("label"), manifest.schema.field("label"), pa.array(labels, pa.int8())
        )
        known = merged["label"].cast(pa.float64()).to_numpy()
        answers = np.count_nonzero(~np.isnan(votes), 1)
        columns = (np.where(answers > 0, soft, known), _weights(readings.last(), image_ids), answers)
        for spec, column in zip(OPINION_FIELDS, columns, strict=True):
            merged = merged.append_column(spec, pa.array(column, spec.type, from_pandas=True))
        log(_summary(self, readings, manifest, merged))
        return without_stale_subtypes(manifest, merged, None)


def read_opinions(uris: Sequence[str], consensus: Consensus) -> Opinions:
    """Read files of readings, before anything else is done.

    Raises:
        ManifestError: as `read_readings`.
    """
    return Opinions(read_readings(uris), consensus)


def _weights(readings: Readings, image_ids: Sequence[str]) -> np.ndarray:
    """Return the mean confidence of the answers 0 and 1 about each image, [images]; 1 where none is stated."""
    stated = readings.table.filter(
        pc.and_(pc.is_valid(readings.table["label"]), pc.is_valid(readings.table["confidence"]))
    )
    mean = stated.group_by("image_id").aggregate([("confidence", "mean")])
    of_image = dict(zip(mean["image_id"].to_pylist(), mean["confidence_mean"].to_pylist(), strict=True))
    return np.array([of_image.get(name, 1.0) for name in image_ids])


def _summary(opinions: Opinions, readings: Readings, before: pa.Table, after: pa.Table) -> str:
    old, new = (table["label"].combine_chunks() for table in (before, after))
    changed = pc.sum(pc.fill_null(pc.not_equal(old, new), False)).as_py()
    found = pc.sum(pc.and_(pc.is_null(old), pc.is_valid(new))).as_py()
    ties = pc.sum(pc.and_(pc.equal(after["label_soft"], 0.5), pc.greater(after["num_readers"], 0))).as_py()
    return (
        f"--readings: {len(readings):,} answers of {len(readings.readers):,} reader(s) about {len(readings.image_ids):,} images; "
        f"their {opinions.consensus} changes {changed or 0:,} labels and gives {found or 0:,} images their first; {ties or 0:,} are undecided"
    )
