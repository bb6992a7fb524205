"""One trial of a study: the training of jobs/train.py in resources reserved by Ray Tune, and its record.

A trial with one worker trains in the trial's own process, which Ray Tune uses again for the next trial: starting the
processes of a Ray Train run and importing torch in them can take longer than a trial. Ray Train calls this local
mode; it lacks storage and restarts, which are implemented here anyway. More workers are a nested run of Ray Train.
"""

import gc
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import pyarrow as pa
import ray.tune
from ray.util.placement_group import PlacementGroup, get_current_placement_group

from pneumo_ray import storage
from pneumo_ray.allocator import return_freed_memory
from pneumo_ray.cpu_shares import TrialShares
from pneumo_ray.data.manifest import read_manifest, usable
from pneumo_ray.errors import PneumoError
from pneumo_ray.ray_cluster import quiet_ray_data
from pneumo_ray.records import JsonObject
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.launch import fit
from pneumo_ray.train.monitor import Monitor, RemoteMonitor
from pneumo_ray.train.records import EpochRecord
from pneumo_ray.train.state import TrainState, latest_epoch, load_state
from pneumo_ray.train.validation import validation_metrics
from pneumo_ray.train.worker_job import DivergedError
from pneumo_ray.train.workers import Reservation
from pneumo_ray.tune.error_finding import error_finding
from pneumo_ray.tune.held_out import write_held_out
from pneumo_ray.tune.records import Status, TrialRecord, save_record
from pneumo_ray.tune.study import Trial, configure


@dataclass(frozen=True)
class TrialJob:
    """Arguments of the process of a trial."""

    base: TrainConfig
    trials: Mapping[str, Trial]
    """Trials by name; a trial that is drawn when it starts gets its options from Ray Tune."""
    share: TrialShares
    judged: bool
    """A scheduler may stop the trial early: it receives the epochs of an interrupted trial again, and an epoch starts when it
    has decided on the previous one, so that the epoch at which a trial stops does not depend on timing."""
    uncertainty: bool
    """Measure how well Monte Carlo dropout finds the errors on validation."""
    held_out: bool = False
    """Give the images that did not train their probabilities."""


class StoppedError(PneumoError):
    """Ray Tune has ended the trial."""


