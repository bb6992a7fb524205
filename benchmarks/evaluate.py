"""The evaluation end to end, start-up included: the report of an archive with its images, the numbers of a million rows."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.drawn import drawn_manifest, write_drawn_scores
from benchmarks.timing import Row
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.manifest import write_manifest

_SHARD = 50_000


def bench_evaluate(shared: Path) -> Iterator[Row]:
    """Measure jobs/evaluate.py on drawn scores: labels and logits overlap, so that there are errors of both kinds."""
    uris = [entry.uri for entry in list_archives([str(shared / "kermany224")])]
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = _evaluated(folder, "page", uris)
        size = (Path(folder) / "page" / "out" / "report.html").stat().st_size / 1e6
        yield Row(
            f"report of {len(uris):,} scored images, figures and page ({size:.1f} MB), start-up included",
            f"{seconds:.1f} s", "30 s", 30 / seconds, ">= 1",
        )  # fmt: skip
        seconds, memory_gb = _evaluated(folder, "numbers", [None] * 1_000_000, "--no-report")
        yield Row("metrics of 1,000,000 scored rows, no report", f"{seconds:.1f} s", "60 s", 60 / seconds, ">= 1")
        yield Row("memory of that", f"{memory_gb:.1f} GB", "4 GB", 4 / memory_gb, ">= 1")


def _evaluated(folder: str, name: str, uris: Sequence[str | None], *options: str) -> tuple[float, float]:
    """Write scores and a manifest, evaluate them in a process of their own; return seconds and peak GB."""
    base = Path(folder) / name
    manifest = drawn_manifest(uris)
    write_manifest(manifest, str(base / "m.parquet"))
    write_drawn_scores(base / "scores", manifest, _SHARD)
    command = [sys.executable, "jobs/evaluate.py", "--manifest", str(base / "m.parquet"), "--scores", str(base / "scores"),
               "--out", str(base / "out"), "--split", "all", *options]  # fmt: skip
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.wait():
        raise RuntimeError(f"{' '.join(command)} failed")
    return seconds, peak / 1e9
