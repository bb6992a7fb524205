"""What to read next, and in which order.

Reasons rank the images, take turns, and are mixed in the queue, so that a position does not tell why an image is there.
Agreement and prevalence may be estimated from the images of the reason `random` only: the others are chosen for what the
model or the labels say of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.console import log
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.data.table_cells import read_columns
from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.metrics import number_groups
from pneumo_ray.evaluate.scores import Scores, read_scores
from pneumo_ray.readers.config import QueueConfig, Reason
from pneumo_ray.readers.order import in_order, with_repeats
from pneumo_ray.readers.priority import Known, priority
from pneumo_ray.readers.readings import Readings, read_readings, write_either

Ints = NDArray[np.int64]

REPEAT = "repeat"
"""Reason of the second time that an image stands in a queue."""
SCHEMA = pa.schema([("image_id", pa.string()), ("reason", pa.string()), ("position", pa.int32())])
"""`position` counts from 1."""


@dataclass(frozen=True)
class Queue:
    """Images to read, in order."""

    image_ids: tuple[str, ...]
    reasons: tuple[str, ...]

    def table(self) -> pa.Table:
        """Return the queue as a table of `SCHEMA`."""
        places = range(1, len(self.image_ids) + 1)
        return pa.table([self.image_ids, self.reasons, places], schema=SCHEMA)


def write_queue(config: QueueConfig) -> Queue:
    """Choose the images to read and write the table.

    Raises:
        PneumoError: if a file cannot be used, or there is nothing to read.
    """
    manifest = read_manifest(config.manifest)
    names = manifest["image_id"].to_pylist()
    readings = read_readings(config.readings).matched(names, "--readings") if config.readings else None
    scores = read_scores(config.scores).ok() if config.scores else None
    doubt = read_doubt(config.doubt, names) if config.doubt else None
    queue = make_queue(config, manifest, scores, readings, doubt)
    write_either(queue.table(), config.out)
    counts = {reason: queue.reasons.count(reason) for reason in dict.fromkeys(queue.reasons)}
    log(
        f"wrote {config.out}: {len(queue.image_ids):,} readings of {len(set(queue.image_ids)):,} images; "
        + ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
    )
    return queue


def make_queue(
    config: QueueConfig,
    manifest: pa.Table,
    scores: Scores | None,
    readings: Readings | None,
    doubt: dict[str, float] | None,
) -> Queue:
    """Choose the images to read next.

    Args:
        config: how many, for which reasons, how mixed.
        manifest: of the images.
        scores: of the images that did not fail; None without a model.
        readings: earlier answers, with the manifest's names; None without.
        doubt: the probability of pneumonia of each image by a model that did not train on it; None without.

    Raises:
        ManifestError: if no image is left to read.
    """
    rng = np.random.default_rng([config.seed, 0x9EAD])
    rows = _candidates(config, manifest)
    rows = rows.take(pa.array(rng.permutation(len(rows))))  # ties are broken at random
    known = Known.of(rows, scores, readings, doubt)
    strata, _ = number_groups(_strata(rows, config.stratify))
    rankings = {}
    for reason in config.by:
        open_rows = np.arange(len(rows)) if _reads_again(config, reason) else np.flatnonzero(~known.read)
        rankings[reason] = _ranked(priority(reason, known), open_rows, strata)
    chosen = _in_turn(rankings, config.count)
    if not chosen:
        raise ManifestError(
            f"manifest {config.manifest} has no image left to read for {' '.join(config.by)}; --again chooses images that "
            "have a reading too"
        )
    short = config.count - len(chosen)
    if short > 0:
        log(f"only {len(chosen):,} of {config.count:,} images fit the reasons")
    patient_of, _ = number_groups(rows["patient_id"].to_pylist())
    images = np.array(list(chosen), np.int64)
    images = images[rng.permutation(len(images))]
    sequence = with_repeats(len(images), round(config.repeats * len(images)), rng)
    order = in_order(patient_of[images][sequence])
    sequence = sequence[order]
    if left_out := len(images) - len(set(sequence.tolist())):
        log(f"{left_out:,} images are left out: they would follow one of the same patient")
    return _queue(rows["image_id"].to_pylist(), images[sequence], chosen)


def _queue(names: Sequence[str], sequence: Ints, chosen: dict[int, Reason]) -> Queue:
    reasons: list[str] = []
    seen: set[int] = set()
    for row in sequence.tolist():
        reasons.append(REPEAT if row in seen else chosen[row])
        seen.add(row)
    return Queue(tuple(names[row] for row in sequence), tuple(reasons))


def _candidates(config: QueueConfig, manifest: pa.Table) -> pa.Table:
    ok = np.array(manifest["status"].to_pylist(), object) == "ok"
    if config.split != "all":
        ok &= np.array(manifest["split"].to_pylist(), object) == config.split
    if "copy_of" in manifest.column_names:
        ok &= np.array([source is None for source in manifest["copy_of"].to_pylist()])
    return manifest.filter(pa.array(ok, pa.bool_()))


def _reads_again(config: QueueConfig, reason: Reason) -> bool:
    return config.again or reason in ("change", "disagreement")


def _strata(rows: pa.Table, column: str | None) -> list[object]:
    if column is None:
        return [0] * len(rows)
    if column not in rows.column_names:
        raise ManifestError(f"--stratify {column} is no column of the manifest; it has {', '.join(rows.column_names)}")
    return ["" if value is None else value for value in rows[column].to_pylist()]


def _ranked(score: NDArray[np.float64], rows: Ints, strata: Ints) -> list[int]:
    """Return rows by falling score, without those of no score (NaN), the strata taking turns."""
    rows = rows[~np.isnan(score[rows])]
    rows = rows[np.argsort(-score[rows], kind="stable")]
    turn = np.zeros(len(rows), np.int64)
    for stratum in np.unique(strata[rows]):
        of_stratum = strata[rows] == stratum
        turn[of_stratum] = np.arange(np.count_nonzero(of_stratum))
    ranked: list[int] = rows[np.argsort(turn, kind="stable")].tolist()
    return ranked


def _in_turn(rankings: dict[Reason, list[int]], count: int) -> dict[int, Reason]:
    """Return at most `count` rows with their reasons, which take turns until they have no row left."""
    chosen: dict[int, Reason] = {}
    left: dict[Reason, Iterator[int]] = {reason: iter(ranked) for reason, ranked in rankings.items()}
    while left and len(chosen) < count:
        for reason in list(left):
            row = next((row for row in left[reason] if row not in chosen), None)
            if row is None:
                del left[reason]
            elif len(chosen) < count:
                chosen[row] = reason
    return chosen


def read_doubt(uri: str, names: Sequence[str]) -> dict[str, float]:
    """Read a table of the columns image_id and prob, as jobs/tune.py --study labels writes it.

    Raises:
        ManifestError: if it cannot be read, has other columns, or a probability is none.
    """
    found = read_columns(uri, "--doubt")
    if not {"image_id", "prob"} <= set(found.names):
        raise ManifestError(f"--doubt {uri} needs the columns image_id and prob")
    image_ids, prob = (found.values[found.names.index(name)].to_pylist() for name in ("image_id", "prob"))
    known, doubt = set(names), {}
    for number, (image_id, value) in enumerate(zip(image_ids, prob, strict=True), 2):
        try:
            doubt[image_id] = float(value)
        except (TypeError, ValueError):
            doubt[image_id] = float("nan")
        if not 0 <= doubt[image_id] <= 1:
            raise ManifestError(f"--doubt {uri} has no probability from 0 to 1 in row {number}")
    if not known & doubt.keys():
        raise ManifestError(f"--doubt {uri} names none of the manifest's images")
    return doubt


def read_queue(uri: str, option: str = "--queue") -> Queue:
    """Read a queue, or any table with a column image_id, in the order of `position` where there is one.

    Raises:
        ManifestError: if it cannot be read, names no images, or a position is no number.
    """
    found = read_columns(uri, option)
    if "image_id" not in found.names or not len(found.values[0]):
        raise ManifestError(f"{option} {uri} needs a column image_id, and rows; make it with jobs/readers.py queue")
    columns = dict(zip(found.names, (values.to_pylist() for values in found.values), strict=True))
    try:
        places = [int(place) for place in columns.get("position", range(len(found.values[0])))]
    except (TypeError, ValueError):
        raise ManifestError(f"{option} {uri} has a position that is no number") from None
    order = sorted(range(len(places)), key=places.__getitem__)
    reasons = columns.get("reason", [""] * len(places))
    return Queue(tuple(columns["image_id"][k] for k in order), tuple(reasons[k] or "" for k in order))