class TrialMonitor(Monitor[EpochRecord]):
    """Receives the progress of a trial in this process, and ends its loop if Ray Tune has ended the trial."""

    def __init__(self, on_epoch: Callable[[EpochRecord], None], ended: threading.Event) -> None:
        super().__init__()
        self._on_epoch, self._ended = on_epoch, ended

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Called after a step."""
        if self._ended.is_set():
            raise StoppedError("stopped early by the scheduler")

    def finish_epoch(self, record: EpochRecord) -> None:
        """Called when an epoch ends."""
        self._on_epoch(record)


class TrialRunner(ray.tune.Trainable):
    """Ray Tune trainable: runs the trial in a thread, one epoch per step, one trial after the other in one process."""

    def setup(self, config: JsonObject, job: TrialJob) -> None:
        """Begin the first trial."""
        quiet_ray_data()
        self._job = job
        # Read here, because it is None in another thread.
        self._reserved = get_current_placement_group()
        self._begin(config)

    def reset_config(self, new_config: JsonObject) -> bool:
        """Start the next trial; return whether this process can."""
        if not self._end():
            return False
        gc.collect()  # networks have cycles
        return_freed_memory()
        self._begin(new_config)
        return True

    def step(self) -> JsonObject:
        """Wait for an epoch."""
        self._turns.release()
        news = self._news.get()
        if isinstance(news, BaseException):
            raise news
        return news if news is not None else {"done": True}

    def cleanup(self) -> None:
        """End the trial."""
        self._end()

    def _begin(self, config: JsonObject) -> None:
        trial = self._job.trials[config["name"]]
        if "settings" in config:
            trial = replace(trial, settings=config["settings"])
        self._news: queue.Queue[JsonObject | BaseException | None] = queue.Queue()
        self._ended = threading.Event()
        self._turns = threading.Semaphore(0)
        self._thread = threading.Thread(
            target=self._run, args=(trial, self._news, self._ended, self._turns), name="trial", daemon=True
        )
        self._thread.start()

    def _end(self) -> bool:
        """End the trial if it still runs; return whether it is over."""
        self._ended.set()
        # The workers of a nested run notice it when they wait for a decision; otherwise they end with this process.
        share = self._job.share
        self._thread.join(timeout=60 if share.in_process or self._job.judged else 1)
        return not self._thread.is_alive()

    def _run(
        self,
        trial: Trial,
        news: queue.Queue[JsonObject | BaseException | None],
        ended: threading.Event,
        turns: threading.Semaphore,
    ) -> None:
        def wait() -> None:
            while self._job.judged and not turns.acquire(timeout=0.5):
                if ended.is_set():
                    raise StoppedError("stopped early by the scheduler")

        def on_epoch(record: EpochRecord) -> None:
            news.put(record.values())
            wait()

        try:
            wait()
            run_trial(self._job, trial, self._reserved, on_epoch, ended)
            news.put(None)
        except BaseException as error:  # raised again in the thread of Ray Tune
            news.put(error)


def run_trial(
    job: TrialJob,
    trial: Trial,
    reserved: PlacementGroup | None,
    on_epoch: Callable[[EpochRecord], None],
    ended: threading.Event,
) -> None:
    """Run one trial to its end and write its record; only errors that a restart can fix are raised.

    Args:
        job: arguments of the process.
        trial: the trial.
        reserved: placement group of the tasks that prepare its images.
        on_epoch: called with the record of every epoch.
        ended: set if the trial must end early.
    """
    share, config = job.share, configure(job.base, trial)
    # Ray Tune restarts a trial; restarts of the nested run as well would multiply the attempts.
    scaling = replace(config.scaling, threads_per_worker=share.threads, max_failures=0)
    config = replace(config, scaling=scaling)
    monitor: Monitor[EpochRecord] = TrialMonitor(on_epoch, ended) if share.in_process else RemoteMonitor()

    def record_epoch(record: EpochRecord) -> None:
        """Called when an epoch of a nested run ends; its workers wait for the decision, then continue or end in order.

        If only the process of the trial ended, the reservation of the workers would remain: Ray Train releases it when the
        dashboard reports the end of the run, and not every cluster has a dashboard.
        """
        try:
            on_epoch(record)
            if job.judged:
                monitor.judge(record.epoch)
        except StoppedError as reason:
            monitor.fail(reason)

    reservation = Reservation(
        shares=share.cpus, monitor=monitor, reserved=reserved, in_process=share.in_process, on_epoch=record_epoch
    )
    started, before = time.monotonic(), latest_epoch(config.out)
    if job.judged and before:
        for line in storage.read_bytes(storage.join(config.out, "history.jsonl")).decode().splitlines():
            on_epoch(EpochRecord.from_values(json.loads(line)))
    if job.judged and not share.in_process:
        monitor.judge(before)
    try:
        result = fit(config, reservation)
        found = error_finding(config, result.model, share.in_process) if job.uncertainty else {}
        if job.held_out:
            write_held_out(config, result.model, share.in_process)
    except StoppedError:
        raise
    except PneumoError as error:
        status: Status = "diverged" if isinstance(error, DivergedError) else "failed"
        record_trial(config.out, trial, status, reason=str(error))
        return
    record_trial(
        config.out,
        trial,
        "finished",
        checkpoint=result.model,
        overhead=time.monotonic() - started - sum(epoch.seconds for epoch in result.history[before:]),
        val_ids=usable(read_manifest(config.manifest), "val")["image_id"],
        more_metrics=found,
    )


def record_trial(
    folder: str,
    trial: Trial,
    status: Status,
    *,
    reason: str | None = None,
    checkpoint: str | None = None,
    overhead: float | None = None,
    val_ids: pa.ChunkedArray | None = None,
    more_metrics: Mapping[str, float | None] = MappingProxyType({}),
) -> None:
    """Write the record of a trial and remove its state.

    Args:
        folder: of the trial.
        trial: the trial.
        status: finished, stopped (by the scheduler), diverged or failed.
        reason: why it did not finish.
        checkpoint: folder of its model.
        overhead: seconds outside training.
        val_ids: names of the validation images, to keep their logits.
        more_metrics: metrics in addition to `validation_metrics`.
    """
    state = load_state(folder)
    record = TrialRecord(
        name=trial.name,
        arm=trial.arm,
        seed=trial.seed,
        settings=dict(trial.settings),
        status=status,
        reason=reason,
        epochs=state.epoch if state else 0,
        best_epoch=state.best_epoch if state else None,
        checkpoint=checkpoint,
        training_seconds=sum(epoch.seconds for epoch in state.history) if state else 0.0,
        overhead_seconds=overhead,
        metrics={**measure(state), **more_metrics} if state else {},
        history=[epoch.values() for epoch in state.history] if state else (),
    )
    if state and val_ids is not None:
        kept = {name: state.best_val[name].numpy() for name in ("logit", "label")}
        table = pa.table({"image_id": val_ids, **kept})
        storage.write_table(table, storage.join(folder, "validation.parquet"))
    save_record(folder, record)
    for name in storage.list_files(storage.join(folder, "state")):
        storage.remove(storage.join(folder, "state", name))


def measure(state: TrainState) -> dict[str, float | None]:
    """Return the metrics of a run on validation at its best epoch."""
    return validation_metrics(state.best_val["logit"].numpy(), state.labels, state.applied_logits, state.soft)
