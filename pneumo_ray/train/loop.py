"""Training loop of one worker: read tickets, step, validate on every image once, save, repeat."""

import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import ray.train
import ray.train.torch
import torch
from sklearn.metrics import roc_auc_score

from pneumo_ray.data.soft_labels import SoftLabels
from pneumo_ray.errors import ClusterError, PneumoError
from pneumo_ray.train.batches import Schedule
from pneumo_ray.train.config import ScalingConfig
from pneumo_ray.train.learner import Learner, Trained, Validated
from pneumo_ray.train.monitor import Monitor, Record
from pneumo_ray.train.ray_stream import tickets_in
from pneumo_ray.train.records import EpochRecord
from pneumo_ray.train.state import TrainState, load_state, save_state
from pneumo_ray.train.trackers import Trackers
from pneumo_ray.train.worker_job import CALMER, DivergedError, WorkerJob

STREAM = "stream"
"""Name of the one dataset that a worker consumes."""
COLUMNS = ("pixels", "label", "row", "lungs", "has_lungs", "num_lungs", "target", "weight")
"""What the classifier takes of a ticket, as far as it is there."""


def train_worker(settings: dict[str, WorkerJob]) -> None:
    """Run one worker from the state of the run to its end; failures that no restart can fix are reported to the monitor."""
    job = settings["job"]
    with failures_reported(job.monitor) as failed:
        if failed:
            return
        try:
            _train(job)
        except torch.OutOfMemoryError as error:
            raise ClusterError(
                f"the GPU has no memory for {job.config.model.arch} at {job.config.data.image_size} px with its share of "
                f"{job.config.batch_size} images; give --scaling.num-workers more of them (the same command continues), "
                "or start a new run with a smaller --batch-size"
            ) from error


@contextmanager
def failures_reported(monitor: Monitor[Record]) -> Iterator[bool]:
    """Report to the monitor a `PneumoError` that is raised within the block, and raise it.

    Yields:
        Whether the run has failed before: Ray Train restarts a failed group whatever the reason.
    """
    try:
        yield monitor.failure() is not None
    except PneumoError as error:
        monitor.fail(error)
        raise


def _train(job: WorkerJob) -> None:
    config = job.config
    start = start_worker(job.run, job.schedule, config.epochs, config.scaling, job.monitor)
    if start is None:
        return
    rank, schedule, first_epoch, state = start.rank, start.schedule, start.first_epoch, start.state
    learner = Learner(job, schedule, start.device)
    if state:
        learner.restore(state)
    else:
        state = TrainState.fresh(job.identity)
    # The process of a trial goes on to the next: its logs and its stream of images must not outlive the run.
    with closing(tickets_of(rank, schedule, first_epoch, COLUMNS)) as tickets, ExitStack() as open_logs:
        trackers = Trackers(job.run, config, state.history) if rank == 0 else None
        if trackers is not None:
            open_logs.callback(trackers.close)
        for epoch in range(first_epoch, config.epochs):
            began = time.monotonic()
            trained = learner.train_epoch(tickets, epoch, rank)
            train_seconds = time.monotonic() - began
            validated = learner.validate(tickets)
            seconds = time.monotonic() - began
            record = _record(epoch, trained, validated, job.val_soft, learner.lr, schedule, train_seconds, seconds)
            record = learner.advance(state, record, validated)
            if trackers is not None:
                save_state(job.run, state)
                trackers.log(record)
                job.monitor.finish_epoch(record)
            # A barrier for all ranks. The state was saved before it, so an epoch that was reported is never lost.
            ray.train.report(record.values())
            if state.stopped or (state.epoch < config.epochs and not job.monitor.goes_on(state.epoch)):
                break


@dataclass(frozen=True)
class WorkerStart:
    """Where a worker of a run starts."""

    rank: int
    schedule: Schedule
    """Of the number of workers that there are."""
    device: torch.device
    state: TrainState | None
    """None at the beginning of the run."""

    @property
    def first_epoch(self) -> int:
        """Epochs that are finished: the next one, counted from 0."""
        return self.state.epoch if self.state else 0


def start_worker(
    run: str, schedule: Schedule, epochs: int, scaling: ScalingConfig, monitor: Monitor[Record]
) -> WorkerStart | None:
    """Return where this worker starts; None if the run has ended.

    Args:
        run: folder of the run.
        schedule: of any number of workers.
        epochs: of the run.
        scaling: how many workers, and on what.
        monitor: rank 0 reports to it that the group starts.

    Raises:
        ClusterError: as `begin_epoch`.
    """
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    use_threads(device, scaling.threads_per_worker)
    world_size = context.get_world_size()
    start = WorkerStart(context.get_world_rank(), replace(schedule, world_size=world_size), device, load_state(run))
    if start.state and (start.state.stopped or start.first_epoch >= epochs):
        return None
    if start.rank == 0:
        begin_epoch(monitor, start.first_epoch, world_size, scaling.max_failures)
    return start


def begin_epoch(monitor: Monitor[Record], epoch: int, workers: int, max_failures: int) -> None:
    """Report to the monitor that a group of workers starts, at this epoch, counted from 0.

    Raises:
        ClusterError: if the group died more often than `max_failures` in this epoch; 0 leaves restarts to the caller.
    """
    restarts_without_progress = monitor.begin(epoch, workers)
    if max_failures and restarts_without_progress > max_failures:
        raise ClusterError(
            f"workers died {restarts_without_progress} times in epoch {epoch + 1}, most likely for lack of memory; finished "
            "epochs are kept, so repeat the command with more --scaling.num-workers, whose shares are smaller, or with "
            "more memory"
        )


def tickets_of(
    rank: int, schedule: Schedule, first_epoch: int, columns: tuple[str, ...]
) -> Generator[dict[str, np.ndarray]]:
    """Yield some columns of this rank's batches, as far as they are there, and check that the pipeline delivers the expected tickets."""
    expected = first_epoch * schedule.tickets_per_epoch + rank
    shard = ray.train.get_dataset_shard(STREAM)
    for block in shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
        for made in tickets_in(block):
            if (ticket := int(made["ticket"])) != expected:
                raise RuntimeError(f"rank {rank} expected ticket {expected} and received {ticket}")
            expected += schedule.world_size
            yield {name: made[name] for name in columns if name in made}


def _record(
    epoch: int,
    trained: Trained,
    validated: Validated,
    soft: SoftLabels | None,
    lr: float,
    schedule: Schedule,
    train_seconds: float,
    seconds: float,
) -> EpochRecord:
    logits, labels = validated.logits[:, 0], validated.labels
    if not np.isfinite(logits).all():
        raise DivergedError(f"the network's output is not finite after epoch {epoch + 1}; {CALMER}")
    losses = np.logaddexp(0, logits) - (labels if soft is None else soft.target) * logits
    return EpochRecord(
        epoch=epoch + 1,
        train_loss=trained.loss,
        val_loss=float(np.mean(losses if soft is None else soft.weight * losses)),
        val_auc=float(roc_auc_score(labels, logits)),
        val_accuracy=float(np.mean((logits >= 0) == labels)),
        lr=lr,
        images_per_second=schedule.train_slots / train_seconds,
        seconds=seconds,
        workers=schedule.world_size,
        outside_share=trained.outside_share,
        val_outside_share=validated.outside_share,
    )


def use_threads(device: torch.device, threads: int) -> None:
    """Share the machine's cores among its training workers: Ray would give each as many threads as it has CPUs reserved."""
    if device.type == "cpu":
        local = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local))
    else:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
