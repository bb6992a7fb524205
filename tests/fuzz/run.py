"""Decode tens of thousands of hostile files in processes that may die; end with a table, and code 1 if anything broke.

    python tests/fuzz/run.py --files 50000 --seed 0

File number n of a format is the same bytes in every run with one seed: `--formats "TIFF LZW" --first 1234 --files 1`
does one again. Each offender is saved in the folder that `--keep` names. A file may be refused or decoded. It must not
raise anything but the project's own errors, end the process, take more than 10 s of processor time, or let the process
grow beyond 1 GB.
"""

import argparse
import collections
import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

MAX_SECONDS = 10.0
"""Processor time that one file may take."""
MAX_WAIT = 120.0
"""Seconds by the clock after which a process that does not even use the processor is ended."""
MAX_PEAK = 1 << 30
"""Bytes of memory that the process may ever hold, the interpreter and the libraries (but not PyTorch) among them."""
CHUNK = 100
"""Files that a process is given at once."""


LIMIT, BUNDLE = "size limit", "model bundle"
"""Rows of their own: whole images of the largest size, which are not mutated, and models."""


@cache
def _seeds() -> dict[str, list[bytes]]:
    from seeds import archive_seeds, image_seeds

    return image_seeds() | archive_seeds()


def formats() -> list[str]:
    """Return the names of the rows; bundles come last, because PyTorch then stays in the process."""
    return [*_seeds(), LIMIT, BUNDLE]


def hostile_file(name: str, number: int, seed: int) -> bytes | tuple[bytes, bytes]:
    """Return file `number` of a format; of a bundle, its two files."""
    from mutations import mutate, mutate_bundle
    from seeds import limit_image

    if name == LIMIT:
        return limit_image(number)
    rng = Random(f"{seed}/{name}/{number}")
    if name == BUNDLE:
        from targets import seeded_bundle

        return mutate_bundle(*seeded_bundle(), rng)
    others = [data for group in _seeds().values() for data in group]
    return mutate(rng.choice(_seeds()[name]), rng, others)


