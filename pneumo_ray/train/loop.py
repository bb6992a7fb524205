"""Training loop of one worker: read tickets, step, validate on every image once, save, repeat."""

import math
import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from pneumo_ray.errors import ClusterError, ManifestError, PneumoError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import PneumoniaNet, Preprocessing
from pneumo_ray.model.precision import amp_dtype, autocast
from pneumo_ray.train.batches import PADDING, Schedule
from pneumo_ray.train.config import OptimConfig, TrainConfig
from pneumo_ray.train.monitor import Monitor
from pneumo_ray.train.slot_dropout import slot_dropout
from pneumo_ray.train.state import TrainState, load_state, save_state
from pneumo_ray.train.trackers import Trackers
from pneumo_ray.train.validation import SELECTED_BY, calibrated_loss

STREAM = "stream"
"""Name of the dataset of a worker."""


_CALMER = "lower --optim.lr or set --optim.clip-norm, and choose another --out"


class DivergedError(PneumoError):
    """The loss became infinite or undefined."""


@dataclass(frozen=True)
class WorkerJob:
    """Arguments shared by all workers."""

    config: TrainConfig
    run: str
    """Folder of the run, absolute."""
    preprocessing: Preprocessing
    schedule: Schedule
    """Schedule of a run with the minimum number of workers; there may be more."""
    positive_weight: float
    identity: dict[str, Any]
    """See `TrainState`."""
    initial_weights: Any
    """Reference to the state dict that training begins with; workers need no internet connection."""
    monitor: Monitor
    """Receives progress."""


def train_worker(settings: dict[str, Any]) -> None:
    """Run one worker from the state of the run to its end; failures that no restart can fix are reported to the monitor."""
    job: WorkerJob = settings["job"]
    if job.monitor.failure() is not None:
        return  # Ray Train restarts a failed group whatever the reason
    try:
        _train(job)
    except PneumoError as error:
        job.monitor.fail(error)
        raise
    except torch.OutOfMemoryError as error:
        job.monitor.fail(
            ClusterError(
                f"the GPU has no memory for {job.config.model.arch} at {job.config.data.image_size} px with its share of "
                f"{job.config.batch_size} images; give --scaling.num-workers more of them (the same command continues), "
                "or start a new run with a smaller --batch-size"
            )
        )
        raise error


def _train(job: WorkerJob) -> None:
    config, context = job.config, ray.train.get_context()
    rank, schedule = context.get_world_rank(), replace(job.schedule, world_size=context.get_world_size())
    device = ray.train.torch.get_device()
    use_threads(device, config.scaling.threads_per_worker)
    state = load_state(job.run)
    first_epoch = state.epoch if state else 0
    if state and (state.stopped or first_epoch >= config.epochs):
        return
    attempts = job.monitor.begin(first_epoch, schedule.world_size) if rank == 0 else 0
    if config.scaling.max_failures and attempts > config.scaling.max_failures + 1:
        raise ClusterError(
            f"workers died {attempts - 1} times in epoch {first_epoch + 1}, most likely for lack of memory; finished epochs "
            "are kept, so repeat the command with more --scaling.num-workers, whose shares are smaller, or with "
            "more memory"
        )
    learner = Learner(job, schedule, device)
    if state:
        learner.restore(state)
    else:
        state = learner.fresh_state()
    # The process of a trial runs the next one too: logs and streams must be closed with the run.
    with (
        closing(tickets_of(rank, schedule, first_epoch, ("pixels", "label", "row"))) as tickets,
        ExitStack() as open_logs,
    ):
        trackers = Trackers(job.run, config, state.history) if rank == 0 else None
        if trackers is not None:
            open_logs.callback(trackers.close)
        for epoch in range(first_epoch, config.epochs):
            start = time.monotonic()
            train_loss = learner.train_epoch(tickets, epoch, rank)
            trained = time.monotonic()
            logits, labels = learner.validate(tickets)
            record = _record(
                epoch, train_loss, logits[:, 0], labels, learner.lr, schedule, trained - start, time.monotonic() - start
            )
            learner.advance(state, record, logits, labels)
            if trackers is not None:
                save_state(job.run, state)
                trackers.log(record)
                job.monitor.finish_epoch(record)
            # A barrier for all ranks. The state was saved before it, so an epoch that was reported is never lost.
            ray.train.report(record)
            if state.stopped or (state.epoch < config.epochs and not job.monitor.goes_on(state.epoch)):
                break


