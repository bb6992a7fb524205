"""What a job says while it works: one plain line a stage, and a progress bar where there is a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


def say(line: str) -> None:
    """Print one line at once."""
    print(line, flush=True)


class Ticker(Protocol):
    """Counts work done."""

    def __call__(self, done: int = 1, /) -> None:
        """Add `done` to the count."""


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Ticker]:
    """Show how far a stage is: a bar with rate and time left on a terminal, elsewhere a line every 30 seconds."""
    if not sys.stdout.isatty():
        start = last = time.monotonic()
        count = 0

        def tick(done: int = 1, /) -> None:
            nonlocal count, last
            count += done
            if (now := time.monotonic()) - last >= 30:
                last = now
                of = f" of {total:,}" if total else ""
                say(f"{title}: {count:,}{of}, {count / (now - start):,.0f}/s")

        yield tick
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done=1, /: bar.advance(task, done)


def duration(seconds: float) -> str:
    """Return a length of time as people say it: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
