"""The learning rate of every step: a plan that is arithmetic in the step, or a plateau that follows the validation loss."""

import math

import torch

from pneumo_ray.records import JsonObject
from pneumo_ray.train.config import OptimConfig

_RISE = 0.3
_START, _END = 1 / 25, 1 / 25 / 1e4
"""Of one cycle, as in torch's OneCycleLR: share of the run in which the rate rises, and where it begins and ends."""


class RateSchedule:
    """Sets the learning rate before every step.

    Cosine and one-cycle need no state, so a run resumes them by its step alone; what a plateau has seen is in `state`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, optim: OptimConfig, steps_per_epoch: int, epochs: int) -> None:
        """Begin a run.

        Args:
            optimizer: whose rate is set.
            optim: what the schedule is.
            steps_per_epoch: optimiser steps of one epoch.
            epochs: of the run.
        """
        self._optimizer, self._optim = optimizer, optim
        self._steps = steps_per_epoch * epochs
        self._warmup = round(optim.warmup * steps_per_epoch)
        self._plateau = plateau_schedule(optimizer, optim) if optim.schedule == "plateau" else None
        self._plateau_lr = self.lr

    @property
    def lr(self) -> float:
        """The learning rate in use."""
        return float(self._optimizer.param_groups[0]["lr"])

    def before_step(self, step: int) -> None:
        """Set the rate of a step, counted from 0 over the whole run."""
        if self._plateau is None:
            self._set(self._optim.lr * rate_factor(self._optim, step, self._steps, self._warmup))
        elif step < self._warmup:
            self._set(self._plateau_lr * (step + 1) / self._warmup)
        elif step == self._warmup:
            self._set(self._plateau_lr)

    def end_epoch(self, val_loss: float) -> None:
        """Let a plateau see the validation loss of the epoch that ended."""
        if self._plateau is not None:
            self._set(self._plateau_lr)
            self._plateau.step(val_loss)
            self._plateau_lr = self.lr

    def state(self) -> JsonObject:
        """Return what `restore` takes, at the end of an epoch."""
        return {} if self._plateau is None else self._plateau.state_dict()

    def restore(self, state: JsonObject) -> None:
        """Continue; the optimiser has been restored."""
        if self._plateau is not None:
            self._plateau.load_state_dict(state)
            self._plateau_lr = self.lr

    def _set(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr


def rate_factor(optim: OptimConfig, step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of a step of `cosine` or `onecycle`, as a share of its peak.

    Cosine rises linearly over the warm-up, whose last step is at the peak, and then falls along half a cosine that would
    reach 0 after the last step. One cycle rises and falls along half a cosine each, as torch's OneCycleLR.

    Args:
        optim: what the schedule is.
        step: from 0.
        steps: of the whole run.
        warmup: steps in which the rate rises.
    """
    if optim.schedule == "cosine":
        if step < warmup:
            return (step + 1) / warmup
        return _half_cosine(1.0, 0.0, (step - warmup) / max(1, steps - warmup))
    top = (warmup or _RISE * steps) - 1
    if step <= top:
        return _half_cosine(_START, 1.0, step / top if top > 0 else 1.0)
    return _half_cosine(1.0, _END, (step - top) / (steps - 1 - top))


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


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
