"""State of a run, sufficient to continue exactly: one file per epoch, written whole or not at all.

Ray Train's own checkpoints are registered by a controller that polls, so a worker that dies just after reporting can
leave one that is not registered. Here the file name decides: the highest epoch in `state/` is the state of the run.
Random numbers need no saving, because all of them are keyed by seed and slot.
"""

import io
import math
import re
from dataclasses import dataclass, field
from typing import IO, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pneumo_ray import storage
from pneumo_ray.data.soft_labels import SoftLabels
from pneumo_ray.errors import StorageError
from pneumo_ray.records import JsonObject
from pneumo_ray.train.records import EpochRecord

_NAME = re.compile(r"epoch-(\d{5})\.pt$")


@dataclass
class TrainState:
    """A run between two epochs."""

    epoch: int
    """Epochs finished."""
    model: dict[str, Tensor]
    optimizer: JsonObject
    scheduler: JsonObject
    scaler: JsonObject
    best: dict[str, Tensor]
    """Weights of the epoch with the lowest validation loss: their average where there is one."""
    best_epoch: int
    best_loss: float
    best_val: dict[str, Tensor]
    """`logit` float64 [n] without dropout, `label` int8 [n] and, of a network with dropout, `passes` float32 [n, T], the
    logits of the Monte Carlo passes that scoring makes by default: the validation images at the best epoch, in manifest
    order. Where soft labels are learned also `target` and `weight`, float64 [n]."""
    bad_epochs: int
    """Epochs since the best one."""
    stopped: bool
    """Early stopping has ended the run."""
    identity: JsonObject
    """The manifest's fingerprint, which a run that continues must share; its seed and number of workers, for the record."""
    history: list[EpochRecord] = field(default_factory=list)
    """One record per epoch of the classifier, as in history.jsonl."""
    averaged: dict[str, Tensor] = field(default_factory=dict)
    """The moving average of the weights; empty where there is none."""

    @classmethod
    def fresh(cls, identity: JsonObject) -> Self:
        """Return the state of a run before its first epoch."""
        return cls(
            epoch=0,
            model={},
            optimizer={},
            scheduler={},
            scaler={},
            best={},
            best_epoch=-1,
            best_loss=math.inf,
            best_val={},
            bad_epochs=0,
            stopped=False,
            identity=identity,
        )

    @property
    def applied_logits(self) -> NDArray[np.float64]:
        """Raw logits of the validation images at the best epoch as scoring applies them: [n, T] of the passes, or [n]
        where the network has no dropout, or the state is of a version that made no passes.
        """
        found: NDArray[np.float64] = self.best_val.get("passes", self.best_val["logit"]).numpy().astype(np.float64)
        return found

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels [n] of the validation images."""
        found: NDArray[np.int64] = self.best_val["label"].numpy().astype(np.int64)
        return found

    @property
    def soft(self) -> SoftLabels | None:
        """Soft labels of the validation images; None where hard ones are learned."""
        if "target" not in self.best_val:
            return None
        return SoftLabels(self.best_val["target"].numpy(), self.best_val["weight"].numpy())


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights and buffers, copied to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}


def latest_epoch(run: str) -> int:
    """Return how many epochs the run's newest state has finished; 0 if there is none."""
    return max((epoch for epoch, _ in _states(run)), default=0)


def save_state(run: str, state: TrainState) -> None:
    """Write the state of an epoch, then remove all but the last two.

    Raises:
        StorageError: if it cannot be written; the older state is still there then.
    """
    # Plain values only, which torch reads without running code of the file.
    values = vars(state) | {"history": [record.values() for record in state.history]}
    uri = storage.join(run, "state", f"epoch-{state.epoch:05d}.pt")
    # It is six times the weights; a copy in memory would be the most that training needs.
    storage.write_with(uri, lambda stream: torch.save(values, cast(IO[bytes], stream)))
    for epoch, name in _states(run):
        if epoch < state.epoch - 1:
            storage.remove(storage.join(run, "state", name))


def load_state(run: str) -> TrainState | None:
    """Return the newest state of a run, or None if it has none.

    Raises:
        StorageError: if the file is damaged.
    """
    epoch = latest_epoch(run)
    if epoch == 0:
        return None
    uri = storage.join(run, "state", f"epoch-{epoch:05d}.pt")
    try:
        saved = torch.load(io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True)
        # Earlier versions kept the epochs of the lung segmenter as well.
        history = [EpochRecord.from_values(values) for values in saved.get("history", []) if "val_loss" in values]
        return TrainState(**saved | {"history": history})
    except Exception as error:  # torch raises many types for a damaged file
        raise StorageError(
            f"the saved state {uri} cannot be read ({type(error).__name__}); remove it to continue from the epoch before"
        ) from error


def _states(run: str) -> list[tuple[int, str]]:
    names = storage.list_files(storage.join(run, "state"))
    return [(int(match[1]), name) for name in names if (match := _NAME.search(name))]
