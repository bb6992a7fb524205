"""Processes of a Ray cluster: one on each node, ones that start ahead, and the environment variables they start with."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pneumo_ray.allocator import find_jemalloc, preloaded
from pneumo_ray.config import Allocator
from pneumo_ray.ray_cluster import living_nodes


def started(function: Callable[..., Any], environment: Mapping[str, str], *args: Any) -> Any:
    """Start a function in a process with these environment variables, whatever is reserved; return a reference to its result.

    A process lives on for other tasks and actors with the same variables, and has imported what they need.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0}
    if environment:
        options["runtime_env"] = {"env_vars": dict(environment)}
    return ray.remote(**options)(function).remote(*args)


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
