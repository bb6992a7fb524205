"""Ray datasets: the inspection of an archive, and the stream of training batches. All else in `data` knows no Ray."""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray._private import ray_constants, services
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.train import DataConfig
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pneumo_ray.cli import end_on_sigterm
from pneumo_ray.data.archive import Entry
from pneumo_ray.data.cache import Key, write_shard
from pneumo_ray.data.inspect import INSPECTED_SCHEMA, InspectConfig, inspect_entries
from pneumo_ray.data.pixels import CACHE_SIZE, load_squares
from pneumo_ray.data.stream import Schedule, TicketSource
from pneumo_ray.errors import ManifestError, PneumoError, StorageError

MAX_READ_TASKS = 5_000
"""Bounds what the planning of a run of any length costs, a millisecond a task; a task makes several tickets where there
are more."""

_ABORTED = "aborted"
"""Status of a row that ends the job: it never reaches a manifest."""

_ENTRY_SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "uri", "member", "facts_path", "error")])


def start_ray() -> None:
    """Join the cluster that the job was submitted to, or start one on this machine, reached from nowhere else."""
    if services.canonicalize_bootstrap_address(None) is None:
        # On Linux only Ray's dashboard keeps to loopback by itself; the rest, which runs what it is sent, listens on
        # every interface. This is the switch by which Ray keeps to itself on macOS and Windows; processes inherit it.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(logging_level="warning", log_to_driver=False)
    end_on_sigterm()  # Ray has its own way of ending, without a word
    quiet_ray_data()


def quiet_ray_data() -> None:
    """Keep Ray Data's own progress bars and notices out of a job's output.

    The jobs report progress themselves, and say one sentence of a worker that died; what is a bug is raised in any case.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def was_started_before() -> bool:
    """Whether the task that calls was begun before and its process died: of a picture, of memory, with its node."""
    # Ray counts the attempts and has no public word for them.
    return int(ray._private.worker.global_worker.core_worker.get_current_task_attempt_number()) > 0


def available_cpus() -> float:
    """Return the CPUs of the cluster, at least 1."""
    return max(1.0, ray.cluster_resources().get("CPU", 1.0))


def inspect_archive(entries: Iterable[Entry], config: InspectConfig) -> Iterator[pa.Table]:
    """Inspect entries on the whole cluster; yield manifest rows in the order of the entries, block by block.

    Args:
        entries: what `list_archives` found.
        config: how to look at them. What the cache already holds is shipped to the workers once.
    """
    rows = [(e.image_id, e.uri, e.member, e.facts_path, e.error) for e in entries]
    block = max(8, min(256, math.ceil(len(rows) / (8 * available_cpus()))))
    tables = [
        pa.table(
            [pa.array(column, pa.string()) for column in zip(*rows[start : start + block], strict=True)],
            schema=_ENTRY_SCHEMA,
        )
        for start in range(0, len(rows), block)
    ]
    shared = ray.put(config)
    dataset = ray.data.from_arrow(tables)
    dataset.context.execution_options.preserve_order = True
    dataset = dataset.map_batches(
        partial(_inspect_block, shared=shared), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        if len(table) and table["status"][0].as_py() == _ABORTED:
            raise StorageError(table["error"][0].as_py())
        yield table


def _inspect_block(block: pa.Table, shared: Any) -> pa.Table:
    cv2.setNumThreads(1)
    try:
        entries = [Entry(**row) for row in block.to_pylist()]
        return inspect_entries(entries, fetched(shared), careful=was_started_before())
    except StorageError as error:
        # The cache cannot be written. An exception would arrive as text inside text; a row arrives whole.
        row = {"image_id": "", "status": _ABORTED, "error": str(error)}
        return pa.Table.from_pylist([row], schema=INSPECTED_SCHEMA)


def cache_pictures(rows: pa.Table, folder: str) -> Iterator[dict[Key, tuple[str, int]]]:
    """Decode the pictures of manifest rows on the whole cluster, once each; yield where they are in the cache, block by block.

    Raises:
        ManifestError: naming a file that can no longer be read.
        StorageError: if the folder cannot be written.
    """
    block = max(8, min(256, math.ceil(len(rows) / (8 * available_cpus()))))
    columns = rows.select(["image_id", "uri", "member", "frame", "content_sha256"]).replace_schema_metadata()
    tables = [columns.slice(start, block).combine_chunks() for start in range(0, len(rows), block)]
    if not tables:
        return
    dataset = ray.data.from_arrow(tables).map_batches(
        partial(_cache_block, folder=folder), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        rows_made = table.to_pylist()
        for row in rows_made:
            if row["error"] is not None:
                raise (StorageError if row["cache_file"] == _ABORTED else ManifestError)(row["error"])
        yield {(row["sha"], row["frame"]): (row["cache_file"], row["cache_row"]) for row in rows_made}


def _cache_block(block: pa.Table, folder: str) -> pa.Table:
    cv2.setNumThreads(1)
    keys = [(row["content_sha256"], row["frame"] or 0) for row in block.to_pylist()]
    name, error = "", None
    try:
        pictures = load_squares(block, CACHE_SIZE)
        name = write_shard(folder, CACHE_SIZE, list(zip(keys, pictures, strict=True)))
    except StorageError as reason:  # a sentence in a column arrives whole
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


class StreamConfig(DataConfig):
    """Gives every training worker its tickets, in order, from the epoch where the run continues.

    Ray Data's own shuffling restarts its seeds in a new process, so the order is never Ray's: it is the plan's.
    A block holds exactly one ticket and the order is preserved, so the splitter deals them out like cards.
    """

    def __init__(
        self,
        source: "ray.ObjectRef[TicketSource]",
        epochs: int,
        first_epoch: Callable[[], int],
        cpus_per_task: float,
        reserved: PlacementGroup | None = None,
    ) -> None:
        """Make the configuration.

        Args:
            source: a `TicketSource` in the object store.
            epochs: the last epoch is `epochs - 1`.
            first_epoch: asked each time a group of workers starts, after they have loaded what they resume from.
            cpus_per_task: logical CPUs of one task that makes tickets.
            reserved: where these tasks run; None lets them run anywhere.
        """
        super().__init__()
        self._source, self._epochs, self._first_epoch = source, epochs, first_epoch
        self._cpus_per_task, self._reserved = cpus_per_task, reserved

    def stream(self, world_size: int) -> ray.data.Dataset:
        """Return the tickets of all workers, from where the run continues."""
        return ticket_stream(
            self._source, self._first_epoch(), self._epochs, world_size, self._cpus_per_task, self._reserved
        )

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Return each worker's share of the stream, under the name of the placeholder dataset given to the trainer."""
        (name,) = datasets
        return [{name: share} for share in self.stream(world_size).streaming_split(world_size, equal=True)]


