"""One worker's loop of the lung segmenter's training: consume tickets, step, validate on every image once, save, repeat."""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np
import ray.train
import ray.train.torch
import torch

from pneumo_ray.anatomy.network import WIDTHS, LungNet
from pneumo_ray.anatomy.objective import dice, mask_loss
from pneumo_ray.model.precision import amp_dtype, autocast
from pneumo_ray.records import JsonObject
from pneumo_ray.train.batches import PADDING, Schedule
from pneumo_ray.train.loop import failures_reported, start_worker, tickets_of
from pneumo_ray.train.lung_config import LungsConfig
from pneumo_ray.train.monitor import Monitor
from pneumo_ray.train.ranks import add_up, take_buffers
from pneumo_ray.train.records import LungEpochRecord
from pneumo_ray.train.state import TrainState, save_state, weights_of
from pneumo_ray.train.worker_job import DivergedError


@dataclass(frozen=True)
class LungJob:
    """Arguments shared by all workers."""

    config: LungsConfig
    run: str
    schedule: Schedule
    """Schedule of a run with the minimum number of workers; there may be more."""
    identity: JsonObject
    monitor: Monitor[LungEpochRecord]


def train_lungs_worker(settings: dict[str, LungJob]) -> None:
    """Run one worker from the state of the run to its end; failures that no restart can fix are reported to the monitor."""
    job = settings["job"]
    with failures_reported(job.monitor) as failed:
        if not failed:
            _train(job)


def _train(job: LungJob) -> None:
    config = job.config
    start = start_worker(job.run, job.schedule, config.epochs, config.scaling, job.monitor)
    if start is None:
        return
    rank, schedule, first_epoch = start.rank, start.schedule, start.first_epoch
    learner = _Learner(job, schedule, start.device)
    if start.state:
        learner.restore(start.state)
    state = start.state or TrainState.fresh(job.identity)
    with closing(tickets_of(rank, schedule, first_epoch, ("pixels", "mask", "row"))) as tickets:
        for epoch in range(first_epoch, config.epochs):
            began = time.monotonic()
            loss = learner.train_epoch(tickets, epoch, rank)
            trained = time.monotonic()
            overlap = learner.validate(tickets)
            record = LungEpochRecord(
                epoch=epoch + 1,
                train_loss=loss,
                val_dice=overlap,
                lr=float(learner.optimizer.param_groups[0]["lr"]),
                images_per_second=schedule.train_slots / (trained - began),
                seconds=time.monotonic() - began,
            )
            learner.advance(state, record)
            if rank == 0:
                save_state(job.run, state)
                job.monitor.finish_epoch(record)
            ray.train.report(asdict(record))  # a barrier for all ranks, after the state was saved


class _Learner:
    """The network, its optimiser and schedule, and how they move through an epoch."""

    def __init__(self, job: LungJob, schedule: Schedule, device: torch.device) -> None:
        config = job.config
        self.job, self.schedule, self.device = job, schedule, device
        torch.manual_seed(config.seed)
        self.net = LungNet(WIDTHS).to(device).to(memory_format=torch.channels_last)
        self.forward: torch.nn.Module = ray.train.torch.prepare_model(self.net, move_to_device=False)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=config.epochs * schedule.train_steps, pct_start=0.2
        )
        self.dtype = amp_dtype(config.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

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
        schedule = self.schedule
        self.forward.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for step in range(schedule.train_steps):
            batch = next(tickets)
            real = batch["row"] != PADDING
            masks = torch.from_numpy(batch["mask"][real]).to(self.device).float() / 255
            with autocast(self.dtype, self.device):
                logits = self.forward(torch.from_numpy(batch["pixels"][real]).to(self.device))
            # The workers' gradients are averaged; so weighted, that is the gradient of the mean over the global batch.
            loss = mask_loss(logits.float(), masks) * (len(masks) * schedule.world_size / schedule.batch_size)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            total += loss.detach()
            if rank == 0:
                self.job.monitor.step(epoch, step + 1, schedule.train_steps)
        mean = total / schedule.train_steps
        add_up(mean)
        mean /= schedule.world_size
        if not math.isfinite(float(mean)):
            raise DivergedError(f"the loss is {float(mean)} in epoch {epoch + 1}; lower --lr and choose another --out")
        return float(mean)

    def validate(self, tickets: Iterator[dict[str, np.ndarray]]) -> float:
        """Return the mean Dice of all validation images, on every rank."""
        take_buffers(self.net)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.net.eval()
        for _ in range(self.schedule.val_steps):
            batch = next(tickets)
            real = batch["row"] != PADDING
            if real.any():
                with torch.inference_mode(), autocast(self.dtype, self.device):
                    found = self.net(torch.from_numpy(batch["pixels"][real]).to(self.device)) > 0
                total += dice(found.cpu().numpy(), batch["mask"][real] >= 128).sum()
        add_up(total)  # every image is on exactly one rank
        return float(total) / self.schedule.num_val

    def advance(self, state: TrainState, record: LungEpochRecord) -> None:
        """Bring the state to the end of an epoch."""
        loss = 1 - record.val_dice
        state.model = weights_of(self.net)
        if loss < state.best_loss:
            state.best, state.best_epoch, state.best_loss, state.bad_epochs = state.model, record.epoch, loss, 0
        else:
            state.bad_epochs += 1
        state.epoch = record.epoch
        state.optimizer, state.scheduler = self.optimizer.state_dict(), self.scheduler.state_dict()
        state.scaler = self.scaler.state_dict()
