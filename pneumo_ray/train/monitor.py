"""How the driver learns what its workers do: an actor that they tell, and a thread that prints what it heard."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pneumo_ray.console import duration, progress, say


class Monitor:
    """Holds the newest step, the finished epochs and the reason of a failure that no restart can mend."""

    def __init__(self) -> None:
        self._step: tuple[int, int, int] = (0, 0, 0)
        self._epochs: list[dict[str, Any]] = []
        self._failure: str | None = None

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Hear that `step` of `steps` of an epoch is done."""
        self._step = (epoch, step, steps)

    def finish_epoch(self, record: dict[str, Any]) -> None:
        """Hear that an epoch is finished."""
        self._epochs.append(record)

    def fail(self, reason: str) -> None:
        """Hear why the run cannot go on."""
        self._failure = reason

    def failure(self) -> str | None:
        """Return why the run cannot go on, or None."""
        return self._failure

    def news(self, after: int) -> tuple[tuple[int, int, int], list[dict[str, Any]]]:
        """Return the newest step and the epochs after the first `after` ones."""
        return self._step, self._epochs[after:]


def start_monitor() -> Any:
    """Start the actor and return its handle."""
    return ray.remote(num_cpus=0)(Monitor).remote()


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """Return what is printed of an epoch."""
    left = (epochs - record["epoch"]) * record["seconds"]
    ending = "stopped early" if record["stopped"] else (f"at most {duration(left)} left" if left else "done")
    return (
        f"epoch {record['epoch']:>3}/{epochs}  loss {record['train_loss']:.4f}  val loss {record['val_loss']:.4f}  "
        f"val AUC {record['val_auc']:.4f}  lr {record['lr']:.1e}  {record['images_per_second']:.0f} img/s  {ending}{'  *best' if record['best'] else ''}"
    )


@contextmanager
def printed(monitor: Any, epochs: int) -> Iterator[None]:
    """Print epochs as they finish, and the steps of the current one as a bar on a terminal, while the block runs."""
    finished = threading.Event()

    def follow() -> None:
        heard, bar_epoch = 0, -1
        with progress("epoch", None) as tick:
            done = 0
            while True:
                last = finished.wait(0.5)
                (epoch, step, _), records = ray.get(monitor.news.remote(heard))
                for record in records:
                    say(epoch_line(record, epochs))
                heard += len(records)
                if epoch != bar_epoch:
                    bar_epoch, done = epoch, 0
                tick(max(0, step - done))
                done = step
                if last:
                    return

    thread = threading.Thread(target=follow, name="monitor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join(timeout=10)