class Learner:
    """The network and its optimiser, with the steps of an epoch."""

    def __init__(self, job: WorkerJob, schedule: Schedule, device: torch.device) -> None:
        """Build everything on `device`, with the weights that the run begins with."""
        self.job, self.schedule, self.device = job, schedule, device
        optim = job.config.optim
        net = PneumoniaNet(job.config.model)
        net.load_state_dict(ray.get(job.initial_weights))
        net = net.to(device).to(memory_format=torch.channels_last)
        self.net: PneumoniaNet = net
        wrapped: nn.Module = ray.train.torch.prepare_model(net, move_to_device=False)
        self.forward: Any = torch.compile(wrapped) if job.config.compile else wrapped
        trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=optim.lr, weight_decay=optim.weight_decay)
        self.scheduler = plateau_schedule(self.optimizer, optim)
        self.dtype = amp_dtype(job.config.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.positive_weight = torch.tensor(job.positive_weight, device=device)
        # Passes and seed as scoring has them by default: calibration and threshold are fitted on what is applied.
        self.passes = BayesGradCAM(net, amp_dtype=self.dtype) if job.config.model.dropout > 0 else None

    @property
    def lr(self) -> float:
        """The learning rate in use."""
        return float(self.optimizer.param_groups[0]["lr"])

    def fresh_state(self) -> TrainState:
        """Return the state before the first epoch."""
        return TrainState(0, {}, {}, {}, {}, {}, -1, math.inf, {}, 0, False, self.job.identity)

    def restore(self, state: TrainState) -> None:
        """Continue from a state."""
        self.net.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.scheduler.load_state_dict(state.scheduler)
        self.scaler.load_state_dict(state.scaler)

    def train_epoch(self, tickets: Iterator[dict[str, np.ndarray]], epoch: int, rank: int) -> float:
        """Take every optimiser step of an epoch; return the mean training loss over all workers.

        Raises:
            DivergedError: if the loss is not finite at the end of the epoch.
        """
        schedule, clip = self.schedule, self.job.config.optim.clip_norm
        self.forward.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with slot_dropout(self.net, self.job.config.seed) as draw_masks:
            for step in range(schedule.train_steps):
                batch = next(tickets)
                real = batch["row"] != PADDING
                labels = torch.from_numpy(batch["label"][real].astype(np.float32)).to(self.device)
                draw_masks(schedule.slots(epoch, step, rank))
                with autocast(self.dtype, self.device):
                    logits = self.forward(self._input(batch["pixels"][real]))
                loss = F.binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=self.positive_weight)
                # The workers' gradients are averaged; so weighted, that is the gradient of the mean over the global batch.
                loss = loss * (len(labels) * schedule.world_size / schedule.batch_size)
                self.optimizer.zero_grad(set_to_none=True)
                self.scaler.scale(loss).backward()
                if clip > 0:
                    self.scaler.unscale_(self.optimizer)
                    nn.utils.clip_grad_norm_(self.net.parameters(), clip)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                total += loss.detach()
                if rank == 0:
                    self.job.monitor.step(epoch, step + 1, schedule.train_steps)
        mean = total / schedule.train_steps
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= schedule.world_size
        if not math.isfinite(float(mean)):
            raise DivergedError(f"the training loss is {float(mean)} in epoch {epoch + 1}; {_CALMER}")
        return float(mean)

    def validate(self, tickets: Iterator[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Return raw logits and labels int8 [n] of all validation images, in manifest order, on every rank.

        Logits are float64 [n, 1 + T]: without dropout, then of the Monte Carlo passes that scoring makes by default
        (none where the network has no dropout).
        """
        schedule = self.schedule
        if dist.is_initialized():
            # Each rank has BatchNorm statistics of its own shard; those of rank 0 are saved.
            for buffer in self.net.buffers():
                dist.broadcast(buffer, src=0)
        num_logits = 1 + (self.passes.passes if self.passes else 0)
        logits = torch.zeros((schedule.num_val, num_logits), device=self.device)
        labels = torch.zeros(schedule.num_val, dtype=torch.float64, device=self.device)
        self.net.eval()
        for _ in range(schedule.val_steps):
            batch = next(tickets)
            real = batch["row"] != PADDING
            if real.any():
                rows = torch.from_numpy(batch["row"][real].astype(np.int64)).to(self.device)
                logits[rows] = self._logits(self._input(batch["pixels"][real]))
                labels[rows] = torch.from_numpy(batch["label"][real].astype(np.float64)).to(self.device)
        if dist.is_initialized():
            # Every image is on exactly one rank and zero elsewhere, so a sum gathers it.
            dist.all_reduce(logits)
            dist.all_reduce(labels)
        return logits.cpu().numpy().astype(np.float64), labels.cpu().numpy().astype(np.int8)

    def advance(self, state: TrainState, record: dict[str, Any], logits: np.ndarray, labels: np.ndarray) -> None:
        """Advance the state to the end of an epoch; all ranks decide the same, because their inputs are the same."""
        loss = record["val_loss"]
        state.model = {name: tensor.detach().cpu().clone() for name, tensor in self.net.state_dict().items()}
        if loss < state.best_loss:
            state.best, state.best_epoch, state.best_loss, state.bad_epochs = state.model, record["epoch"], loss, 0
            state.best_val = {"logit": torch.from_numpy(logits[:, 0].copy()), "label": torch.from_numpy(labels)}
            if logits.shape[1] > 1:
                state.best_val["passes"] = torch.from_numpy(logits[:, 1:].astype(np.float32))
        else:
            state.bad_epochs += 1
        self.scheduler.step(loss)
        state.epoch = record["epoch"]
        state.stopped = state.bad_epochs >= self.job.config.optim.stop_patience
        state.optimizer, state.scheduler = self.optimizer.state_dict(), self.scheduler.state_dict()
        state.scaler = self.scaler.state_dict()
        record["best"] = state.bad_epochs == 0
        record["stopped"] = state.stopped
        # Of the best epoch so far, whose model the run would leave. It ends no epoch and no run, so that it may be slow.
        known = None if record["best"] or not state.history else state.history[-1].get(SELECTED_BY)
        record[SELECTED_BY] = known if known is not None else calibrated_loss(state.applied_logits, state.labels)
        state.history = [*state.history, record]

    def _logits(self, x: Tensor) -> Tensor:
        """Return logits float32 [B, 1 + T] of images, as `validate` has them."""
        if self.passes is not None:
            return self.passes.logits(x)
        with torch.inference_mode(), autocast(self.dtype, self.device):
            return self.net(x).float()[:, None]

    def _input(self, pixels: np.ndarray) -> Tensor:
        grey = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        return self.job.preprocessing.normalise(grey, channels_last=True)


def tickets_of(
    rank: int, schedule: Schedule, first_epoch: int, columns: tuple[str, ...]
) -> Generator[dict[str, np.ndarray]]:
    """Yield some columns of this rank's batches, and hold the pipeline to its promise of which they are."""
    expected = first_epoch * schedule.tickets_per_epoch + rank
    shard = ray.train.get_dataset_shard(STREAM)
    for row in shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        if row["error"][0]:
            raise ManifestError(str(row["error"][0]))
        ticket = int(row["ticket"][0])
        if ticket != expected:
            raise RuntimeError(f"rank {rank} expected ticket {expected} and received {ticket}")
        expected += schedule.world_size
        yield {name: row[name][0] for name in columns}


def _record(
    epoch: int,
    train_loss: float,
    logits: np.ndarray,
    labels: np.ndarray,
    lr: float,
    schedule: Schedule,
    train_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    # The validation loss uses the natural class frequencies, so that modes of balance can be compared.
    if not np.isfinite(logits).all():
        raise DivergedError(f"the network's output is not finite after epoch {epoch + 1}; {_CALMER}")
    return {
        "epoch": epoch + 1,
        "train_loss": train_loss,
        "val_loss": float(np.mean(np.logaddexp(0, logits) - labels * logits)),
        "val_auc": float(roc_auc_score(labels, logits)),
        "val_accuracy": float(np.mean((logits >= 0) == labels)),
        "lr": lr,
        "images_per_second": schedule.train_slots / train_seconds,
        "seconds": seconds,
        "workers": schedule.world_size,
    }


def plateau_schedule(
    optimizer: torch.optim.Optimizer, optim: OptimConfig
) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Return the schedule with the patience of `OptimConfig`, whose words and count of epochs early stopping shares."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=optim.plateau_factor,
        patience=optim.plateau_patience - 1,  # torch's is how many epochs are tolerated before the one that acts
        threshold=0,  # any decrease is better, as for the best epoch
    )


def use_threads(device: torch.device, threads: int) -> None:
    """Divide the cores of the machine among its training workers; Ray would set the threads to the reserved CPUs."""
    if device.type == "cpu":
        local = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local))
    else:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
