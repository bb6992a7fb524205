"""Two concurrent trials of a study compared with the same two in sequence, and the overhead of a trial."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Row
from benchmarks.train import prepared, subset
from pneumo_ray.tune.records import TrialRecord

STEPS = 30
"""Steps per epoch, of 64 images each."""


def bench_tune(shared: Path) -> Iterator[Row]:
    """Measure four trials of ResNet-18 at 64 pixels, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = subset(prepared(shared, folder), STEPS)
        one, two = (_trials(manifest, f"{folder}/{at_once}", at_once) for at_once in (1, 2))
    # Each process's first trial also starts Ray Data and reads what training needs.
    alone = sum(map(_seconds, one[2:]))
    together = max(map(_seconds, two[2:]))
    yield Row(
        "two trials at once, one thread each",
        f"{together:.0f} s",
        f"{alone:.0f} s in turn",
        together / alone,
        "<= 0.65",
    )
    overhead = max(trial.overhead_seconds or 0.0 for trial in one[1:] + two[2:])
    yield Row("a trial beside its training, the longest", f"{overhead:.1f} s", "10 s", overhead / 10, "<= 1")


def _trials(manifest: str, out: str, at_once: int) -> list[TrialRecord]:
    options = [
        "--study",
        "balance",
        "--arms",
        "none",
        "--seeds",
        "4",
        "--epochs",
        "2",
        "--scaling.threads-per-worker",
        "1",
        "--max-concurrent",
    ]
    network = ["--model.arch", "resnet18", "--model.weights", "none", "--data.image-size", "64", "--out"]
    subprocess.run(
        [sys.executable, "jobs/tune.py", "--manifest", manifest, *options, str(at_once), *network, out],
        check=True,
        capture_output=True,
    )
    return [TrialRecord.from_json(Path(f"{out}/trials/none-seed{seed}/trial.json").read_bytes()) for seed in range(4)]


def _seconds(trial: TrialRecord) -> float:
    return trial.training_seconds + (trial.overhead_seconds or 0.0)
