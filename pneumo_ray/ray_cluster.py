"""The Ray cluster that a job runs on: start or join one, wait for nodes, run on each of them, and the few
shapes of Ray Data that jobs use.

All that reaches into Ray where it has no public way, and every environment variable that Ray reads, stands here.
"""

import atexit
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from importlib import import_module
from itertools import pairwise
from typing import Any, TypeAlias

import cv2
import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.autoscaler.sdk import request_resources
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pneumo_ray.allocator import find_jemalloc, keep_freed_memory, preloaded
from pneumo_ray.config import Allocator
from pneumo_ray.console import QUIET_SECONDS, log
from pneumo_ray.cpu_shares import ActorShares
from pneumo_ray.errors import ClusterError
from pneumo_ray.signals import end_on_sigterm

MAX_READ_TASKS = 5_000
"""Bounds what the planning of a run of any length costs, a millisecond per task; a task makes several rows where there are more."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no statistics about a hospital's runs are sent anywhere
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray Tune's newer output prints even with verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # histories are written by the jobs
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial ends without a loss
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a busy machine or a slow disk may take minutes to import torch
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted job ends with its own sentence
}

_OWN_ENVIRONMENT = {
    # Ray gives way to its own helpers and to all else on the machine (15) unless told otherwise.
    "RAY_worker_niceness": "0",
    # Ray ends idle processes beyond one per CPU after a second, those among them that have imported what the next task needs.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}
"""The same for a Ray that the job starts for itself."""


def start_ray(*importing: str) -> None:
    """Join the cluster that the job was submitted to, or start one on this machine that only this machine reaches.

    Args:
        importing: modules that the job needs later and that take long to import. They are imported meanwhile, because
            starting Ray is waiting for its processes. They must not import Ray.
    """
    from ray._private import services

    beside = threading.Thread(target=_imported, args=(importing,))
    beside.start()
    prepare_environment()
    # `ray.init("auto")` cannot be asked first, because it joins the private Ray of any other job on the machine.
    own = services.canonicalize_bootstrap_address(None) is None
    if own:
        _set_unless_set(_OWN_ENVIRONMENT)
        _keep_own_ray_to_loopback()
    # A dashboard is eleven processes, which take 1.7 s of CPU to start and a fiftieth of a core while idle.
    ray.init(logging_level="warning", log_to_driver=False, include_dashboard=False if own else None)
    end_on_sigterm()  # Ray installs a handler of its own, which ends without a message
    atexit.register(ray.shutdown)  # before Ray's own, which first waits half a second for logs that are not shown
    quiet_ray_data()
    beside.join()


def _imported(modules: Sequence[str]) -> None:
    with suppress(Exception):  # the job's own import raises it again, where it is handled
        for module in modules:
            import_module(module)


def death_in(error: BaseException) -> str | None:
    """Return how Ray has lost a process on which the job depends, if an error or one of its causes says so.

    Workers that die are started again; this is about those beside them, such as the controller of Ray Train.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OutOfMemoryError):
            return "the memory of a node was full, and Ray ended processes of this job"
        if isinstance(found, NodeDiedError):
            return "a node of the cluster is gone"
        # One that cannot begin has an error of its own, whose traceback says which.
        if isinstance(found, WorkerCrashedError) or (isinstance(found, RayActorError) and not found.actor_init_failed):
            return "a process that leads this job has died"
        found = found.__cause__
    return None


def prepare_environment() -> None:
    """Set the environment variables that Ray and Ray Tune read, where the user has not set them."""
    _set_unless_set(_ENVIRONMENT)


def _set_unless_set(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def _keep_own_ray_to_loopback() -> None:
    """Make the Ray that this process is about to start listen on loopback only.

    Up to ray-project/ray#59852 most of its servers, which run what they are sent, listened on every interface; since
    then they listen on the node's address. This is the switch by which Ray keeps to loopback on macOS and Windows.
    """
    from ray._private import ray_constants

    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # inherited by the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False


def quiet_ray_data() -> None:
    """Turn off Ray Data's own progress bars and notices; the jobs report progress themselves."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def is_retry() -> bool:
    """Whether the calling task was started before and its process died (of an image, of memory, with its node)."""
    # Ray counts the attempts; ray.get_runtime_context() of Ray 2.60 does not return the count.
    return int(ray._private.worker.global_worker.core_worker.get_current_task_attempt_number()) > 0


def living_nodes() -> list[dict[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def on_each_node(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what a function returns on each node that is alive, in a process of that node."""
    remote = ray.remote(num_cpus=0)(function)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    there = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]  # soft: elsewhere if it dies meanwhile
    results: list[Any] = ray.get([remote.options(scheduling_strategy=strategy).remote(*args) for strategy in there])
    return results


