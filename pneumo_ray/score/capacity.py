"""How the resources of a cluster are shared between the actors that hold the model and the tasks that decode."""

from dataclasses import dataclass

from pneumo_ray.errors import ClusterError
from pneumo_ray.ray_cluster import wait_for
from pneumo_ray.score.config import ExplainConfig


@dataclass(frozen=True)
class ActorPlan:
    """The processes that hold the model."""

    count: int
    most: int
    """To which the pool may grow."""
    num_cpus: float
    """Logical CPUs that each reserves; the rest decodes."""
    num_gpus: int
    threads: int
    """Threads of each, on a CPU."""


def plan_actors(config: ExplainConfig) -> ActorPlan:
    """Wait for the cluster; choose how many processes hold the model, with how many threads, and what is left to decode.

    Raises:
        ClusterError: if the cluster has fewer GPUs than are asked for, or a single CPU.
    """
    scale = config.scale
    # Ray Data makes no progress, silently, unless it is left one whole CPU.
    needed = {"CPU": 2.0} | ({"GPU": float(max(1, scale.min_actors))} if scale.use_gpu else {})
    actor = {"CPU": 1.0} | ({"GPU": 1.0} if scale.use_gpu else {})
    advice = (
        "one CPU decodes; ask for fewer --scale.num-actors, or raise --scale.wait-seconds where nodes are still coming"
    )
    nodes = wait_for(needed, [*[actor] * max(1, scale.max_actors), {"CPU": 1.0}], scale.wait_seconds, advice)
    cpus = [node.get("CPU", 0.0) for node in nodes if node.get("CPU", 0.0) >= 1]
    if scale.use_gpu:
        count = scale.min_actors or int(sum(node.get("GPU", 0.0) for node in nodes))
        reserved = min(1.0, (sum(cpus) - 1) / count)
        return ActorPlan(count, max(count, scale.max_actors), reserved, 1, 1)
    count = scale.min_actors or sum(max(1, int(number // 8)) for number in cpus)
    per_node = -(-count // len(cpus))
    threads = max(1, int(min(cpus) // per_node))
    reserved = min(max(0.5, 0.75 * threads), (sum(cpus) - 1) / count)
    if reserved * per_node > min(cpus) or reserved < 0.05:
        raise ClusterError(f"{count} actors do not fit on {sum(cpus):g} CPUs; ask for fewer --scale.num-actors")
    return ActorPlan(count, max(count, scale.max_actors), reserved, 0, threads)
