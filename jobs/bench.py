"""Measure speed and scale on this machine: `python jobs/bench.py data train tune explain score evaluate scale requests`."""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pneumo_ray.config import run_job
from pneumo_ray.errors import ArchiveError

Part = Literal["data", "train", "tune", "explain", "score", "evaluate", "scale", "requests"]
"""Part X is `bench_X` in benchmarks/X.py."""
WITH_THEIR_OWN_HEAD = ("scale", "requests")


@dataclass(frozen=True)
class BenchConfig:
    """Print a Markdown table of ratios, and one table each for `scale` (a million images; half an hour, 15 GB) and `requests`."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = ("data", "train", "tune", "explain", "score", "evaluate")
    """What to measure."""
    shared: Path = Path("../shared/data")
    """Folder with kermany224/ and kermany_fullres/, the real radiographs."""


def main(config: BenchConfig) -> None:
    if not (config.shared / "kermany224").is_dir():
        raise ArchiveError(
            f"--shared {config.shared} has no kermany224 folder; the measurements are made on real radiographs"
        )
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ lies beside jobs/, outside the wheel
    from benchmarks.timing import HEADER
    from pneumo_ray.console import log

    if not set(config.parts) <= set(WITH_THEIR_OWN_HEAD):
        log(HEADER)
    for part in config.parts:
        measure = getattr(import_module(f"benchmarks.{part}"), f"bench_{part}")
        for row in measure(config.shared):
            log(str(row))


if __name__ == "__main__":
    run_job(BenchConfig, main)
