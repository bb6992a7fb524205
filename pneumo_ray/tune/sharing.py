"""How a cluster is shared among the trials of a study, so that all that are started can go on.

A trial reserves everything that it needs as one placement group, whole or not at all: the worker and the CPUs that
prepare its pictures. So trials never wait for each other's halves, whatever the size of the cluster.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pneumo_ray.errors import ClusterError
from pneumo_ray.train.capacity import CpuShares
from pneumo_ray.train.config import ScalingConfig

BYTES_PER_WORKER = 2 << 30
"""Memory that a training process is counted with where nobody says how many trials run at once."""

_DRIVER_CPUS = 0.01
"""What the process of a trial reserves when its workers are elsewhere; Ray Tune refuses 0."""


@dataclass(frozen=True)
class TrialShare:
    """What each of the trials that run at once has for itself."""

    trials: int
    """How many run at once."""
    bundles: tuple[Mapping[str, float], ...]
    """What Ray Tune reserves for a trial; its own process is in the first."""
    cpus: CpuShares
    threads: int
    """Threads that compute in a worker."""
    in_process: bool
    """The process of the trial is the only worker; else Ray Train places the workers beside it."""


def share_cluster(
    nodes: Sequence[Mapping[str, float]], scaling: ScalingConfig, num_trials: int, max_concurrent: int = 0
) -> TrialShare:
    """Share a cluster.

    Args:
        nodes: resources of each node: CPU, GPU, memory in bytes.
        scaling: of one trial.
        num_trials: trials that are left to run.
        max_concurrent: at most so many at once; 0 takes as many as there are CPUs (or GPUs) and memory for.

    Raises:
        ClusterError: if a single trial does not fit.
    """
    workers = scaling.max_workers
    total = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = scaling.gpus_per_worker if scaling.use_gpu else 0.0
    slots = int(total / workers)
    if scaling.use_gpu:
        slots = sum(int(node.get("GPU", 0.0) / gpus + 1e-9) for node in nodes) // workers
        if slots < 1:
            raise ClusterError(
                f"the cluster has {sum(node.get('GPU', 0.0) for node in nodes):g} GPUs where a trial needs {gpus * workers:g}; "
                "ask for fewer --scaling.num-workers, or leave --scaling.use-gpu out"
            )
    memory = sum(node.get("memory", 0.0) for node in nodes)
    fits = int(memory / (BYTES_PER_WORKER * workers)) if memory else slots
    at_once = max(1, min(num_trials, max_concurrent or min(slots, fits)))
    if scaling.use_gpu:
        at_once = min(at_once, slots)
    in_process = workers == 1
    cpus = total / at_once - (0.0 if in_process else _DRIVER_CPUS)
    per_worker = scaling.cpus_per_worker or _rounded_down(min(1.0, cpus / (workers + 1)))
    left = cpus - workers * per_worker
    if per_worker < 0.05 or left < 0.05:
        raise ClusterError(
            f"{at_once} trials of {workers} workers at once do not fit on {total:g} CPUs; "
            "ask for fewer --max-concurrent or --scaling.num-workers"
        )
    # Bundles of at most one CPU find room on any node that has some.
    pieces = math.ceil(left)
    piece = _rounded_down(left / pieces)
    own = (
        {"CPU": per_worker, "GPU": gpus} if in_process and gpus else {"CPU": per_worker if in_process else _DRIVER_CPUS}
    )
    return TrialShare(
        trials=at_once,
        bundles=(own, *({"CPU": piece} for _ in range(pieces))),
        cpus=CpuShares(per_worker, piece),
        threads=scaling.threads_per_worker or max(1, int(total / at_once / workers + 1e-9)),
        in_process=in_process,
    )


def _rounded_down(cpus: float) -> float:
    """Round to what Ray counts in, a ten-thousandth of a CPU."""
    return math.floor(cpus * 10_000) / 10_000
