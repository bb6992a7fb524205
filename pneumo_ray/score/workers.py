"""Actors that explain decoded shards and write them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch

from pneumo_ray import storage
from pneumo_ray.cpu_shares import ActorShares, Node, share_scoring
from pneumo_ray.errors import ClusterError, PneumoError, StorageError
from pneumo_ray.evaluate.scores import CROP
from pneumo_ray.ray_cluster import (
    Shared,
    available_cpus,
    compute_environment,
    map_actors,
    range_dataset,
    share,
    wait_for,
)
from pneumo_ray.score.compilation import worth_compiling
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.decode import FATAL
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.facts import FACT_FIELDS
from pneumo_ray.score.frame import NUM_FUNCTIONALS
from pneumo_ray.score.image_list import Source, part_name
from pneumo_ray.score.schema import ScoreFacts
from pneumo_ray.score.shards import Decoding, decode_shards


@dataclass(frozen=True)
class SharedArguments:
    """Arguments shared by all workers of a job."""

    source: Source
    model: ModelPayload
    config: ExplainConfig
    out: str
    compiled: bool | None
    """What an earlier run of the job did; None lets an actor decide."""
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
    config, model = arguments.config, arguments.model
    decoding = Decoding(
        arguments.source,
        np.array(shards),
        model.preprocessing,
        config.finds_lungs(model.preprocessing.fit),
        model.facts.map_size,
        config.decode_seconds,
    )
    dataset = range_dataset(len(shards), partial(decode_shards, shared=share(decoding)), decoding_cpus(actors))
    # A block is one yield of a task: one shard. Otherwise Ray would split blocks by size.
    dataset.context.target_max_block_size = None
    dataset = map_actors(_ExplainActor, dataset, (share(arguments), actors), actors, environment_of(config.scale))
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


def open_explainer(model: ModelPayload, config: ExplainConfig, threads: int) -> Explainer:
    """Return the models on this actor's device."""
    return Explainer(model, config, worker_device(threads, use_gpu=config.scale.use_gpu))


def make_ready(explainer: Explainer, images: int, actors: int, compiled: bool | None = None) -> None:
    """Compile the networks where that saves time, and explain a blank batch, while other processes decode the first images.

    Args:
        explainer: the scorer, with the batch that it will have.
        images: number of images of the job.
        actors: that share them.
        compiled: whether to compile; None decides it.
    """
    if compiled is None:
        compiled = worth_compiling(explainer.config, explainer.model, images, partial(_rate, explainer, actors))
    if compiled:
        explainer.compile()
    explainer.warm_up()


def _rate(explainer: Explainer, actors: int) -> float:
    explainer.warm_up()  # what happens once is not measured
    start = time.perf_counter()
    explainer.warm_up()
    return actors * explainer.at_once / (time.perf_counter() - start)


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


class _ExplainActor:
    """Actor with the model; turns decoded shards into files."""

    def __init__(self, shared: Shared, actors: ActorShares) -> None:
        self._arguments: SharedArguments = ray.get(shared)
        arguments, source = self._arguments, self._arguments.source
        self._explainer = open_explainer(arguments.model, arguments.config, actors.threads)
        # A batch is at most a shard, and inputs of a compiled network are padded to the batch size.
        at_once = min(self._explainer.at_once, source.length(0))
        self._explainer.at_once = max(1, at_once >> arguments.halvings)
        make_ready(self._explainer, source.num_images, actors.count, arguments.compiled)

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