def ticket_stream(
    source: "ray.ObjectRef[TicketSource]",
    first_epoch: int,
    epochs: int,
    world_size: int,
    cpus_per_task: float = 1.0,
    reserved: PlacementGroup | None = None,
) -> ray.data.Dataset:
    """Return a dataset with one row a ticket, in order: what `TicketSource.batch` returns, and `error`, empty if all is well."""
    schedule = ray.get(source).schedule(world_size)
    first = first_epoch * schedule.tickets_per_epoch
    count = epochs * schedule.tickets_per_epoch - first
    if reserved is not None:
        _stay_in(reserved)
    dataset = counted(count, partial(_make_tickets, source=source, first=first, world_size=world_size), cpus_per_task)
    # One row is one ticket; one byte as the target makes one row one block.
    dataset.context.target_max_block_size = 1
    dataset.context.execution_options.preserve_order = True
    dataset.context.memory_usage_poll_interval_s = None
    return dataset


def counted(count: int, make: Callable[[dict[str, np.ndarray]], Iterator[Any]], num_cpus: float) -> ray.data.Dataset:
    """Return a dataset of what tasks make of the numbers from 0 to `count - 1`.

    Args:
        count: how many.
        make: takes some of the numbers as the column `id` and yields what it makes of each.
        num_cpus: logical CPUs of a task.
    """
    # `ray.data.range` cannot be told how much its tasks take. It would be a whole CPU each, and where there is none left
    # for them they wait for ever, without a word. Told so, and with no batch size, which is Ray's word for leaving the
    # blocks as they are, counting and making become one task; else a run begins with a task for each of its numbers.
    dataset = ray.data.read_datasource(
        RangeDatasource(n=count, block_format="arrow", column_name="id"),
        override_num_blocks=min(count, MAX_READ_TASKS),
        num_cpus=num_cpus,
    )
    return dataset.map_batches(make, batch_size=None, num_cpus=num_cpus)


def _stay_in(reserved: PlacementGroup) -> None:
    """Make this process run its tasks in a placement group.

    Ray Data shares the CPUs of a node evenly among the streams of a cluster and rounds down: with more streams than a
    node has CPUs each gets none, and all stand still without a word. In a group of its own a stream counts what is there.
    """
    context = ray.data.DataContext.get_current()
    strategy = PlacementGroupSchedulingStrategy(reserved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are deprecated, and nothing has come in their place
        context.scheduling_strategy = strategy
        context.scheduling_strategy_large_args = strategy


def _make_tickets(
    batch: dict[str, np.ndarray], source: Any, first: int, world_size: int
) -> Iterator[dict[str, np.ndarray]]:
    cv2.setNumThreads(1)
    loaded = fetched(source)
    schedule = _schedule(source, world_size)
    for number in batch["id"]:
        ticket = first + int(number)
        try:
            made, error = loaded.batch(ticket, schedule), ""
        except PneumoError as reason:
            # An exception would reach the worker as text inside text; a sentence in a column arrives whole.
            made, error = loaded.empty_batch(ticket, schedule), str(reason)
        yield {name: value[None] for name, value in made.items()} | {"error": np.array([error])}


@lru_cache(maxsize=2)
def _schedule(source: Any, world_size: int) -> Schedule:
    return fetched(source).schedule(world_size)


@lru_cache(maxsize=4)
def fetched(reference: Any) -> Any:
    """Fetch an object once a worker process; its tables stay in shared memory."""
    return ray.get(reference)
