"""What the cluster does for a scoring job: tasks that decode shards, actors that explain and write them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch

from pneumo_ray import storage
from pneumo_ray.data.pipeline import available_cpus, counted, fetched, was_started_before
from pneumo_ray.errors import ClusterError, PneumoError
from pneumo_ray.score.capacity import ActorPlan
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.decode import load_shard
from pneumo_ray.score.explainer import Explainer, ScoringModel
from pneumo_ray.score.source import Source
from pneumo_ray.score.table import part_name


@dataclass(frozen=True)
class Plan:
    """What every worker of a job is told."""

    source: Source
    model: ScoringModel
    config: ExplainConfig
    out: str
    compiled: bool
    halvings: int = 0
    """How often the batch was halved because workers died."""


@dataclass(frozen=True)
class ShardReport:
    """What became of one shard."""

    shard: int
    num_rows: int
    fatal: str | None
    """Why the job cannot go on, for example because the disk is full."""
    compiled: bool
    """Whether a compiled network made it."""


class WorkersDiedError(ClusterError):
    """A process that held the model died. What was written stays, so the rest can be tried again."""


_DEATHS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


def score_shards(plan: Plan, shards: Sequence[int], actors: ActorPlan) -> Iterator[ShardReport]:
    """Score shards on the cluster; yield a report for each when its file is written."""
    shared = ray.put(plan)
    numbers = ray.put(np.array(shards))
    dataset = counted(len(shards), partial(_decode, shared=shared, numbers=numbers), decoding_cpus(actors))
    # A block is what a task yields: one shard. Ray would otherwise cut blocks by their bytes.
    dataset.context.target_max_block_size = None
    dataset = explained_by(_ExplainActor, dataset, shared, actors)
    for table in collected(dataset):
        for row in table.to_pylist():
            yield ShardReport(**row)


def decoding_cpus(actors: ActorPlan) -> float:
    """Return the logical CPUs of one task that decodes beside the actors."""
    free = available_cpus() - actors.count * actors.num_cpus
    return 1.0 if free >= 2 else free / 2


def explained_by(kind: type, dataset: ray.data.Dataset, shared: Any, actors: ActorPlan) -> ray.data.Dataset:
    """Hand whole blocks to actors of a kind, which are made of a reference to what they share and their threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last option is deprecated, and nothing has come in its place
        return dataset.map_batches(
            kind,
            fn_constructor_args=(shared, actors.threads),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=actors.count, max_size=actors.most),
            num_cpus=actors.num_cpus,
            num_gpus=actors.num_gpus,
            # Ray would restart one that died without end and a word, and wait for ever for the node that it was on.
            ray_remote_args_fn=_no_restarts,
        )


def _no_restarts() -> dict[str, int]:
    return {"max_restarts": 0, "max_task_retries": 0}


def collected(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Run a dataset of explained pictures and yield its blocks.

    Raises:
        WorkersDiedError: if a process that held the model died.
    """
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    except _DEATHS as error:
        raise WorkersDiedError(
            f"workers died ({type(error).__name__}), most likely for want of memory or with their node; what is written "
            "stays, so repeat the command, with a smaller --scale.batch-size or fewer --scale.num-actors"
        ) from error


def open_explainer(model: ScoringModel, config: ExplainConfig, threads: int, *, compiled: bool) -> Explainer:
    """Return the model on this actor's device."""
    device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    if config.scale.use_gpu and device.type == "cpu":
        raise RuntimeError("this node has a GPU, but its torch has no CUDA")
    return Explainer(model, config, device, compiled=compiled)


def explain_rows(explainer: Explainer, rows: pa.Table) -> pa.Table:
    """Return the scores of decoded pictures, a row each, in the schema of the scores.

    Args:
        explainer: what scores them.
        rows: with the columns of `load_shard`.
    """
    size = explainer.model.preprocessing.image_size
    stages, errors = rows["stage"].to_pylist(), rows["error"].to_pylist()
    failures: list[tuple[str, str] | None] = [
        None if stage is None else (stage, error) for stage, error in zip(stages, errors, strict=True)
    ]
    good = rows.filter(pc.is_valid(rows["pixels"]))
    raw = b"".join(good["pixels"].to_pylist())
    pixels = np.frombuffer(raw, np.uint8).reshape(len(good), size, size)
    columns = explainer.columns(pixels, [None if box is None else tuple(box) for box in good["box"].to_pylist()])
    if columns:
        finite = np.isfinite(columns["logit_mean"]) & np.isfinite(columns["prob_mean"])
        for row, fine in zip(np.flatnonzero([failure is None for failure in failures]), finite, strict=True):
            if not fine:
                failures[row] = ("explain", "not_finite: the network's output is not a number")
        columns = {name: values[finite] for name, values in columns.items()}
    return explainer.model.facts.table(
        rows["image_id"].to_pylist(), failures, columns, explainer.precision, rows["note"].to_pylist()
    )


def _decode(batch: dict[str, np.ndarray], shared: Any, numbers: Any) -> Iterator[pa.Table]:
    cv2.setNumThreads(1)
    plan: Plan = fetched(shared)
    for position in batch["id"]:
        shard = int(fetched(numbers)[position])
        yield load_shard(
            plan.source.read(shard),
            shard,
            plan.model.preprocessing,
            decode_seconds=plan.config.decode_seconds,
            careful=was_started_before(),
        )


class _ExplainActor:
    """Holds the model; turns decoded shards into files."""

    def __init__(self, shared: Any, threads: int) -> None:
        self._plan: Plan = ray.get(shared)
        self._explainer = open_explainer(self._plan.model, self._plan.config, threads, compiled=self._plan.compiled)
        # No batch is larger than a shard, and a compiled network is padded to its batch.
        at_once = min(self._explainer.at_once, self._plan.source.length(0))
        self._explainer.at_once = max(1, at_once >> self._plan.halvings)

    def __call__(self, block: pa.Table) -> pa.Table:
        reports: dict[str, list[Any]] = {"shard": [], "num_rows": [], "fatal": [], "compiled": []}
        numbers = block["shard"].to_numpy()
        for shard in np.unique(numbers):
            rows = block.filter(pa.array(numbers == shard))
            assert len(rows) == self._plan.source.length(int(shard)), "Ray Data cut a shard in two"
            fatal = None
            try:
                table = explain_rows(self._explainer, rows)
                storage.write_table(table, storage.join(self._plan.out, part_name(int(shard))))
            except PneumoError as error:  # an exception would reach the driver as text inside text
                fatal = str(error)
            for name, value in zip(reports, (int(shard), len(rows), fatal, self._explainer.compiled), strict=True):
                reports[name].append(value)
        types = {"shard": pa.int64(), "num_rows": pa.int64(), "fatal": pa.string(), "compiled": pa.bool_()}
        return pa.table({name: pa.array(values, types[name]) for name, values in reports.items()})
