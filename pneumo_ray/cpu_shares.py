"""How the CPUs and GPUs of a cluster are shared: arithmetic on the resources of its nodes, without Ray.

Ray Data makes no progress, silently, unless it is left room for its tasks, and a task runs only where one node has room
for all of it. So every job decides beforehand what its workers reserve and what is left to prepare images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pneumo_ray.errors import ClusterError

LEAST_CPU = 0.05
"""Logical CPUs of a worker or a task, at least, so that Ray can place it."""

BYTES_PER_WORKER = 2 << 30
"""Memory that a training process is counted with where the user does not set how many trials run at once."""

DRIVER_CPUS = 0.01
"""Logical CPUs that the process of a trial reserves when its workers are elsewhere; Ray Tune refuses 0."""

Node = Mapping[str, float]
"""Resources of one node by Ray's names: CPU, GPU, memory (bytes)."""


@dataclass(frozen=True)
class TrainShares:
    """How CPUs are shared between training and preparing images."""

    per_worker: float
    """Logical CPUs that a training worker reserves."""
    per_task: float
    """Logical CPUs of one task that prepares images."""
    set_aside: float = 0.0
    """Logical CPUs reserved before the workers start, if these would take all CPUs."""


@dataclass(frozen=True)
class TrialShares:
    """What each of the trials of a study that run at once has for itself.

    A trial reserves everything that it needs as one placement group, whole or not at all, so trials never wait for each
    other's halves.
    """

    trials: int
    """Number of concurrent trials."""
    bundles: tuple[Node, ...]
    """Bundles that Ray Tune reserves for a trial; its own process is in the first."""
    cpus: TrainShares
    threads: int
    """Threads that compute in a worker."""
    in_process: bool
    """The process of the trial is the only worker; otherwise Ray Train starts the workers."""


@dataclass(frozen=True)
class ActorShares:
    """The processes that hold a model for scoring."""

    count: int
    most: int
    """Largest size of the pool."""
    num_cpus: float
    """Logical CPUs that each reserves; the remaining CPUs decode."""
    num_gpus: int
    threads: int
    """Threads of each, on a CPU."""


def share_training(nodes: Sequence[Node], num_workers: int, cpus_per_worker: float = 0.0) -> TrainShares:
    """Share a cluster among a fixed number of training workers.

    Args:
        nodes: resources of each node.
        num_workers: workers; the cluster has room for them and one CPU more.
        cpus_per_worker: logical CPUs of a worker; 0 leaves one whole CPU over all nodes.
    """
    node_cpus = [node.get("CPU", 0.0) for node in nodes]
    per_worker = cpus_per_worker or min(1.0, (sum(node_cpus) - 1) / num_workers)
    left, free = num_workers, []
    for cpus in sorted(node_cpus, reverse=True):  # as Ray packs them
        here = min(left, int(cpus / per_worker + 1e-9))
        left -= here
        free.append(cpus - here * per_worker)
    if sum(free) >= 2 and max(free) >= 1:
        return TrainShares(per_worker, 1.0)
    return TrainShares(per_worker, max(LEAST_CPU, min(sum(free), 1.0, max(free)) / 2))


def share_elastic_training(nodes: Sequence[Node], cpus_per_worker: float = 0.0, *, use_gpu: bool) -> TrainShares:
    """Share a cluster whose nodes come and go: every node keeps CPUs for preparing images.

    Ray Train counts how many workers fit by what the nodes have in all, and takes every place. So a worker with a GPU
    takes less than its share of the node, and without GPUs a node has one worker and a CPU for images is reserved.

    Args:
        nodes: resources of each node.
        cpus_per_worker: logical CPUs of a worker; 0 chooses.
        use_gpu: each worker has a GPU.

    Raises:
        ClusterError: if the workers would leave no CPU.
    """
    if use_gpu:
        per_gpu = min(node["CPU"] / node["GPU"] for node in nodes if node.get("GPU", 0.0) >= 1)
        per_worker = cpus_per_worker or min(1.0, per_gpu / 2)
        free, set_aside = per_gpu - per_worker, 0.0
    else:
        per_worker, free = _beside_any(nodes, cpus_per_worker)
        set_aside = free
    if free < LEAST_CPU:
        raise ClusterError(
            f"workers of {per_worker:g} CPUs leave none to prepare images; lower --scaling.cpus-per-worker"
        )
    return TrainShares(per_worker, 1.0 if free >= 2 else max(LEAST_CPU, min(1.0, free) / 2), set_aside)


