"""Tasks that decode shards, and the process that is ready for the first of them.

Such a process imports this module and nothing of the explanation, which halves its start.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import ray

from pneumo_ray.allocator import keep_freed_memory
from pneumo_ray.model import Preprocessing
from pneumo_ray.ray_cluster import Shared, fetch_once, is_retry, living_nodes
from pneumo_ray.score.decode import load_shard
from pneumo_ray.score.image_list import Source


@dataclass(frozen=True)
class Decoding:
    """What all tasks of a job share."""

    source: Source
    shards: np.ndarray
    """Numbers of the shards that are decoded, int64."""
    preprocessing: Preprocessing
    find: bool
    """Look for lungs that the list does not know."""
    map_size: tuple[int, int]
    decode_seconds: float


def decode_shards(batch: dict[str, np.ndarray], shared: Shared) -> Iterator[pa.Table]:
    """Yield the decoded images of shards, as `load_shard` returns them.

    Args:
        batch: positions in `Decoding.shards` as the column `id`.
        shared: the `Decoding`.
    """
    cv2.setNumThreads(1)
    keep_freed_memory()
    decoding: Decoding = fetch_once(shared)
    for position in batch["id"]:
        shard = int(decoding.shards[position])
        yield load_shard(
            decoding.source.read(shard),
            shard,
            decoding.preprocessing,
            find=decoding.find,
            map_size=decoding.map_size,
            decode_seconds=decoding.decode_seconds,
            careful=is_retry(),
        )


def start_decoder() -> None:
    """Start a process that decodes, and import in it what it needs; do not wait.

    On one machine the first task then begins in a process that is ready. The nodes of a larger cluster start theirs at
    the same time as each other.
    """
    if len(living_nodes()) == 1:
        ray.remote(num_cpus=0, max_retries=0)(_ready).remote()


def _ready() -> None:
    """Nothing: what decoding needs comes with this module."""
