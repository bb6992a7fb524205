"""Measure the README's claims of speed and scale on this machine: `python jobs/bench.py data train tune explain score evaluate scale requests`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.data import bench_data
from benchmarks.evaluate import bench_evaluate
from benchmarks.explain import bench_explain
from benchmarks.requests import bench_requests
from benchmarks.scale import bench_scale
from benchmarks.score import bench_score
from benchmarks.timing import HEADER
from benchmarks.train import bench_train
from benchmarks.tune import bench_tune
from pneumo_ray.config import run_job
from pneumo_ray.console import log
from pneumo_ray.errors import ArchiveError

Part = Literal["data", "train", "tune", "explain", "score", "evaluate", "scale", "requests"]
PARTS: dict[Part, Callable[[Path], Iterator[object]]] = {
    "data": bench_data,
    "train": bench_train,
    "tune": bench_tune,
    "explain": bench_explain,
    "score": bench_score,
    "evaluate": bench_evaluate,
    "scale": bench_scale,
    "requests": bench_requests,
}
WITH_THEIR_OWN_HEAD = ("scale", "requests")


@dataclass(frozen=True)
class BenchConfig:
    """Print a Markdown table of ratios, and one each for `scale` (a million images; half an hour, 15 GB) and `requests`."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = ("data", "train", "tune", "explain", "score", "evaluate")
    """What to measure."""
    shared: Path = Path("../shared/data")
    """Folder with kermany224/ and kermany_fullres/, the real radiographs."""


def main(config: BenchConfig) -> None:
    if not (config.shared / "kermany224").is_dir():
        raise ArchiveError(
            f"--shared {config.shared} has no kermany224 folder; the measurements are made on real radiographs"
        )
    if not set(config.parts) <= set(WITH_THEIR_OWN_HEAD):
        log(HEADER)
    for part in config.parts:
        for row in PARTS[part](config.shared):
            log(str(row))


if __name__ == "__main__":
    run_job(BenchConfig, main)
