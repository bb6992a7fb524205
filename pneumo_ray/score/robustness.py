"""Score a split again under every condition of `images/corruptions.py`: decode once, make conditions, explain, measure.

The images go through the decoder, the actors and the engine of jobs/explain.py, so the scores of `as_it_is` are
those of that job. A block contains few images under all conditions, and pixels never reach the driver.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.anatomy.frames import cell_means
from pneumo_ray.anatomy.masks import decode_mask
from pneumo_ray.console import duration, log, progress
from pneumo_ray.cpu_shares import ActorShares
from pneumo_ray.data.manifest import fingerprint, read_manifest
from pneumo_ray.errors import ManifestError, StorageError
from pneumo_ray.evaluate.robustness import FORMAT, NUMBERS, SCHEMA, condition_rows, measure_conditions, summary_line
from pneumo_ray.evaluate.shortcuts import metadata_baseline
from pneumo_ray.images.corruptions import AS_IT_IS, CENTRAL_BOX, CONDITIONS, apply_condition
from pneumo_ray.model import Preprocessing
from pneumo_ray.ray_cluster import Shared, fetch_once, is_retry, map_actors, range_dataset, share
from pneumo_ray.records import JsonObject, Row, json_of
from pneumo_ray.score.begin import check_method, models_of
from pneumo_ray.score.config import ExplainConfig, RobustnessConfig
from pneumo_ray.score.decode import FATAL, load_shard
from pneumo_ray.score.explainer import ModelPayload
from pneumo_ray.score.image_list import MAX_SHARD_BYTES
from pneumo_ray.score.listing import LUNG_COLUMNS, manifest_images
from pneumo_ray.score.shards import start_decoder
from pneumo_ray.score.workers import (
    collected,
    decoding_cpus,
    environment_of,
    explain_rows,
    make_ready,
    open_explainer,
    plan_actors,
)

MAX_IMAGES = 16
"""Largest number of images in a block."""


@dataclass(frozen=True)
class _SharedArguments:
    """Arguments shared by all workers."""

    rows: pa.Table
    """The list of images (`score/image_list.py`), with `label` and `patient_id`."""
    at_once: int
    model: ModelPayload
    config: ExplainConfig


def measure_robustness(asked: RobustnessConfig) -> JsonObject:
    """Score the labelled images of a split under all conditions and measure them. Needs a running Ray.

    Writes `robustness.parquet` (a row for every image and condition), `robustness.json` and `robustness.csv`; older ones
    are replaced. An image without lungs, in its mask or its box, has `CENTRAL_BOX` for them.

    Returns:
        What robustness.json holds; None where a metric is undefined.

    Raises:
        PneumoError: the reason in one sentence.
    """
    split, seed, config = asked.split, asked.seed, asked.scoring()
    out = storage.absolute(asked.out)
    start_decoder()
    models = models_of(config)
    config = config.resolved(models.site, posterior=models.posterior)
    check_method(config, models)
    table = read_manifest(storage.absolute(asked.manifest))
    rows = _labelled(config, table, models.preprocessing, split)
    storage.require_writable(out)
    model = ModelPayload.of(models, config)
    arguments = _SharedArguments(
        rows=rows,
        at_once=max(1, min(MAX_IMAGES, MAX_SHARD_BYTES // (len(CONDITIONS) * models.preprocessing.image_size**2))),
        model=model,
        config=config,
    )
    log(f"{len(rows):,} labelled images of {_name(split)} under {len(CONDITIONS)} conditions, {config.passes} passes")
    started = time.monotonic()
    scored = _score(arguments, plan_actors(config.scale))
    seconds = time.monotonic() - started
    facts = arguments.model.facts
    about = {"format": FORMAT, "model_hash": facts.model_hash, "split": split, "threshold": repr(facts.threshold)}
    about |= {"seed": str(seed), "use": "research use only"}
    storage.write_table(scored.replace_schema_metadata(about), storage.join(out, "robustness.parquet"))
    records = measure_conditions(scored, facts.threshold, seed)
    baseline = metadata_baseline(table, None if split == "all" else split)
    failures = _failures(scored)
    numbers = {
        "format": FORMAT,
        "model_hash": facts.model_hash,
        "manifest": asked.manifest,
        "manifest_fingerprint": fingerprint(table),
        "split": split,
        "threshold": facts.threshold,
        "temperature": facts.temperature,
        "intercept": facts.intercept,
        "method": facts.method,
        "pictures": len(rows),
        "failed": sum(failures.values()),
        "failures": failures,
        "normal": pc.sum(pc.equal(rows["label"], 0)).as_py(),
        "pneumonia": pc.sum(pc.equal(rows["label"], 1)).as_py(),
        "lung_boxes": _taken_for_lungs(scored),
        "conditions": [json_of(record) for record in records],
        "metadata_only": json_of(baseline),
        "seconds": round(seconds, 2),
        "images_per_second": round(len(scored) / seconds, 2),
        "use": "research use only",
    }
    storage.write_json(numbers, storage.join(out, "robustness.json"), allow_nan=False)
    storage.write_csv(condition_rows(records), storage.join(out, "robustness.csv"))
    log(f"robustness: {summary_line(records, baseline)}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in failures.items())
    log(
        f"wrote robustness.json, robustness.csv and {len(scored):,} rows of robustness.parquet to {out}; "
        f"{numbers['failed']:,} images failed{f' ({kinds})' if kinds else ''}; {duration(seconds)}"
    )
    return numbers


def _labelled(config: ExplainConfig, table: pa.Table, preprocessing: Preprocessing, split: str) -> pa.Table:
    """Return the list of the labelled images of a split, those that preparing could not read included.

    Raises:
        ManifestError: if there are none.
    """
    assert config.manifest is not None
    boxes = all(name in table.column_names for name in LUNG_COLUMNS)
    rows = manifest_images(config.manifest, preprocessing, boxes=boxes)
    for name in ("label", "patient_id"):
        rows = rows.append_column(name, table[name].cast(SCHEMA.field(name).type))
    chosen = pc.is_valid(table["label"])
    if split != "all":
        chosen = pc.and_(chosen, pc.fill_null(pc.equal(table["split"], split), False))
    rows = rows.filter(chosen)
    if not len(rows):
        raise ManifestError(
            f"manifest {config.manifest} has no labelled images in {_name(split)}; choose another --split, or add labels "
            "with jobs/prepare.py --labels"
        )
    return rows.combine_chunks()


def _name(split: str) -> str:
    return "all splits" if split == "all" else f"the split {split}"


def _score(arguments: _SharedArguments, actors: ActorShares) -> pa.Table:
    """Return the rows of `SCHEMA`, in the order of the list and of the conditions."""
    shared = share(arguments)
    blocks = -(-len(arguments.rows) // arguments.at_once)
    dataset = range_dataset(blocks, partial(_make_conditions, shared=shared), decoding_cpus(actors))
    # A block is one yield of a task. Otherwise Ray would split blocks, and batches, by size.
    dataset.context.target_max_block_size = None
    dataset.context.execution_options.preserve_order = True
    environment = environment_of(arguments.config.scale)
    dataset = map_actors(_ConditionActor, dataset, (shared, actors), actors, environment)
    tables = []
    with progress("scoring conditions", len(arguments.rows) * len(CONDITIONS)) as tick:
        for table in collected(dataset):
            if table["error_stage"][0].as_py() == FATAL:
                raise StorageError(table["error"][0].as_py())
            tables.append(table.select(SCHEMA.names).cast(SCHEMA))
            tick(len(table))
    return pa.concat_tables(tables).combine_chunks()


def _make_conditions(batch: dict[str, np.ndarray], shared: Shared) -> Iterator[pa.Table]:
    """Decode a few images and yield them under each condition, with the columns of `load_shard` and of the row."""
    cv2.setNumThreads(1)
    arguments: _SharedArguments = fetch_once(shared)
    size = arguments.model.preprocessing.image_size
    for block in batch["id"]:
        rows = arguments.rows.slice(int(block) * arguments.at_once, arguments.at_once)
        preprocessing = arguments.model.preprocessing
        find = arguments.config.finds_lungs(preprocessing.fit)
        loaded = load_shard(rows, int(block), preprocessing, find=find, careful=is_retry())
        loaded = loaded.append_column("label", rows["label"]).append_column("patient_id", rows["patient_id"])
        names = rows["image_id"].to_pylist()
        kept = loaded.select(["pixels", "lung_mask", "window", "box"]).to_pylist()
        images = [
            None if row["pixels"] is None else np.frombuffer(row["pixels"], np.uint8).reshape(size, size)
            for row in kept
        ]
        lungs = [_lungs(row, size) for row in kept]
        kinds = ["mask" if isinstance(found, np.ndarray) else "central" if found is None else "box" for found in lungs]
        loaded = loaded.append_column("lungs", pa.array(kinds))
        for condition in CONDITIONS:
            made = [
                None
                if image is None
                else apply_condition(image, condition, name, arguments.config.seed, found).tobytes()
                for image, name, found in zip(images, names, lungs, strict=True)
            ]
            yield pa.table(
                {
                    **{name: loaded[name] for name in loaded.column_names},
                    "pixels": pa.array(made, pa.binary(size * size)),
                    "condition": pa.array([condition.name] * len(rows)),
                    "severity": pa.array([condition.severity] * len(rows), pa.int8()),
                }
            )


def _lungs(row: Row, size: int) -> tuple[int, int, int, int] | NDArray[np.bool_] | None:
    """Return the lungs in the frame of the input: a mask, bool [size, size], or a box; None where neither is known."""
    if row["lung_mask"] is None:
        return None if row["box"] is None else (row["box"][0], row["box"][1], row["box"][2], row["box"][3])
    x0, y0, x1, y1 = row["window"]
    return np.asarray(cell_means(decode_mask(row["lung_mask"]), (size, size), (x0, y0, x1, y1)) >= 0.5)


def _taken_for_lungs(scored: pa.Table) -> JsonObject:
    """Count the images by what was taken for their lungs."""
    plain = scored.filter(pc.equal(scored["condition"], AS_IT_IS.name))
    counts = Counter(plain["lungs"].to_pylist())
    return {
        "masks": counts["mask"],
        "manifest": counts["box"],
        "central": counts["central"],
        "central_box": CENTRAL_BOX,
    }


class _ConditionActor:
    """Actor with the model; turns images under conditions into rows of `SCHEMA`."""

    def __init__(self, shared: Shared, actors: ActorShares) -> None:
        arguments: _SharedArguments = fetch_once(shared)
        self._explainer = open_explainer(arguments.model, arguments.config, actors.threads)
        # A batch is at most a block, and inputs of a compiled network are padded to the batch size.
        self._explainer.at_once = min(self._explainer.at_once, arguments.at_once, len(arguments.rows))
        make_ready(self._explainer, len(arguments.rows) * len(CONDITIONS), actors.count)

    def __call__(self, block: pa.Table) -> pa.Table:
        scores = explain_rows(self._explainer, block)
        kept = scores.select(["image_id", "status", "error_stage", "error", *NUMBERS]).replace_schema_metadata(None)
        for name in ("condition", "severity", "label", "patient_id", "lungs"):
            kept = kept.append_column(name, block[name])
        return kept


def _failures(scored: pa.Table) -> dict[str, int]:
    """Count the images that failed under any condition, by `stage: kind`."""
    failed = scored.filter(pc.equal(scored["status"], "failed"))
    columns = (failed[name].to_pylist() for name in ("image_id", "error_stage", "error"))
    kinds = {image_id: f"{stage}: {error.split(':', 1)[0]}" for image_id, stage, error in zip(*columns, strict=True)}
    return dict(Counter(kinds.values()).most_common())