def _beside_any(nodes: Sequence[Node], per_worker: float) -> tuple[float, float]:
    """Return the CPUs of a worker, as given or as many as possible, and the CPUs left on any node full of workers."""
    sizes = [node["CPU"] for node in nodes if node.get("CPU", 0.0) >= 2] or [1.0]  # a smaller node is a head node
    most, least = max(1.0, min(sizes) - 1), min(sizes) / 2 + LEAST_CPU
    choices = [per_worker] if per_worker else [most, *np.arange(most, least, -0.25), least]
    free = [min(1.0, *(math.floor(size % choice * 10_000) / 10_000 for size in sizes)) for choice in choices]
    best = free.index(max(free))
    return float(choices[best]), free[best]


def share_trials(
    nodes: Sequence[Node],
    num_workers: int,
    num_trials: int,
    *,
    max_concurrent: int = 0,
    cpus_per_worker: float = 0.0,
    gpus_per_worker: float = 0.0,
    threads_per_worker: int = 0,
) -> TrialShares:
    """Share a cluster among the trials of a study.

    Args:
        nodes: resources of each node.
        num_workers: workers of a trial.
        num_trials: trials that are left to run.
        max_concurrent: largest number of concurrent trials; 0 takes as many as CPUs (or GPUs) and memory allow.
        cpus_per_worker: logical CPUs of a worker; 0 chooses.
        gpus_per_worker: GPUs of a worker, or a fraction of one; 0 trains on CPUs.
        threads_per_worker: threads that compute in a worker; 0 shares the CPUs.

    Raises:
        ClusterError: if a single trial does not fit.
    """
    total = sum(node.get("CPU", 0.0) for node in nodes)
    slots = int(total / num_workers)
    if gpus_per_worker:
        slots = sum(int(node.get("GPU", 0.0) / gpus_per_worker + 1e-9) for node in nodes) // num_workers
        if slots < 1:
            raise ClusterError(
                f"the cluster has {sum(node.get('GPU', 0.0) for node in nodes):g} GPUs where a trial needs "
                f"{gpus_per_worker * num_workers:g}; ask for fewer --scaling.num-workers, or leave --scaling.use-gpu out"
            )
    memory = sum(node.get("memory", 0.0) for node in nodes)
    fits = int(memory / (BYTES_PER_WORKER * num_workers)) if memory else slots
    at_once = max(1, min(num_trials, max_concurrent or min(slots, fits)))
    if gpus_per_worker:
        at_once = min(at_once, slots)
    in_process = num_workers == 1
    cpus = total / at_once - (0.0 if in_process else DRIVER_CPUS)
    per_worker = cpus_per_worker or _rounded_down(min(1.0, cpus / (num_workers + 1)))
    left = cpus - num_workers * per_worker
    if per_worker < LEAST_CPU or left < LEAST_CPU:
        raise ClusterError(
            f"{at_once} trials of {num_workers} workers at once do not fit on {total:g} CPUs; "
            "ask for fewer --max-concurrent or --scaling.num-workers"
        )
    # Bundles of at most one CPU fit on any node with a free CPU.
    pieces = math.ceil(left)
    piece = _rounded_down(left / pieces)
    own: dict[str, float] = {"CPU": per_worker if in_process else DRIVER_CPUS}
    if in_process and gpus_per_worker:
        own["GPU"] = gpus_per_worker
    return TrialShares(
        trials=at_once,
        bundles=(own, *({"CPU": piece} for _ in range(pieces))),
        cpus=TrainShares(per_worker, piece),
        threads=threads_per_worker or max(1, int(total / at_once / num_workers + 1e-9)),
        in_process=in_process,
    )


def share_scoring(nodes: Sequence[Node], fewest: int = 0, most: int = 0, *, use_gpu: bool) -> ActorShares:
    """Choose how many processes hold the model, with how many threads, and what is left to decode.

    Args:
        nodes: resources of each node; two CPUs in all at least.
        fewest: processes; 0 chooses.
        most: to which the pool may grow.
        use_gpu: each has a GPU.

    Raises:
        ClusterError: if they do not fit.
    """
    cpus = [node.get("CPU", 0.0) for node in nodes if node.get("CPU", 0.0) >= 1]
    if use_gpu:
        count = fewest or int(sum(node.get("GPU", 0.0) for node in nodes))
        return ActorShares(count, max(count, most), min(1.0, (sum(cpus) - 1) / count), 1, 1)
    count = fewest or sum(max(1, int(number // 8)) for number in cpus)
    per_node = -(-count // len(cpus))
    threads = max(1, int(min(cpus) // per_node))
    reserved = min(max(0.5, 0.75 * threads), (sum(cpus) - 1) / count)
    if reserved * per_node > min(cpus) or reserved < LEAST_CPU:
        raise ClusterError(f"{count} actors do not fit on {sum(cpus):g} CPUs; ask for fewer --scale.num-actors")
    return ActorShares(count, max(count, most), reserved, 0, threads)


def _rounded_down(cpus: float) -> float:
    """Round to Ray's resolution, 0.0001 CPU."""
    return math.floor(cpus * 10_000) / 10_000