def _rehearse(number: int) -> None:
    """Break each promise once, in files 0 to 3."""
    if number == 0:
        raise RuntimeError("a rehearsed exception")
    if number == 1:
        os.abort()
    while number == 2:
        pass
    if number == 3:
        bytearray(MAX_PEAK)[::4096] = b"x" * (MAX_PEAK // 4096)


def _work(connection: Any, state: Any, log: str, folder: str, rehearse: bool) -> None:
    """Examine what is asked for, one file after the other; runs in a child."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    import cv2

    cv2.setNumThreads(1)
    from targets import examine, examine_bundle

    while (task := connection.recv()) is not None:
        name, first, last, seed = task
        hostile_file(name, first, seed)  # whatever the seeds take is not the decoders'
        _reset_peak()
        # PyTorch alone takes 0.8 GB, so a bundle is measured by what comes on top.
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if name == BUNDLE else 0
        for number in range(first, last):
            data = hostile_file(name, number, seed)
            if name == LIMIT:
                _reset_peak()
            started = time.process_time()
            state[0], state[1] = number, started
            try:
                if rehearse:
                    _rehearse(number)
                if isinstance(data, tuple):
                    outcome, defect = examine_bundle(*data, Path(folder) / "model"), None
                else:
                    kind = name if name in ("tar", "tar.gz", "tar.xz", "zip") else "image"
                    outcome, defect = examine(kind, data, Path(folder)), None
            except Exception:
                outcome, defect = "exception", traceback.format_exc()
            seconds = time.process_time() - started
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - floor
            if peak > MAX_PEAK:
                _reset_peak()
            connection.send((number, outcome, defect, seconds, peak))
            state[0] = -1
        connection.send(None)


def _reset_peak() -> None:
    """Let the peak of the resident memory begin anew, where Linux permits it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Row:
    """What became of the files of one format."""

    outcomes: collections.Counter = field(default_factory=collections.Counter)
    slowest: float = 0.0
    peak: int = 0


@dataclass
class Report:
    """Rows by format, and what broke."""

    rows: dict[str, Row]
    seed: int
    keep: Path
    max_seconds: float
    defects: list[str] = field(default_factory=list)

    def add(self, name: str, number: int, outcome: str, detail: str | None, seconds: float, peak: int) -> None:
        """Count a file; save it where it broke a promise."""
        row = self.rows[name]
        row.outcomes[outcome] += 1
        row.slowest, row.peak = max(row.slowest, seconds), max(row.peak, peak)
        if detail is None and seconds > self.max_seconds:
            outcome, detail = "slow", f"{seconds:.1f} s of processor time"
        if detail is None and peak > MAX_PEAK:
            outcome, detail = "memory", f"{peak / 1e6:.0f} MB"
        if detail is None:
            return
        self.keep.mkdir(parents=True, exist_ok=True)
        data = hostile_file(name, number, self.seed)
        stem = f"{name.replace(' ', '-')}-{self.seed}-{number}.{outcome}"
        for suffix, part in zip(("", ".weights"), data if isinstance(data, tuple) else (data,), strict=False):
            (self.keep / (stem + suffix)).write_bytes(part)
        (self.keep / f"{stem}.txt").write_text(detail)
        self.defects.append(f"{name} {number}: {outcome}: {detail.strip().splitlines()[-1]}")
        print(self.defects[-1], file=sys.stderr, flush=True)


class Child:
    """A process that examines files, and the task that it is at."""

    def __init__(self, folder: Path, number: int, rehearse: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = folder / f"{number}"
        self.folder.mkdir(exist_ok=True)
        self.log = folder / f"{number}.log"
        self.state = context.RawArray("d", [-1.0, 0.0])  # the file that it is at, and its processor time at the begin
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, self.state, str(self.log), str(self.folder), rehearse)
        )
        self.process.start()
        theirs.close()
        self.task: tuple[str, int, int, int] | None = None
        self.since = time.monotonic()

    def give(self, task: tuple[str, int, int, int] | None) -> None:
        """Hand over files, or None to end."""
        self.task, self.since = task, time.monotonic()
        self.connection.send(task)

    def seconds_at_file(self) -> float:
        """Return the processor time since the file was begun."""
        import psutil

        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return times.user + times.system - self.state[1] if self.state[0] >= 0 else 0.0


