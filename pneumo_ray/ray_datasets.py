"""The shapes of Ray Data that jobs use: numbers, tables and actors as datasets, and values that all tasks share."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypeAlias

import cv2
import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pneumo_ray.allocator import keep_freed_memory
from pneumo_ray.cpu_shares import ActorShares
from pneumo_ray.ray_cluster import available_cpus

MAX_READ_TASKS = 5_000
"""Bounds what the planning of a run of any length costs, a millisecond per task; a task makes several rows where there are more."""

Shared: TypeAlias = ray.ObjectRef
"""A reference to a value in the object store."""


def share(value: object) -> Shared:
    """Put a value into the object store, once for all tasks; return its reference."""
    return ray.put(value)


@lru_cache(maxsize=4)
def fetch_once(reference: Shared) -> Any:
    """Return an object of the object store, fetched once per process; its tables stay in shared memory."""
    return ray.get(reference)


class _Numbers(Datasource):
    """The numbers from 0 to n - 1, in the column `id`, in consecutive read tasks."""

    def __init__(self, n: int) -> None:
        self._n = n

    def estimate_inmemory_data_size(self) -> int:
        return 8 * self._n

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None
    ) -> list[ReadTask]:
        bounds = np.linspace(0, self._n, min(parallelism, self._n) + 1).astype(np.int64) if self._n else [0]
        return [
            ReadTask(
                partial(_numbers, int(start), int(stop)),
                BlockMetadata(
                    num_rows=int(stop - start), size_bytes=int(8 * (stop - start)), exec_stats=None, input_files=None
                ),
            )
            for start, stop in pairwise(bounds)
        ]


def _numbers(start: int, stop: int) -> list[Block]:
    return [pa.table({"id": np.arange(start, stop)})]


def range_dataset(
    count: int, make: Callable[[dict[str, np.ndarray]], Iterator[Any]], num_cpus: float
) -> ray.data.Dataset:
    """Return a dataset of what tasks make of the numbers from 0 to `count - 1`, in order where the context preserves it.

    Args:
        count: number of numbers.
        make: takes some of the numbers as the column `id` and yields one batch for each.
        num_cpus: logical CPUs of a task.
    """
    # `ray.data.range` takes a whole CPU for each of its tasks, and where none is left they wait for ever, silently. With
    # `num_cpus` here and no batch size (blocks stay as they are) reading and making become one task.
    dataset = ray.data.read_datasource(
        _Numbers(count), override_num_blocks=min(count, MAX_READ_TASKS), num_cpus=num_cpus
    )
    return dataset.map_batches(make, batch_size=None, num_cpus=num_cpus)


def map_blocks(tables: Sequence[pa.Table], function: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
    """Yield `function` of each table, computed on the whole cluster, in the order of the tables.

    Args:
        tables: each is one task.
        function: runs in a process of the cluster with one OpenCV thread. An error that it raises arrives wrapped in
            Ray's own; return a row that carries the sentence instead.
    """
    if not tables:
        return
    dataset = ray.data.from_arrow(list(tables))
    dataset.context.execution_options.preserve_order = True
    dataset = dataset.map_batches(
        partial(_single_threaded, function=function), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _single_threaded(block: pa.Table, function: Callable[[pa.Table], pa.Table]) -> pa.Table:
    cv2.setNumThreads(1)
    keep_freed_memory()
    return function(block)


def block_size(num_rows: int) -> int:
    """Return how many rows one task of `map_blocks` gets, so that all CPUs have several."""
    return max(8, min(256, int(np.ceil(num_rows / (8 * available_cpus())))))


def map_actors(
    kind: type,
    dataset: ray.data.Dataset,
    arguments: Iterable[object],
    actors: ActorShares,
    environment: Mapping[str, str],
) -> Any:
    """Return a dataset of what a pool of actors makes of whole blocks.

    Args:
        kind: class of the actor; called with a block.
        dataset: whose blocks.
        arguments: of the constructor.
        actors: how many, with what.
        environment: variables with which their processes are started.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ray_remote_args_fn is deprecated in Ray 2.64 without a replacement
        return dataset.map_batches(
            kind,
            fn_constructor_args=tuple(arguments),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=actors.count, max_size=actors.most),
            num_cpus=actors.num_cpus,
            runtime_env={"env_vars": dict(environment)} if environment else None,
            ray_remote_args_fn=partial(_actor_options, actors.num_gpus),
        )


def _actor_options(num_gpus: float) -> dict[str, float]:
    # Ray Data would restart an actor that died without end, and wait for ever for the node that it was on. GPUs are given
    # here because `map_batches` refuses them for whole blocks.
    return {"max_restarts": 0, "max_task_retries": 0, "num_gpus": num_gpus}
