"""The Ray cluster that a job runs on: start or join one, wait for nodes, run on each of them.

All that reaches into Ray where it has no public way, and every environment variable that Ray reads, stands here.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import ray
import ray.data
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pneumo_ray.allocator import find_jemalloc, preloaded
from pneumo_ray.config import Allocator
from pneumo_ray.console import QUIET_SECONDS, log
from pneumo_ray.errors import ClusterError
from pneumo_ray.job import end_on_sigterm

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
}
"""The same for a Ray that the job starts for itself."""


def start_ray(importing: str | None = None) -> None:
    """Join the cluster that the job was submitted to, or start one on this machine that only this machine reaches.

    Args:
        importing: a package that the job needs later and that takes long to import. It is imported meanwhile, because
            starting Ray is waiting for its processes. It must not import Ray.
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
    quiet_ray_data()
    beside.join()


def _imported(package: str | None) -> None:
    with suppress(Exception):  # the job's own import raises it again, where it is handled
        if package is not None:
            import_module(package)


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