def compute_environment(allocator: Allocator, *, use_gpu: bool) -> dict[str, str]:
    """Return the environment variables with which processes that compute are started on any node.

    Args:
        allocator: what they allocate tensors with on a CPU.
        use_gpu: they compute on GPUs, where it makes no difference.
    """
    if allocator == "system" or use_gpu:
        return {}
    # A library may lie elsewhere on other nodes. With one node no process has to be started to ask it.
    return preloaded([find_jemalloc()] if len(living_nodes()) == 1 else on_each_node(find_jemalloc))


@contextmanager
def trials_started_with(environment: Mapping[str, str]) -> Iterator[None]:
    """Within the block, Ray Tune starts the processes of trials with these environment variables as well."""
    from ray.tune.execution import class_cache

    before = class_cache.DEFAULT_ENV_VARS
    class_cache.DEFAULT_ENV_VARS = {**before, **environment}  # Ray Tune has no runtime environment of a trial
    try:
        yield
    finally:
        class_cache.DEFAULT_ENV_VARS = before


def available_cpus() -> float:
    """Return the CPUs of the cluster, at least 1."""
    return max(1.0, ray.cluster_resources().get("CPU", 1.0))


def wait_for(
    needed: Mapping[str, float], bundles: Sequence[Mapping[str, float]], seconds: float, advice: str
) -> list[dict[str, float]]:
    """Wait until the cluster has what a job needs; return the resources of its nodes.

    A cluster that can grow is asked to.

    Args:
        needed: resource -> amount over all nodes.
        bundles: what the job will place, a bundle on one node, for the cluster's autoscaler.
        seconds: how long to wait.
        advice: the end of the sentence about a cluster that is too small.

    Raises:
        ClusterError: if it is still too small after that long.
    """
    start = last_line = time.monotonic()
    asked = False
    try:
        while True:
            nodes = living_nodes()
            have = {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}
            lacking = [name for name, amount in needed.items() if have[name] < amount]
            if not lacking:
                return nodes
            what = " and ".join(f"{have[name]:g} {name}s where the job needs {needed[name]:g}" for name in lacking)
            now = time.monotonic()
            if now - start >= seconds:
                raise ClusterError(f"the cluster has {what} (waited {seconds:g} s); {advice}")
            if not asked:
                request_resources(bundles=[dict(bundle) for bundle in bundles])
                asked = True
            if now - last_line >= QUIET_SECONDS or last_line == start:
                last_line = now
                log(f"waiting for the cluster: it has {what}")
            time.sleep(min(1.0, seconds))
    finally:
        if asked:
            request_resources(bundles=[])


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
            _on_one_thread(kind),
            fn_constructor_args=tuple(arguments),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=actors.count, max_size=actors.most),
            num_cpus=actors.num_cpus,
            runtime_env={"env_vars": dict(environment)} if environment else None,
            ray_remote_args_fn=partial(_actor_options, actors.num_gpus),
        )


def _on_one_thread(kind: type) -> type:
    """Return the same actor, whose constructor and calls run on one thread of its own.

    Ray Data constructs it on one thread and calls it on another. OpenMP gives each a team of threads, counts more threads than
    cores, and lets them sleep at every barrier: a ResNet-50 then scores a tenth fewer images.
    """

    class OnOneThread:
        def __init__(self, *arguments: object) -> None:
            self._thread = ThreadPoolExecutor(1)
            self._actor = self._thread.submit(kind, *arguments).result()

        def __call__(self, block: pa.Table) -> pa.Table:
            made: pa.Table = self._thread.submit(self._actor, block).result()
            return made

    OnOneThread.__name__ = kind.__name__  # in the title of its process
    return OnOneThread


def _actor_options(num_gpus: float) -> dict[str, float]:
    # Ray Data would restart an actor that died without end, and wait for ever for the node that it was on. GPUs are given
    # here because `map_batches` refuses them for whole blocks.
    return {"max_restarts": 0, "max_task_retries": 0, "num_gpus": num_gpus}
