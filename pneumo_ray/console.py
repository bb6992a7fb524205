"""Progress of a job: one plain line per stage, and a progress bar on a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


def log(line: str) -> None:
    """Print one line at once."""
    print(line, flush=True)


QUIET_SECONDS = 30
"""Without a terminal, at most one progress line in this interval."""


class Ticker(Protocol):
    """Counts work done."""

    def __call__(self, done: int = 1, /) -> None:
        """Add `done` to the count."""


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Ticker]:
    """Show the progress of a stage: a bar with rate and time left on a terminal, elsewhere a line every 30 seconds."""
    if sys.stdout.isatty():
        with bar() as shown:
            task = shown.add_task(title, total=total)
            yield lambda done=1, /: shown.advance(task, done)
        return
    start = last = time.monotonic()
    count = 0

    def tick(done: int = 1, /) -> None:
        nonlocal count, last
        count += done
        if (now := time.monotonic()) - last >= QUIET_SECONDS:
            last = now
            of = f" of {total:,}" if total else ""
            log(f"{title}: {count:,}{of}, {count / (now - start):,.0f}/s")

    yield tick


def bar() -> Progress:
    """Return a bar that shows count, rate and time left, and disappears when it is done."""
    speed = TaskProgressColumn(show_speed=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        speed,
        TimeRemainingColumn(),
        transient=True,
    )


def duration(seconds: float) -> str:
    """Return a duration in readable form: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
