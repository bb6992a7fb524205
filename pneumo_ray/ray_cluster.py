"""What a Ray cluster has, and how a job waits for one that is still growing."""

import time
from collections.abc import Mapping, Sequence

import ray
from ray.autoscaler.sdk import request_resources

from pneumo_ray.console import QUIET_SECONDS, say
from pneumo_ray.errors import ClusterError


def living_nodes() -> list[dict[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def wait_for(
    needed: Mapping[str, float], bundles: Sequence[Mapping[str, float]], seconds: float, advice: str
) -> list[dict[str, float]]:
    """Wait until the cluster has what a job needs; return the resources of its nodes.

    Where the cluster can grow it is asked to: nodes come only for those who ask.

    Args:
        needed: resource -> amount over all nodes.
        bundles: what the job will place somewhere, a bundle on one node, for the cluster's autoscaler.
        seconds: how long.
        advice: the end of the sentence about a cluster that is too small.

    Raises:
        ClusterError: if it has not after that long.
    """
    start = last_word = time.monotonic()
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
            if now - last_word >= QUIET_SECONDS or last_word == start:
                last_word = now
                say(f"waiting for the cluster: it has {what}")
            time.sleep(min(1.0, seconds))
    finally:
        if asked:
            request_resources(bundles=[])
