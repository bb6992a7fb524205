"""Measure speed and scale on this machine: `python jobs/bench.py data goals tune explain score evaluate`, or `... gpu`."""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pneumo_ray.errors import ArchiveError
from pneumo_ray.job import run_job

Part = Literal["data", "goals", "tune", "explain", "score", "evaluate", "scale", "requests", "feed", "gpu", "pacs"]
"""Part X is `bench_X` in benchmarks/X.py."""
WITH_THEIR_OWN_HEAD = ("scale", "requests")
WITHOUT_IMAGES = ("gpu", "pacs")
"""Parts that can be measured without the radiographs."""


@dataclass(frozen=True)
class BenchConfig:
    """Print a Markdown table for each part: ratios of two measurements made side by side.

    `goals` are the ratios that the project holds itself to, `feed` is the stream of training images, `gpu` a self-test of a
    machine with CUDA, `pacs` needs Orthanc, `scale` a million images (half an hour, 15 GB), `requests` those to a bucket.
    """

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = ("data", "goals", "tune", "explain", "score", "evaluate")
    """What to measure."""
    shared: Path = Path("../shared/data")
    """Folder with kermany224/ and kermany_fullres/, the real radiographs."""
    peers: Path | None = None
    """Folder of packages to compare with, beside what is installed (docs/benchmarks.md)."""
    page: Path | None = None
    """Also put each table into this Markdown file, in the place of the part's former one."""


def main(config: BenchConfig) -> None:
    if not set(config.parts) <= set(WITHOUT_IMAGES) and not (config.shared / "kermany224").is_dir():
        raise ArchiveError(
            f"--shared {config.shared} has no kermany224 folder; the measurements are made on real radiographs"
        )
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ lies beside jobs/, outside the wheel
    if config.peers is not None:
        sys.path.append(str(config.peers.resolve()))  # at the end: what is installed is not replaced
    from benchmarks.page import replaced, stamp
    from benchmarks.timing import HEADER, PAGE_HEADER, Row
    from pneumo_ray.console import log

    for part in config.parts:
        lines = [stamp(), ""]
        own_head = part in WITH_THEIR_OWN_HEAD
        for line in lines if own_head else [*lines, HEADER]:
            log(line)
        lines += [] if own_head else [PAGE_HEADER]
        measure = getattr(import_module(f"benchmarks.{part}"), f"bench_{part}")
        for row in measure(config.shared):
            lines.append(row.without_goal() if isinstance(row, Row) else str(row))
            log(str(row))
        if config.page is not None:
            before = config.page.read_text() if config.page.exists() else ""
            config.page.write_text(replaced(before, part, lines))


if __name__ == "__main__":
    run_job(BenchConfig, main)
