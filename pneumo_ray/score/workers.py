"""Tasks that decode shards, and actors that explain and write them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pneumo_ray.allocator import keep_freed_memory
from pneumo_ray.cpu_shares import ActorShares, Node, share_scoring
from pneumo_ray.errors import ClusterError, PneumoError, StorageError
from pneumo_ray.evaluate.scores import CROP
from pneumo_ray.ray_cluster import (
    available_cpus,
    compute_environment,
    fetch_once,
    is_retry,
    living_nodes,
    map_actors,
    range_dataset,
    wait_for,
)
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.decode import FATAL, load_shard
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.facts import FACT_FIELDS
from pneumo_ray.score.frame import NUM_FUNCTIONALS
from pneumo_ray.score.image_list import Source, part_name
from pneumo_ray.score.schema import ScoreFacts


@dataclass(frozen=True)
class SharedArguments:
    """Arguments shared by all workers of a job."""

    source: Source
    model: ModelPayload
    config: ExplainConfig
    out: str
    compiled: bool
    halvings: int = 0
    """Number of times the batch was halved after workers died."""


@dataclass(frozen=True)
class ShardReport:
    """Result of one shard."""

    shard: int
    num_rows: int
    fatal: str | None
    """Reason why the job cannot continue, for example a full disk."""
    compiled: bool
    """Whether a compiled network was used."""


class WorkersDiedError(ClusterError):
    """An actor died. Finished files stay, so the rest can be tried again."""


_DEATHS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


def score_shards(arguments: SharedArguments, shards: Sequence[int], actors: ActorShares) -> Iterator[ShardReport]:
    """Score shards on the cluster; yield a report for each when its file is written."""
    shared = ray.put(arguments)
    numbers = ray.put(np.array(shards))
    dataset = range_dataset(len(shards), partial(_decode, shared=shared, numbers=numbers), decoding_cpus(actors))
    # A block is one yield of a task: one shard. Otherwise Ray would split blocks by size.
    dataset.context.target_max_block_size = None
    dataset = map_actors(
        _ExplainActor, dataset, (shared, actors.threads), actors, environment_of(arguments.config.scale)
    )
    for table in collected(dataset):
        for row in table.to_pylist():
            yield ShardReport(**row)


def plan_actors(scale: ScoringScale) -> ActorShares:
    """Wait for the cluster and share it between the processes that hold the model and the tasks that decode.

    Raises:
        ClusterError: if the cluster is too small.
    """
    actors = (scale.min_actors, scale.max_actors)
    nodes = _wait_for_scoring(actors, scale.wait_seconds, use_gpu=scale.use_gpu)
    return share_scoring(nodes, *actors, use_gpu=scale.use_gpu)


def environment_of(scale: ScoringScale) -> dict[str, str]:
    """Return the environment variables with which the processes that hold the model are started."""
    return compute_environment(scale.allocator, use_gpu=scale.use_gpu)


def _wait_for_scoring(actors: tuple[int, int], seconds: float, *, use_gpu: bool) -> Sequence[Node]:
    """Wait until the cluster has room for scoring; return the resources of its nodes.

    Args:
        actors: the fewest and the most; 0 lets the job choose.
        seconds: how long to wait.
        use_gpu: each has a GPU.

    Raises:
        ClusterError: if there is none after that long.
    """
    fewest, most = (max(1, number) for number in actors)
    # Ray Data stalls without a message unless one whole CPU is free.
    needed = {"CPU": 2.0} | ({"GPU": float(fewest)} if use_gpu else {})
    actor = {"CPU": 1.0} | ({"GPU": 1.0} if use_gpu else {})
    advice = (
        "one CPU decodes; ask for fewer --scale.num-actors, or raise --scale.wait-seconds where nodes are still coming"
    )
    return wait_for(needed, [*[actor] * most, {"CPU": 1.0}], seconds, advice)


def decoding_cpus(actors: ActorShares) -> float:
    """Return the logical CPUs of one task that decodes beside the actors."""
    free = available_cpus() - actors.count * actors.num_cpus
    return 1.0 if free >= 2 else free / 2


def collected(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Run a dataset of explained images and yield its blocks.

    Raises:
        WorkersDiedError: if an actor died.
    """
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    except _DEATHS as error:
        raise WorkersDiedError(
            f"workers died ({type(error).__name__}), most likely for lack of memory or with their node; finished files "
            "are kept, so repeat the command with a smaller --scale.batch-size or fewer --scale.num-actors"
        ) from error


def start_processes(scale: ScoringScale) -> None:
    """Start a process as decoding needs it and one as actors have it, and import in both what they need; do not wait.

    On one machine the first decoding task and the first actor then begin in processes that are ready. The nodes of a
    larger cluster start theirs at the same time as each other. Not with GPUs: a process that looks for them before Ray has
    given it one may not find it later.
    """
    if not scale.use_gpu and len(living_nodes()) == 1:
        for environment in ({}, environment_of(scale)):
            _started(_ready, environment)


def _ready() -> None:
    import torchvision  # noqa: F401 (the rest comes with this module)


def _started(function: Callable[..., Any], environment: Mapping[str, str], *args: Any) -> Any:
    """Start a function in a process with these environment variables, whatever is reserved; return a reference to its result.

    A process lives on for other tasks and actors with the same variables, and has imported what they need.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0}
    if environment:
        options["runtime_env"] = {"env_vars": dict(environment)}
    return ray.remote(**options)(function).remote(*args)


def measure_rate(model: ModelPayload, config: ExplainConfig) -> "ray.ObjectRef[float]":
    """Begin to measure how many images a second the actors on CPUs explain, not compiled; return a reference to the rate."""
    return _started(_rate, environment_of(config.scale), ray.put(model), config, plan_actors(config.scale))


def _rate(model: ModelPayload, config: ExplainConfig, actors: ActorShares) -> float:
    explainer = open_explainer(model, config, actors.threads, compiled=False)
    explainer.warm_up()
    start = time.perf_counter()
    explainer.warm_up()
    return actors.count * explainer.at_once / (time.perf_counter() - start)


def open_explainer(model: ModelPayload, config: ExplainConfig, threads: int, *, compiled: bool) -> Explainer:
    """Return the models on this actor's device."""
    return Explainer(model, config, worker_device(threads, use_gpu=config.scale.use_gpu), compiled=compiled)


