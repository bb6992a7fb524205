"""Images per second that the training stream gives to workers that do nothing, and the CPU that an image costs.

The CPU of all of Ray's processes is counted as well as the rate, because it does not depend on what else runs.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.timing import Row
from benchmarks.train import BATCH, prepared

SECONDS = 10.0
"""Length of each measurement."""


def bench_feed(shared: Path, sizes: tuple[int, ...] = (112, 224), workers: tuple[int, ...] = (1, 2)) -> Iterator[Row]:
    """Measure each size with each number of workers, on this machine's cores."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = f"{prepared(shared, folder)}/manifest.parquet"
        for size in sizes:
            alone = _own("made", manifest, size, 1)
            for number in workers:
                fed, cost = _own("fed", manifest, size, number)
                yield Row(
                    f"stream to {number} idle worker(s), {size} px, CPU of all processes",
                    f"{cost * 1e3:.2f} ms per image ({fed:,.0f} img/s)",
                    f"{alone[1] * 1e3:.2f} ms to make it in one process ({alone[0]:,.0f} img/s)",
                    cost / alone[1],
                    "<= 2",
                )


def _own(what: str, manifest: str, size: int, workers: int) -> tuple[float, float]:
    """Measure in a process of its own; return images per second and CPU seconds per image."""
    words = [sys.executable, "-m", "benchmarks.feed", what, manifest, str(size), str(workers)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    rate, cost = map(float, done.stdout.split()[-2:])
    return rate, cost


def _source(manifest: str, size: int):
    from pneumo_ray.data.prepare import cache_of, load_training_rows
    from pneumo_ray.images.augment_config import AugmentConfig
    from pneumo_ray.train.batches import BatchSource

    _, train, val = load_training_rows(manifest)
    return BatchSource(train, val, size, "copies", AugmentConfig(), 0, BATCH, cache_of(train, manifest))


def made(manifest: str, size: int, seconds: float = SECONDS) -> tuple[float, float]:
    """Return the rate and the cost of making batches in this process, one after the other."""
    import cv2

    cv2.setNumThreads(1)
    source = _source(manifest, size)
    schedule = source.schedule(1)
    source.batch(0, schedule)  # reads the cache's index
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        count += 1
        source.batch(count, schedule)
    return count * BATCH / (time.perf_counter() - start), (time.process_time() - cpu) / (count * BATCH)


def fed(manifest: str, size: int, workers: int, seconds: float = SECONDS) -> tuple[float, float]:
    """Return the rate at which workers that do nothing receive images, and their cost in all of Ray's processes."""
    import ray

    from pneumo_ray.cpu_shares import share_training
    from pneumo_ray.ray_cluster import living_nodes, start_ray
    from pneumo_ray.train.ray_stream import ticket_stream

    start_ray()
    shares = share_training(living_nodes(), workers)
    source = _source(manifest, size)
    stream = ticket_stream(ray.put(source), 0, 1_000, workers, shares.per_task)
    splits = stream.streaming_split(workers, equal=True)
    consumers = [ray.remote(num_cpus=shares.per_worker)(_Idle).remote(split) for split in splits]
    ray.get([consumer.take.remote(3.0) for consumer in consumers])  # starts everything
    cpu, start = _cpu_seconds(), time.perf_counter()
    images = sum(ray.get([consumer.take.remote(seconds) for consumer in consumers]))
    elapsed, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    ray.shutdown()
    return images / elapsed, cpu / images


class _Idle:
    """A worker that takes batches and does nothing with them."""

    def __init__(self, split) -> None:
        self._blocks = iter(split.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1))

    def take(self, seconds: float) -> int:
        """Take batches for some seconds; return the number of images."""
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            block = next(self._blocks)
            count += block["row"].size
        return count


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of all that it started."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    kind, path, pixels, number = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    print(*(made(path, pixels) if kind == "made" else fed(path, pixels, number)))
