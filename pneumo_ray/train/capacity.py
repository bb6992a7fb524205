"""How the CPUs of a cluster are shared between training and the preparation of pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pneumo_ray.errors import ClusterError
from pneumo_ray.ray_cluster import wait_for
from pneumo_ray.train.config import ScalingConfig

LEAST_CPU = 0.05
"""Of a worker or a task, so that Ray can place it."""


@dataclass(frozen=True)
class CpuShares:
    """How the cluster's CPUs are shared between training and preparing pictures."""

    per_worker: float
    """Logical CPUs that a training worker reserves."""
    per_task: float
    """Logical CPUs of one task that prepares pictures."""
    set_aside: float = 0.0
    """Logical CPUs that are kept from the workers, where these would take all that there is."""


def share_cpus(node_cpus: Sequence[float], scaling: ScalingConfig) -> CpuShares:
    """Share the CPUs of a cluster that is large enough (`wait_for_cluster`) among a fixed number of workers.

    Ray Data makes no progress, silently, unless training leaves it one whole CPU over all nodes; and a task runs only
    where one node has room for all of it.

    Args:
        node_cpus: CPUs of each node.
        scaling: how many workers there will be.
    """
    num_workers, total = scaling.max_workers, sum(node_cpus)
    per_worker = scaling.cpus_per_worker or min(1.0, (total - 1) / num_workers)
    left, free = num_workers, []
    for cpus in sorted(node_cpus, reverse=True):  # as Ray packs them
        here = min(left, int(cpus / per_worker + 1e-9))
        left -= here
        free.append(cpus - here * per_worker)
    if sum(free) >= 2 and max(free) >= 1:
        return CpuShares(per_worker, 1.0)
    return CpuShares(per_worker, max(LEAST_CPU, min(sum(free), 1.0, max(free)) / 2))


def share_elastic(nodes: Sequence[Mapping[str, float]], scaling: ScalingConfig) -> CpuShares:
    """Share the CPUs of a cluster whose nodes come and go: every node keeps something for the pictures.

    Ray Train counts how many workers fit by what the nodes have in all, and takes every place. So a GPU's worker takes
    less than its share of the node, and without GPUs a node holds one worker and the pictures' CPU is set aside.

    Args:
        nodes: resources of each node: CPU, GPU.
        scaling: how many workers there may be.

    Raises:
        ClusterError: if the workers would leave nothing.
    """
    if scaling.use_gpu:
        per_gpu = min(node["CPU"] / node["GPU"] for node in nodes if node.get("GPU", 0.0) >= 1)
        per_worker = scaling.cpus_per_worker or min(1.0, per_gpu / 2)
        free = per_gpu - per_worker
        set_aside = 0.0
    else:
        per_worker, free = _beside_any(nodes, scaling.cpus_per_worker)
        set_aside = free
    if free < LEAST_CPU:
        raise ClusterError(
            f"workers of {per_worker:g} CPUs leave none to prepare the pictures; lower --scaling.cpus-per-worker"
        )
    return CpuShares(per_worker, 1.0 if free >= 2 else max(LEAST_CPU, min(1.0, free) / 2), set_aside)


def _beside_any(nodes: Sequence[Mapping[str, float]], per_worker: float) -> tuple[float, float]:
    """Return the CPUs of a worker, as given or as large as can be, and what then fits on any node that is full of them."""
    sizes = [node["CPU"] for node in nodes if node.get("CPU", 0.0) >= 2] or [1.0]  # a smaller node is a head
    most, least = max(1.0, min(sizes) - 1), min(sizes) / 2 + LEAST_CPU
    choices = [per_worker] if per_worker else [most, *np.arange(most, least, -0.25), least]
    free = [min(1.0, *(math.floor(size % choice * 10_000) / 10_000 for size in sizes)) for choice in choices]
    best = free.index(max(free))
    return float(choices[best]), free[best]


def wait_for_cluster(scaling: ScalingConfig) -> CpuShares:
    """Wait until the cluster has what the run needs, and share it.

    Raises:
        ClusterError: if it has not after `scaling.wait_seconds`.
    """
    workers = scaling.min_workers
    # Without a reservation, more workers than CPUs would start, share them, and be slower than fewer.
    least = LEAST_CPU * workers if scaling.use_gpu else max(workers - 1.0, 1.0)
    needed = {"CPU": 1.0 + (scaling.cpus_per_worker * workers or least)}
    if scaling.use_gpu:
        needed["GPU"] = float(workers)
    worker = {"CPU": scaling.cpus_per_worker or 1.0} | ({"GPU": 1.0} if scaling.use_gpu else {})
    nodes = wait_for(
        needed,
        [*[worker] * scaling.max_workers, {"CPU": 1.0}],
        scaling.wait_seconds,
        "one CPU prepares pictures; ask for fewer --scaling.num-workers, or raise --scaling.wait-seconds where nodes are "
        "still coming",
    )
    if scaling.is_elastic:
        return share_elastic(nodes, scaling)
    return share_cpus([node.get("CPU", 0.0) for node in nodes], scaling)
