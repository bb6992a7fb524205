"""How a study stands, while it runs: a live table on a terminal, elsewhere a line a trial and now and then one for all."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from rich.live import Live
from rich.table import Table

from pneumo_ray.console import QUIET_SECONDS, duration, say
from pneumo_ray.train.study import Study


class Board(tune.Callback):
    """Hears from Ray Tune what the trials report."""

    def __init__(self, trials: int, epochs: int, study: Study) -> None:
        """Begin with no trial started."""
        self._trials, self._epochs, self._study = trials, epochs, study
        self._rows: dict[str, dict[str, Any]] = {}
        self._start = time.monotonic()
        self.errors: dict[str, str] = {}
        """Trial -> why it could not be run, after all attempts."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hear that a trial starts, or starts again."""
        self._rows.setdefault(trial.config["name"], {})["status"] = "running"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Hear of an epoch."""
        row = self._rows[trial.config["name"]]
        row |= {name: result[name] for name in ("epoch", "val_loss", "val_auc") if name in result}
        if "val_loss" in result:
            row["best"] = min(row.get("best", result["val_loss"]), result["val_loss"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hear that a trial is over."""
        self._end(trial.config["name"], "done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hear that a trial failed for good."""
        error = trial.get_error()
        lines = str(error).strip().splitlines() or ["unknown"]
        self.errors[trial.config["name"]] = f"{type(error).__name__}: {lines[-1]}"
        self._end(trial.config["name"], "failed")

    def _end(self, name: str, status: str) -> None:
        row = self._rows.setdefault(name, {})
        row["status"] = status
        if not sys.stdout.isatty():
            over = sum(row["status"] != "running" for row in self._rows.values())
            say(f"trial {name} {status}{self._numbers(row)}  ({over} of {self._trials}, {self._elapsed()})")

    def _numbers(self, row: dict[str, Any]) -> str:
        if "epoch" not in row:
            return ""
        return f"  epoch {row['epoch']}/{self._epochs}  best val loss {row['best']:.4f}  val AUC {row['val_auc']:.4f}"

    def _elapsed(self) -> str:
        return duration(time.monotonic() - self._start)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the board while the block runs."""
        if sys.stdout.isatty():
            with Live(get_renderable=self._table, refresh_per_second=2):
                yield
            return
        over = threading.Event()

        def speak() -> None:
            while not over.wait(QUIET_SECONDS):
                running = {name: row for name, row in self._rows.items() if row["status"] == "running"}
                say(
                    "; ".join(f"{name}{self._numbers(row)}" for name, row in running.items())
                    or "waiting for the cluster"
                )

        thread = threading.Thread(target=speak, name="board", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _table(self) -> Table:
        over = sum(row["status"] != "running" for row in self._rows.values())
        table = Table(title=f"study {self._study.name}: {over} of {self._trials} trials, {self._elapsed()}")
        for name in ("trial", "status", "epoch", "val loss", "best", "val AUC"):
            table.add_column(name)
        for name, row in list(self._rows.items())[-20:]:
            numbers = [f"{row[key]:.4f}" if key in row else "" for key in ("val_loss", "best", "val_auc")]
            table.add_row(name, row["status"], f"{row.get('epoch', 0)}/{self._epochs}", *numbers)
        return table
