"""Progress of a study: a live table on a terminal, elsewhere a line per trial and a summary line from time to time."""

import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from rich import box, get_console
from rich.live import Live
from rich.table import Table

from pneumo_ray.console import QUIET_SECONDS, duration, log
from pneumo_ray.records import JsonObject
from pneumo_ray.tune.study import Settings, Study, Trial


@dataclass
class _Progress:
    """How far a trial is, at its last epoch."""

    settings: Settings
    status: str = "running"
    epoch: int = 0
    val_loss: float | None = None
    val_auc: float | None = None
    best: float | None = None
    """The lowest validation loss so far."""

    def add(self, result: JsonObject) -> None:
        """Take what a trial reports of an epoch; a trial that diverged lacks some of it."""
        self.epoch = result.get("epoch", self.epoch)
        self.val_auc = result.get("val_auc", self.val_auc)
        if (loss := result.get("val_loss")) is not None:
            self.val_loss = loss
            self.best = loss if self.best is None else min(self.best, loss)


class Board(tune.Callback):
    """Ray Tune callback that shows the progress of the trials."""

    def __init__(
        self,
        trials: Mapping[str, Trial],
        epochs: int,
        study: Study,
        stopped: Container[str] = (),
        status_of: Callable[[str], str | None] = lambda name: None,
    ) -> None:
        """Start with no trial running.

        Args:
            trials: the remaining trials by name, in the planned order.
            epochs: largest number per trial.
            study: the study.
            stopped: names of trials that the scheduler stopped early, updated while it runs.
            status_of: returns the status in the record of a trial that is over, such as diverged, None without a record.
        """
        self._trials, self._epochs, self._study, self._stopped = trials, epochs, study, stopped
        self._status_of = status_of
        self._rows: dict[str, _Progress] = {}
        self._start = time.monotonic()
        self.errors: dict[str, str] = {}
        """Trial -> reason of its failure after all attempts."""

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        """Called when a trial starts or restarts."""
        row = self._row(trial)
        row.status = "running"

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: JsonObject, **info: object
    ) -> None:
        """Called when an epoch ends."""
        self._row(trial).add(result)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        """Called when a trial ends."""
        name = trial.config["name"]
        status = "stopped" if name in self._stopped else self._status_of(name)
        self._end(trial, "done" if status in (None, "finished") else str(status))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        """Called when a trial failed in all attempts."""
        error = trial.get_error()
        lines = str(error).strip().splitlines() or ["unknown"]
        self.errors[trial.config["name"]] = f"{type(error).__name__}: {lines[-1]}"
        self._end(trial, "failed")

    def running(self) -> list[str]:
        """Return the names of the trials that have begun and are not over."""
        return [name for name, row in self._rows.items() if row.status in ("running", "interrupted")]

    def _row(self, trial: TuneTrial) -> _Progress:
        name = trial.config["name"]
        settings = trial.config.get("settings", self._trials[name].settings)
        return self._rows.setdefault(name, _Progress(settings))

    def _end(self, trial: TuneTrial, status: str) -> None:
        row = self._row(trial)
        row.status = status
        if not sys.stdout.isatty():
            over = sum(row.status != "running" for row in self._rows.values())
            numbers = self._numbers(row)
            log(f"trial {trial.config['name']} {status}{numbers}  ({over} of {len(self._trials)}, {self._elapsed()})")

    def _numbers(self, row: _Progress) -> str:
        if row.best is None or row.val_auc is None:
            return ""
        return f"  epoch {row.epoch}/{self._epochs}  best val loss {row.best:.4f}  val AUC {row.val_auc:.4f}"

    def _summary(self) -> str:
        rows = list(self._rows.items())  # trials may start meanwhile
        running = [
            f"{name}{self._numbers(row) or '  in its first epoch'}" for name, row in rows if row.status == "running"
        ]
        over = len(rows) - len(running)
        return f"{'; '.join(running) or 'waiting for the cluster'}  ({over} of {len(self._trials)} over, {self._elapsed()})"

    def _elapsed(self) -> str:
        return duration(time.monotonic() - self._start)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the board while the block runs."""
        if sys.stdout.isatty():
            with Live(get_renderable=self._table, refresh_per_second=2):
                try:
                    yield
                except BaseException:
                    for row in self._rows.values():
                        if row.status == "running":
                            row.status = "interrupted"
                    raise
            return
        over = threading.Event()

        def summarise() -> None:
            while not over.wait(QUIET_SECONDS):
                log(self._summary())

        thread = threading.Thread(target=summarise, name="board", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _table(self) -> Table:
        """Return the running trials and as many of the latest others as fit."""
        rows = list(self._rows.items())
        going = self.running()
        running = [item for item in rows if item[0] in going]
        over = [item for item in rows if item not in running]
        room = max(1, get_console().height - 5 - len(running))
        shown = sorted([*over[-room:], *running], key=lambda item: list(self._trials).index(item[0]))
        table = Table(
            title=f"study {self._study.name}: {len(over)} of {len(self._trials)} trials, {self._elapsed()}",
            title_justify="left",
            title_style="bold",
            caption="waiting for the cluster"
            if not rows
            else f"{len(rows) - len(shown)} more" * (len(rows) > len(shown)),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1, 0, 0),
        )
        varied = list(self._study.space)
        table.add_column("trial", no_wrap=True, overflow="ellipsis")
        for option in varied:
            table.add_column(option.rpartition(".")[2].replace("_", " "), justify="right", no_wrap=True)
        table.add_column("status", no_wrap=True)
        for name in ("epoch", "val loss", "best", "val AUC"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, row in shown:
            drawn = [_short(row.settings.get(option, "")) for option in varied]
            numbers = ["" if number is None else f"{number:.4f}" for number in (row.val_loss, row.best, row.val_auc)]
            table.add_row(name, *drawn, row.status, f"{row.epoch}/{self._epochs}", *numbers)
        return table


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