def worker_device(threads: int, *, use_gpu: bool) -> torch.device:
    """Return the device of this actor, after giving it its share of the threads where that is the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    if use_gpu and device.type == "cpu":
        raise RuntimeError("this node has a GPU, but its torch has no CUDA")
    return device


def explain_rows(explainer: Explainer, rows: pa.Table) -> pa.Table:
    """Return the scores of decoded images, one row each, in the schema of the scores.

    Args:
        explainer: the scorer.
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
    boxes = [None if box is None else tuple(box) for box in good["box"].to_pylist()]
    columns = explainer.columns(pixels, boxes, _functionals(good["functionals"], explainer.model.facts.num_cells))
    if columns:
        columns |= dict(zip(CROP, np.array(good["window"].to_pylist(), np.float32).T, strict=True))
        columns |= {name: np.array(good[name].to_pylist(), object) for name in ("lung_quality", "view")}
        columns |= _facts(good, explainer.model.facts)
        finite = np.isfinite(columns["logit_mean"]) & np.isfinite(columns["prob_mean"])
        for row, fine in zip(np.flatnonzero([failure is None for failure in failures]), finite, strict=True):
            if not fine:
                failures[row] = ("explain", "not_finite: the network's output is not a number")
        columns = {name: values[finite] for name, values in columns.items()}
        if explainer.model.facts.site is not None:
            columns |= explainer.model.facts.site.columns(columns["prob_mean"])
    return explainer.model.facts.table(
        rows["image_id"].to_pylist(), failures, columns, explainer.precision, rows["note"].to_pylist()
    )


def _facts(good: pa.Table, facts: ScoreFacts) -> dict[str, np.ndarray]:
    """Return who is on n decoded images, how their files were made, and why they are unlike those of the training."""
    known = {field.name: good[field.name].to_pylist() for field in FACT_FIELDS}
    outside = [None] * len(good) if facts.support is None else facts.support.reasons(known)
    return {name: np.array(values, object) for name, values in known.items()} | {
        "outside_support": np.array(outside, object)
    }


def _functionals(column: pa.ChunkedArray, num_cells: int) -> np.ndarray | None:
    """Return what measures maps in their lungs, float32 [n, NUM_FUNCTIONALS, h * w], NaN where null; None without any."""
    if column.null_count == len(column):
        return None
    blank = np.full((NUM_FUNCTIONALS, num_cells), np.nan, np.float32)
    found = [
        blank if raw is None else np.frombuffer(raw, np.float32).reshape(blank.shape) for raw in column.to_pylist()
    ]
    return np.stack(found)


def _decode(
    batch: dict[str, np.ndarray], shared: "ray.ObjectRef[SharedArguments]", numbers: "ray.ObjectRef[list[int]]"
) -> Iterator[pa.Table]:
    cv2.setNumThreads(1)
    keep_freed_memory()
    arguments: SharedArguments = fetch_once(shared)
    for position in batch["id"]:
        shard = int(fetch_once(numbers)[position])
        yield load_shard(
            arguments.source.read(shard),
            shard,
            arguments.model.preprocessing,
            find=arguments.config.finds_lungs(arguments.model.preprocessing.fit),
            map_size=arguments.model.facts.map_size,
            decode_seconds=arguments.config.decode_seconds,
            careful=is_retry(),
        )


class _ExplainActor:
    """Actor with the model; turns decoded shards into files."""

    def __init__(self, shared: "ray.ObjectRef[SharedArguments]", threads: int) -> None:
        self._arguments: SharedArguments = ray.get(shared)
        self._explainer = open_explainer(
            self._arguments.model, self._arguments.config, threads, compiled=self._arguments.compiled
        )
        # A batch is at most a shard, and inputs of a compiled network are padded to the batch size.
        at_once = min(self._explainer.at_once, self._arguments.source.length(0))
        self._explainer.at_once = max(1, at_once >> self._arguments.halvings)
        self._explainer.warm_up()  # while other processes decode the first shards

    def __call__(self, block: pa.Table) -> pa.Table:
        reports: dict[str, list[int | str | bool | None]] = {"shard": [], "num_rows": [], "fatal": [], "compiled": []}
        numbers = block["shard"].to_numpy()
        for shard in np.unique(numbers):
            rows = block.filter(pa.array(numbers == shard))
            assert len(rows) == self._arguments.source.length(int(shard)), "Ray Data split a shard"
            fatal = None
            try:
                if rows["stage"][0].as_py() == FATAL:
                    raise StorageError(rows["error"][0].as_py())
                table = explain_rows(self._explainer, rows)
                storage.write_table(table, storage.join(self._arguments.out, part_name(int(shard))))
            except PneumoError as error:  # Ray would wrap an exception in its own text
                fatal = str(error)
            for name, value in zip(reports, (int(shard), len(rows), fatal, self._explainer.compiled), strict=True):
                reports[name].append(value)
        types = {"shard": pa.int64(), "num_rows": pa.int64(), "fatal": pa.string(), "compiled": pa.bool_()}
        return pa.table({name: pa.array(values, types[name]) for name, values in reports.items()})