def fuzz(
    names: list[str],
    files: int,
    first: int = 0,
    seed: int = 0,
    keep: Path = Path("runs/fuzz"),
    cores: int = 1,
    max_seconds: float = MAX_SECONDS,
    rehearse: bool = False,
) -> Report:
    """Examine `files` files, an equal share of each format; a tenth of a share of the bundles, which take a tenth of a second."""
    from seeds import NUM_LIMIT_IMAGES

    share = max(1, files // max(1, len(set(names) - {LIMIT, BUNDLE})))
    report = Report({name: Row() for name in names}, seed, keep, max_seconds)
    tasks: collections.deque[tuple[str, int, int, int]] = collections.deque()
    for name in names:
        last = first + (max(1, share // 10) if name == BUNDLE and len(names) > 1 else share)
        if name == LIMIT:
            last = min(last, NUM_LIMIT_IMAGES)
        chunk = 1 if name == LIMIT else CHUNK
        tasks += [(name, begin, min(begin + chunk, last), seed) for begin in range(first, last, chunk)]
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="pneumo-fuzz-", dir=shared) as temporary:
        folder = Path(temporary)
        children: list[Child] = []
        number = 0
        for _ in range(min(cores, len(tasks))):
            children.append(Child(folder, number := number + 1, rehearse))
            children[-1].give(tasks.popleft())
        while children:
            ready = multiprocessing.connection.wait([child.connection for child in children], timeout=0.5)
            for child in list(children):
                died = False
                if child.connection in ready:
                    try:
                        message = child.connection.recv()
                    except (EOFError, ConnectionResetError):
                        died = True
                    else:
                        child.since = time.monotonic()
                        if message is not None:
                            report.add(child.task[0], *message)  # type: ignore[index]
                            continue
                        # An image at the size limit is measured in a process that holds nothing else.
                        if tasks and LIMIT not in (child.task[0], tasks[0][0]):  # type: ignore[index]
                            child.give(tasks.popleft())
                            continue
                        child.give(None)
                        child.process.join()
                        children.remove(child)
                        if tasks:
                            children.append(Child(folder, number := number + 1, rehearse))
                            children[-1].give(tasks.popleft())
                elif child.seconds_at_file() > 3 * max_seconds or time.monotonic() - child.since > MAX_WAIT:
                    child.process.kill()
                    died = True
                if died:
                    child.process.join()
                    name, _, last, _ = child.task  # type: ignore[misc]
                    offender = int(child.state[0])
                    code = child.process.exitcode or 0
                    if offender < 0:
                        raise RuntimeError(
                            f"a process ended with {code} between two files:\n{child.log.read_text()[-2000:]}"
                        )
                    is_hang = code == -signal.SIGKILL
                    text = (
                        "no end in sight"
                        if is_hang
                        else f"ended with {code}\n{child.log.read_text()[-3000:]}\nended with {code}"
                    )
                    report.add(name, offender, "hang" if is_hang else "crash", text, 0.0, 0)
                    children.remove(child)
                    if offender + 1 < last:
                        tasks.appendleft((name, offender + 1, last, seed))
                    if tasks:
                        children.append(Child(folder, number := number + 1, rehearse))
                        children[-1].give(tasks.popleft())
        from targets import SECRETS

        for log in folder.glob("*.log"):
            if any(secret in log.read_text(errors="replace") for secret in SECRETS):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / log.name).write_bytes(log.read_bytes())
                report.defects.append(f"{keep / log.name}: the output of a process names the patient")
    return report


def table(report: Report) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| format | files | read | refused | slowest, ms | peak, MB |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for name, row in report.rows.items():
        refused = ", ".join(f"{kind} {count:,}" for kind, count in row.outcomes.most_common() if kind != "ok")
        lines.append(
            f"| {name} | {row.outcomes.total():,} | {row.outcomes['ok']:,} | {refused} "
            f"| {1000 * row.slowest:,.0f} | {row.peak / 1e6:,.0f} |"
        )
    total = sum(row.outcomes.total() for row in report.rows.values())
    return "\n".join(
        [*lines, f"| all | {total:,} | {sum(row.outcomes['ok'] for row in report.rows.values()):,} | | | |"]
    )


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000, help="in all")
    parser.add_argument("--first", type=int, default=0, help="number of the first file of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", help="rows of the table; all without")
    parser.add_argument(
        "--keep", type=Path, default=Path("runs/fuzz"), help="folder for the files that broke something"
    )
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--without", nargs="+", default=[], help="rows to leave out")
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS, help="processor time that one file may take")
    parser.add_argument("--rehearse", action="store_true", help="break each promise once, to see that it is noticed")
    options = parser.parse_args()
    names = options.formats or formats()
    names = [name for name in names if name not in options.without]
    if unknown := sorted(set(names) - set(formats())):
        parser.error(f"no format {', '.join(unknown)}; there are {', '.join(formats())}")
    started = time.monotonic()
    limits = {"max_seconds": options.seconds, "rehearse": options.rehearse}
    report = fuzz(names, options.files, options.first, options.seed, options.keep, options.cores, **limits)
    print(table(report))
    total = sum(row.outcomes.total() for row in report.rows.values())
    print(f"\n{total:,} files with seed {options.seed} in {time.monotonic() - started:.0f} s")
    if report.defects:
        print(f"{len(report.defects)} files broke something, the first: {report.defects[0]}; see {options.keep}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
