"""The ratios that the project holds itself to, each measured side by side in one run.

    python -m benchmarks.goals train50 --steps 6 --rounds 1
    python -m benchmarks.goals train18 --steps 30 --rounds 1
    python -m benchmarks.goals eager --rounds 1
    python -m benchmarks.goals compiled --rounds 1
    python -m benchmarks.goals plain-scoring --rounds 1 --images 3000
    python -m benchmarks.goals daft --rounds 1 --images 3000 --peers ../peers
    python -m benchmarks.goals start-up passes --rounds 3

Baselines use the system's allocator, as people have it; what is ours is the job as it comes. Each of the lines above takes at
most three minutes on two quiet cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.score import bare_rate, run_job, saved_network
from benchmarks.timing import HEADER, Row
from benchmarks.train import compared, prepared
from pneumo_ray.allocator import find_jemalloc, preloaded

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    shared: Path
    """Folder with kermany224."""
    rounds: int = 1
    """How often the candidates take turns."""
    steps: int = 8
    """Training steps of an epoch, of 64 images; an epoch is measured."""
    images: int = 0
    """Images of the archive that is scored; 0 takes all 5,528."""


def bench_goals(shared: Path) -> Iterator[Row]:
    """Measure every goal."""
    for name, measure in GOALS.items():
        yield from measure(Size(shared, steps=40 if name == "train18" else 8))


def train50(size: Size) -> Iterator[Row]:
    """Training ResNet-50 through the whole pipeline, against ready tensors and a plain script."""
    yield from _training(size, "resnet50", 224, (">= 1.05", ">= 1.1"))


def train18(size: Size) -> Iterator[Row]:
    """Training ResNet-18 on small images, where the pipeline weighs more."""
    yield from _training(size, "resnet18", 112, ("", ">= 1.2"))


def _training(size: Size, arch: str, pixels: int, goals: tuple[str, str]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        prepared(size.shared, folder)
        yield from compared(size.shared, folder, arch, pixels, size.steps, size.rounds, goals)


def eager(size: Size) -> Iterator[Row]:
    """Scoring an archive without compilation, start-up included, against the bare eager model."""
    yield _scoring(size, "eager", ("off",), ">= 1.15")


def compiled(size: Size) -> Iterator[Row]:
    """Scoring an archive with compilation, its code in the cache from a first job on 16 images, start-up included."""
    yield _scoring(size, "compiled", ("on",), ">= 1.4")


def _scoring(size: Size, name: str, compile_options: tuple[str], goal: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        net = saved_network(folder)
        archive = _archive(size, folder)
        if compile_options == ("on",):
            run_job(_archive(size, folder, 16), folder, "first", "--scale.compile", "on")
        bare, ours = [bare_rate(net)], []
        for number in range(size.rounds):
            job = run_job(archive, folder, f"{name}-{number}", "--scale.compile", *compile_options)
            ours.append(job.rate)
            bare.append(bare_rate(net))
    rate = statistics.median(bare)
    return Row(
        f"scoring {job.rows:,} images, {name}, start-up included",
        f"{statistics.median(ours):.1f} img/s",
        f"{rate:.1f} img/s, bare eager model on ready tensors",
        statistics.median(ours) / rate,
        goal,
    )


def plain_scoring(size: Size) -> Iterator[Row]:
    """The job as it comes, maps and passes included, against the script that people would write, start-up included."""
    yield _against(size, "plain_scoring", "a plain script with a DataLoader")


def daft(size: Size) -> Iterator[Row]:
    """The same against a query of Daft, where it is installed."""
    if find_spec("daft") is None:
        yield Row("scoring an archive against Daft", "", "daft is not installed", float("nan"), "")
    else:
        yield _against(size, "plain_daft", "a query of Daft")


def _against(size: Size, script: str, name: str) -> Row:
    """Measure the job against a script of this folder that writes probabilities only, start-up included."""
    # The script finds what this process finds, wherever that lies.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        saved_network(folder)
        archive, ours, theirs = _archive(size, folder), [], []
        for number in range(size.rounds):
            job = run_job(archive, folder, f"scores-{number}")
            ours.append(job.rate)
            start = time.perf_counter()
            words = ["-m", f"benchmarks.{script}", str(archive), f"{folder}/model", f"{folder}/plain-{number}"]
            done = subprocess.run(
                [sys.executable, *words], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(done.stderr)
            theirs.append(job.rows / (time.perf_counter() - start))
    return Row(
        f"scoring {job.rows:,} images with maps and 200 passes, start-up included",
        f"{statistics.median(ours):.1f} img/s",
        f"{statistics.median(theirs):.1f} img/s, {name}, probabilities only",
        statistics.median(ours) / statistics.median(theirs),
        "",
    )


def _archive(size: Size, folder: str, images: int | None = None) -> Path:
    """Return the whole archive, or a folder of links to its first images."""
    whole, images = size.shared / "kermany224", size.images if images is None else images
    if not images:
        return whole
    part = Path(folder) / f"archive-{images}"
    part.mkdir()
    for number, path in enumerate(sorted(whole.rglob("*.jp*g"))[:images]):
        (part / f"{number:05d}.jpeg").symlink_to(path.resolve())
    return part


def start_up(size: Size) -> Iterator[Row]:
    """Time from the command to the first file of scores, for 312 images of 224 px."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        saved_network(folder)
        for number in range(size.rounds):
            out = Path(folder) / f"scores-{number}"
            words = ["--archive", str(_archive(size, folder, 312 + number)), "--model", f"{folder}/model"]
            start = time.perf_counter()
            job = subprocess.Popen(
                [sys.executable, "jobs/explain.py", *words, "--out", str(out)], cwd=ROOT, stdout=subprocess.DEVNULL
            )
            while not list(out.glob("part-*.parquet")):
                if job.poll() not in (None, 0):
                    raise RuntimeError("jobs/explain.py failed")
                time.sleep(0.02)
            seconds.append(time.perf_counter() - start)
            job.wait()
    median = statistics.median(seconds)
    yield Row("start-up of explain to the first file of scores", f"{median:.1f} s", "10 s", median / 10, "<= 1")


