"""The network, its optimiser, and how they move through an epoch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import ray
import ray.train.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import PneumoniaNet
from pneumo_ray.model.compiled import keep_compiled_code
from pneumo_ray.model.precision import amp_dtype, autocast
from pneumo_ray.train.averaging import AveragedWeights
from pneumo_ray.train.batches import PADDING, Schedule
from pneumo_ray.train.guidance import known_sum, lungs_of, outside_share
from pneumo_ray.train.ranks import add_up, take_buffers
from pneumo_ray.train.records import EpochRecord
from pneumo_ray.train.schedules import RateSchedule
from pneumo_ray.train.slot_dropout import slot_dropout
from pneumo_ray.train.state import TrainState, weights_of
from pneumo_ray.train.validation import calibrated_loss
from pneumo_ray.train.worker_job import CALMER, DivergedError, WorkerJob


@dataclass(frozen=True)
class Trained:
    """One epoch of training, over all workers."""

    loss: float
    """Mean cross-entropy in nats, of augmented images and as weighted; without guidance."""
    outside_share: float | None
    """Mean share of the evidence outside the lungs, over images whose lungs are known; None where none took part."""


@dataclass(frozen=True)
class Validated:
    """The validation images after an epoch, in manifest order; the same on every rank."""

    logits: np.ndarray
    """Raw, float64 [n, 1 + T]: without dropout, then of the Monte Carlo passes that scoring makes by default (none where
    the network has no dropout)."""
    labels: np.ndarray
    """int8 [n]."""
    outside_share: float | None
    """As in training, without dropout and augmentation."""


class Learner:
    """The network, its optimiser, and how they move through an epoch."""

    def __init__(self, job: WorkerJob, schedule: Schedule, device: torch.device) -> None:
        """Build everything on `device`, with the weights that the run begins with."""
        self.job, self.schedule, self.device = job, schedule, device
        optim = job.config.optim
        net = PneumoniaNet(job.config.model)
        net.load_state_dict(ray.get(job.initial_weights))
        net = net.to(device).to(memory_format=torch.channels_last)
        self.net: PneumoniaNet = net
        self.average = AveragedWeights(net, optim.ema) if optim.ema > 0 else None
        wrapped: nn.Module = ray.train.torch.prepare_model(net, move_to_device=False)
        if job.config.compile:
            keep_compiled_code()
        self.forward = cast(nn.Module, torch.compile(wrapped)) if job.config.compile else wrapped
        trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=optim.lr, weight_decay=optim.weight_decay)
        self.rate = RateSchedule(self.optimizer, optim, schedule.train_steps, job.config.epochs)
        self.dtype = amp_dtype(job.config.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.positive_weight = torch.tensor(job.positive_weight, device=device)
        self.kept = net if self.average is None else self.average.net
        # Passes and seed as scoring has them by default: calibration and threshold are fitted on what is applied.
        self.passes = BayesGradCAM(self.kept, amp_dtype=self.dtype) if job.config.model.dropout > 0 else None

    @property
    def lr(self) -> float:
        """The learning rate in use."""
        return self.rate.lr

    def restore(self, state: TrainState) -> None:
        """Continue from a state."""
        self.net.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.rate.restore(state.scheduler)
        self.scaler.load_state_dict(state.scaler)
        if self.average is not None:
            self.average.net.load_state_dict(state.averaged)

    def train_epoch(self, tickets: Iterator[dict[str, np.ndarray]], epoch: int, rank: int) -> Trained:
        """Take every optimiser step of an epoch.

        Raises:
            DivergedError: if the loss is not finite at the end of the epoch.
        """
        schedule = self.schedule
        self.forward.train()
        # Of the loss, of the shares of evidence outside, and of the images whose lungs are known.
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        with slot_dropout(self.net, self.job.config.seed) as draw_masks:
            for step in range(schedule.train_steps):
                batch = next(tickets)
                draw_masks(schedule.slots(epoch, step, rank))
                self.rate.before_step(epoch * schedule.train_steps + step)
                totals += self._step(batch)
                if self.average is not None:
                    self.average.update(epoch * schedule.train_steps + step)
                if rank == 0:
                    self.job.monitor.step(epoch, step + 1, schedule.train_steps)
        totals[0] /= schedule.train_steps
        add_up(totals)
        totals[0] /= schedule.world_size
        loss, outside, known = totals.tolist()
        if not math.isfinite(loss):
            raise DivergedError(f"the training loss is {loss} in epoch {epoch + 1}; {CALMER}")
        return Trained(loss, outside / known if known else None)

    def _step(self, batch: dict[str, np.ndarray]) -> Tensor:
        """Take one optimiser step; return this rank's addends of `train_epoch`'s totals, [3]."""
        schedule, config = self.schedule, self.job.config
        real = batch["row"] != PADDING
        weight = None
        if "target" in batch:
            labels, weight = (torch.from_numpy(batch[name][real]).to(self.device) for name in ("target", "weight"))
        else:
            labels = torch.from_numpy(batch["label"][real].astype(np.float32)).to(self.device)
        lungs = lungs_of(batch, real, self.device) if self.job.guided else None
        addends = torch.zeros(3, device=self.device)
        with autocast(self.dtype, self.device):
            x = self._input(batch["pixels"][real])
            if lungs is None:
                logits = self.forward(x)
            else:
                logits, signed = self.forward(x, with_map=True)
        if config.loss.smoothing > 0:
            labels = labels + config.loss.smoothing * (0.5 - labels)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels, weight, pos_weight=self.positive_weight)
        # The workers' gradients are averaged; so weighted, that is the gradient of the mean over the global batch.
        loss = loss * (len(labels) * schedule.world_size / schedule.batch_size)
        addends[0] = loss.detach()
        if lungs is not None:
            outside = known_sum(outside_share(signed, lungs.inside), lungs)
            addends[1], addends[2] = outside.detach(), lungs.known.sum()
            # Likewise the mean over those images of the global batch whose lungs are known.
            loss = loss + outside * (config.guide.weight * schedule.world_size / max(1, int(batch["num_lungs"])))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if config.optim.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return addends

    def validate(self, tickets: Iterator[dict[str, np.ndarray]]) -> Validated:
        """Score every validation image once, over all workers, with the weights that would be kept."""
        schedule = self.schedule
        take_buffers(self.net, *([self.kept] if self.average is not None else []))
        num_logits = 1 + (self.passes.passes if self.passes else 0)
        logits = torch.zeros((schedule.num_val, num_logits), device=self.device)
        labels = torch.zeros(schedule.num_val, dtype=torch.float64, device=self.device)
        outside, known = torch.zeros(2, schedule.num_val, dtype=torch.float64, device=self.device)
        self.kept.eval()
        for _ in range(schedule.val_steps):
            batch = next(tickets)
            real = batch["row"] != PADDING
            if real.any():
                rows = torch.from_numpy(batch["row"][real].astype(np.int64)).to(self.device)
                logits[rows], signed = self._logits(self._input(batch["pixels"][real]))
                labels[rows] = torch.from_numpy(batch["label"][real].astype(np.float64)).to(self.device)
                if (lungs := lungs_of(batch, real, self.device)) is not None:
                    outside[rows] = (outside_share(signed, lungs.inside) * lungs.known).double()
                    known[rows] = lungs.known.double()
        add_up(logits, labels, outside, known)  # every image is on exactly one rank and zero elsewhere
        return Validated(
            logits.cpu().numpy().astype(np.float64),
            labels.cpu().numpy().astype(np.int8),
            float(outside.sum() / known.sum()) if known.any() else None,
        )

    def advance(self, state: TrainState, record: EpochRecord, validated: Validated) -> EpochRecord:
        """Bring the state to the end of an epoch, by the same decisions on every rank; return the record with what they were."""
        loss, logits = record.val_loss, validated.logits
        state.model = weights_of(self.net)
        state.averaged = weights_of(self.kept) if self.average is not None else {}
        if loss < state.best_loss:
            state.best = state.averaged or state.model
            state.best_epoch, state.best_loss, state.bad_epochs = record.epoch, loss, 0
            state.best_val = {
                "logit": torch.from_numpy(logits[:, 0].copy()),
                "label": torch.from_numpy(validated.labels),
            }
            if (soft := self.job.val_soft) is not None:
                state.best_val |= {"target": torch.tensor(soft.target), "weight": torch.tensor(soft.weight)}
            if logits.shape[1] > 1:
                state.best_val["passes"] = torch.from_numpy(logits[:, 1:].astype(np.float32))
        else:
            state.bad_epochs += 1
        self.rate.end_epoch(loss)
        state.epoch = record.epoch
        state.stopped = state.bad_epochs >= self.job.config.optim.stop_patience
        state.optimizer, state.scheduler = self.optimizer.state_dict(), self.rate.state()
        state.scaler = self.scaler.state_dict()
        best = state.bad_epochs == 0
        # Of the best epoch so far, whose model the run would leave. It ends no epoch and no run, so that it may be slow.
        known = None if best or not state.history else state.history[-1].loss_scaled
        scaled = known if known is not None else calibrated_loss(state.applied_logits, state.labels, state.soft)
        record = replace(record, best=best, stopped=state.stopped, loss_scaled=scaled)
        state.history = [*state.history, record]
        return record

    def _logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits float32 [B, 1 + T] of images, as `validate` has them, and the signed maps without dropout."""
        if self.passes is not None:
            return self.passes.logits_and_map(x)
        with torch.inference_mode(), autocast(self.dtype, self.device):
            logits, signed = self.kept(x, with_map=True)
        return logits.float()[:, None], signed

    def _input(self, pixels: np.ndarray) -> Tensor:
        grey = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        return self.job.preprocessing.normalise(grey, channels_last=True)
