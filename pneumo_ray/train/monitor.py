"""Progress from workers to the driver: an actor that receives it, and a thread that prints it."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pneumo_ray.console import QUIET_SECONDS, bar, duration, log
from pneumo_ray.errors import PneumoError
from pneumo_ray.train.records import EpochRecord

Record = TypeVar("Record")
"""Record of a finished epoch."""

_READ_SECONDS = 0.5
"""Seconds between two looks at the progress of the workers."""


class Monitor(Generic[Record]):
    """The newest step, the finished epochs and the reason of a failure that no restart can fix."""

    def __init__(self) -> None:
        self._step: tuple[int, int, int] = (0, 0, 0)
        self._epochs: list[Record] = []
        self._failure: PneumoError | None = None
        self._begun: tuple[int, int] | None = None
        self._restarts_without_progress = 0
        self._judged: float = math.inf
        self._answers: dict[int, bool] = {}

    def begin(self, epoch: int, workers: int) -> int:
        """Called when workers start an epoch, counted from 0; return the number of restarts without progress.

        A group of another size grew or shrank with its cluster and sets the count to 0.
        """
        same = (epoch, workers) == self._begun
        self._begun, self._restarts_without_progress = (
            (epoch, workers),
            self._restarts_without_progress + 1 if same else 0,
        )
        return self._restarts_without_progress

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Called when `step` of `steps` of an epoch is done."""
        self._step = (epoch, step, steps)

    def finish_epoch(self, record: Record) -> None:
        """Called when an epoch ends."""
        self._epochs.append(record)

    def fail(self, reason: PneumoError) -> None:
        """Record why the run cannot continue."""
        self._failure = reason

    def failure(self) -> PneumoError | None:
        """Return why the run cannot continue, or None."""
        return self._failure

    def judge(self, epochs: int) -> None:
        """Allow the run to continue until the next decision of the scheduler."""
        self._judged = epochs

    def goes_on(self, epochs: int) -> bool | None:
        """Whether the run continues after this number of epochs, the same for all workers; None while undecided."""
        if self._failure is None and epochs > self._judged:
            return None
        return self._answers.setdefault(epochs, self._failure is None)

    def news(self, after: int) -> tuple[tuple[int, int, int], list[Record]]:
        """Return the newest step and the epochs after the first `after` ones."""
        return self._step, self._epochs[after:]


class RemoteMonitor(Monitor[Record]):
    """The same as an actor, for workers in other processes."""

    def __init__(self) -> None:
        # On the node of the driver: progress would be lost with any other node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Monitor).remote()
        self._sent = -math.inf

    def begin(self, epoch: int, workers: int) -> int:
        """Call the actor and wait for the result."""
        restarts_without_progress: int = ray.get(self._actor.begin.remote(epoch, workers))
        return restarts_without_progress

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Call the actor without waiting, as often as it is read and at the end of an epoch."""
        now = time.monotonic()
        if step == steps or now - self._sent >= _READ_SECONDS:
            self._sent = now
            self._actor.step.remote(epoch, step, steps)

    def finish_epoch(self, record: Record) -> None:
        """Call the actor without waiting."""
        self._actor.finish_epoch.remote(record)

    def fail(self, reason: PneumoError) -> None:
        """Call the actor and wait."""
        ray.get(self._actor.fail.remote(reason))

    def failure(self) -> PneumoError | None:
        """Return the value of the actor."""
        reason: PneumoError | None = ray.get(self._actor.failure.remote())
        return reason

    def judge(self, epochs: int) -> None:
        """Call the actor and wait."""
        ray.get(self._actor.judge.remote(epochs))

    def goes_on(self, epochs: int) -> bool:
        """Poll the actor until it has an answer."""
        while (answer := ray.get(self._actor.goes_on.remote(epochs))) is None:
            time.sleep(0.1)
        return bool(answer)

    def news(self, after: int) -> tuple[tuple[int, int, int], list[Record]]:
        """Return the value of the actor."""
        news: tuple[tuple[int, int, int], list[Record]] = ray.get(self._actor.news.remote(after))
        return news


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """Return the progress line of an epoch."""
    left = (epochs - record.epoch) * record.seconds
    ending = "stopped early" if record.stopped else (f"at most {duration(left)} left" if left else "done")
    return (
        f"epoch {record.epoch:>3}/{epochs}  loss {record.train_loss:.4f}  val loss {record.val_loss:.4f}  "
        f"val AUC {record.val_auc:.4f}  lr {record.lr:.1e}  {record.images_per_second:.0f} img/s  {ending}{'  *best' if record.best else ''}"
    )


@contextmanager
def followed(
    monitor: Monitor[Record], epochs: int, on_epoch: Callable[[Record], None]
) -> Iterator[list[ray.exceptions.RayError]]:
    """Within the block, pass on finished epochs and print the progress of the current one (on a terminal, as a bar).

    Args:
        monitor: receives the progress of the workers.
        epochs: largest number of epochs of the run.
        on_epoch: called with the record of every finished epoch.

    Yields:
        What is known of the death of the monitor: nothing while it lives. Without it no worker can go on.
    """
    lost: list[ray.exceptions.RayError] = []
    finished = threading.Event()
    terminal = sys.stdout.isatty()

    def follow() -> None:
        received, last_line = 0, time.monotonic()
        with bar() if terminal else nullcontext() as shown:
            task = shown.add_task("starting", total=None) if shown else None
            while True:
                ending = finished.wait(_READ_SECONDS)
                try:
                    (epoch, step, steps), records = monitor.news(received)
                except ray.exceptions.RayError as error:
                    lost.append(error)
                    return
                for record in records:
                    on_epoch(record)
                    last_line = time.monotonic()
                received += len(records)
                if shown and task is not None and steps:
                    shown.update(task, description=f"epoch {epoch + 1}/{epochs}", completed=step, total=steps)
                elif not terminal and time.monotonic() - last_line >= QUIET_SECONDS:
                    last_line = time.monotonic()
                    log(f"epoch {epoch + 1:>3}/{epochs}  step {step} of {steps}" if steps else "starting the workers")
                if ending:
                    return

    thread = threading.Thread(target=follow, name="monitor", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        finished.set()
        thread.join(timeout=10)