def passes(size: Size) -> Iterator[Row]:
    """20 passes against a plain forward, both with the allocator that the jobs use."""
    environment = {name: value.replace("${LD_PRELOAD}:", "") for name, value in preloaded([find_jemalloc()]).items()}
    words = [sys.executable, "-m", "benchmarks.goals", "--passes-here", "--rounds", str(4 * size.rounds)]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    yield Row(
        "20 passes, bfloat16, against a plain forward, both with jemalloc",
        f"{1e3 / found['20']:.2f} ms per image",
        f"{1e3 / found['plain']:.2f} ms per image, plain forward",
        found["plain"] / found["20"],
        "<= 1.03",
    )


GOALS: dict[str, Callable[[Size], Iterator[Row]]] = {
    "train50": train50,
    "train18": train18,
    "eager": eager,
    "compiled": compiled,
    "plain-scoring": plain_scoring,
    "daft": daft,
    "start-up": start_up,
    "passes": passes,
}


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goals", nargs="*", metavar="GOAL", help="which; all where none is named")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=Size.rounds)
    parser.add_argument("--steps", type=int, default=Size.steps)
    parser.add_argument("--images", type=int, default=Size.images)
    parser.add_argument("--peers", type=Path, help="folder of packages to compare with, beside what is installed")
    parser.add_argument("--passes-here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.passes_here:
        from benchmarks.explain import head_rates

        print(json.dumps(head_rates(options.rounds)))
        return
    if options.peers:
        sys.path.append(str(options.peers.resolve()))
    print(HEADER, flush=True)
    for name in options.goals or GOALS:
        if name not in GOALS:
            parser.error(f"there is no goal {name}; one of {', '.join(GOALS)}")
        for row in GOALS[name](Size(options.shared.resolve(), options.rounds, options.steps, options.images)):
            print(row, flush=True)


if __name__ == "__main__":
    _main()
