"""The stream of batches of a training run: for each epoch its training batches, then its validation batches.

A ticket is one batch of one worker. Ticket t belongs to rank t mod world size, and everything about it (epoch,
images, copies, augmentation) follows from t and the run's seed. So a run resumes by starting at a later ticket, the
pipeline never restarts between training and validation, and no worker's data depends on what another process did.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from pneumo_ray.data.config import Balance
from pneumo_ray.data.dataset import load_bases, load_inputs
from pneumo_ray.data.lungs import has_lungs
from pneumo_ray.data.sampling import Labels, epoch_plan, epoch_slots
from pneumo_ray.data.soft_labels import SoftLabels
from pneumo_ray.images.augment import augment_batch, draw_augmentations
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.fit import MARGIN, Fit
from pneumo_ray.images.outside import draw_outside
from pneumo_ray.images.rng import UInt64s, image_key
from pneumo_ray.train.lung_maps import LungMaps, change_outside

PADDING = -1
"""Row number of padding in a validation batch."""


class TicketPosition(NamedTuple):
    """Position of a ticket in a run."""

    epoch: int
    phase: Literal["train", "val"]
    step: int
    rank: int


@dataclass(frozen=True)
class Schedule:
    """Number and positions of the tickets, as arithmetic without data."""

    train_slots: int
    """Slots of one epoch, a multiple of the global batch."""
    num_val: int
    """Validation images, each of which is in exactly one ticket of an epoch."""
    batch_size: int
    """The global batch: images of one optimiser step over all workers."""
    world_size: int
    """Workers, at most as many as the global batch has images."""

    @property
    def local_batch(self) -> int:
        """Largest number of images in a ticket; if the workers do not divide the batch, some tickets have one less."""
        return -(-self.batch_size // self.world_size)

    def share(self, rank: int) -> tuple[int, int]:
        """Return the range of images of a global batch that belong to a rank: first, and one past the last."""
        return rank * self.batch_size // self.world_size, (rank + 1) * self.batch_size // self.world_size

    @property
    def train_steps(self) -> int:
        """Optimiser steps of one epoch."""
        return self.train_slots // self.batch_size

    @property
    def val_steps(self) -> int:
        """Validation steps of one epoch."""
        return -(-self.num_val // self.batch_size)

    @property
    def tickets_per_epoch(self) -> int:
        """Tickets of one epoch over all workers."""
        return (self.train_steps + self.val_steps) * self.world_size

    def slots(self, epoch: int, step: int, rank: int) -> UInt64s:
        """Return the slots of a training batch of one rank, uint64, in the order of its images."""
        start, stop = self.share(rank)
        first = epoch * self.train_slots + step * self.batch_size
        return np.arange(first + start, first + stop, dtype=np.uint64)

    def position(self, ticket: int) -> TicketPosition:
        """Return the position of a ticket."""
        epoch, rest = divmod(ticket, self.tickets_per_epoch)
        step, rank = divmod(rest, self.world_size)
        if step < self.train_steps:
            return TicketPosition(epoch, "train", step, rank)
        return TicketPosition(epoch, "val", step - self.train_steps, rank)


class TicketSource(Protocol):
    """Turns tickets into batches: a table of images, for the classifier or the lung segmenter."""

    def schedule(self, world_size: int) -> Schedule:
        """Return the schedule of a run with this many workers."""

    def batch(self, ticket: int, schedule: Schedule) -> dict[str, np.ndarray]:
        """Return one ticket's batch; a `PneumoError` ends the run."""

    def empty_batch(self, ticket: int, schedule: Schedule) -> dict[str, np.ndarray]:
        """Return a batch of padding alone, of the same names and shapes."""


@dataclass(frozen=True)
class BatchSource:
    """The data from which the batch of a ticket is made."""

    train: pa.Table
    """Manifest rows to train on."""
    val: pa.Table
    """Manifest rows to validate on."""
    image_size: int
    """Side S of the network's input, in pixels."""
    balance: Balance
    augment: AugmentConfig
    seed: int
    batch_size: int
    """The global batch, in images."""
    cache_folder: str | None = None
    fit: Fit = "squash"
    """Which part of an image the network sees, with `margin`."""
    margin: float = MARGIN
    lung_maps: LungMaps | None = None
    """Makes the lungs of the images; None where no ticket carries them."""
    guided: bool = False
    """Training tickets carry the lungs as well as validation tickets."""
    soft: SoftLabels | None = None
    """Of the training images, which they are then balanced by; None learns the hard labels."""

    @cached_property
    def train_labels(self) -> np.ndarray:
        """int8 [n]."""
        return self.train["label"].to_numpy().astype(np.int8)

    @property
    def balanced_labels(self) -> Labels:
        """What the classes are balanced by."""
        return self.train_labels if self.soft is None else self.soft

    @cached_property
    def image_keys(self) -> np.ndarray:
        """uint64 [n], from the content of each training image, so that its copies do not depend on its row."""
        return np.array([image_key(sha) for sha in self.train["content_sha256"].to_pylist()], np.uint64)

    def schedule(self, world_size: int) -> Schedule:
        """Return the schedule of a run with this many workers."""
        slots = epoch_slots(self.balanced_labels, balance=self.balance, batch_size=self.batch_size)
        return Schedule(slots, len(self.val), self.batch_size, world_size)

    def batch(self, ticket: int, schedule: Schedule) -> dict[str, np.ndarray]:
        """Return one ticket's batch.

        Returns:
            `pixels` uint8 [b, S, S], `label` int8 [b], `row` int32 [b]: index into `train` or `val`, or `PADDING`;
            `ticket` int64 scalar. b is `schedule.local_batch`. With `lung_maps` also `lungs` uint8 [b, h, w], the share
            of each cell of the network's maps that is lung, times 255; `has_lungs` bool [b]; and `num_lungs` int64
            scalar, how many images of the global batch have them. With soft labels also `target` and `weight`, float32 [b],
            of a training batch.
        """
        position, made = schedule.position(ticket), self.empty_batch(ticket, schedule)
        if position.phase == "train":
            self._fill_training(made, position, schedule)
        else:
            self._fill_validation(made, position, schedule)
        return made

    def _fill_training(self, made: dict[str, np.ndarray], position: TicketPosition, schedule: Schedule) -> None:
        """Put the images of a training ticket into its empty batch."""
        start, stop = schedule.share(position.rank)
        batch = self._plan(position.epoch).slice(position.step * schedule.batch_size, schedule.batch_size)
        plan = batch.slice(start, stop - start)
        rows = plan["row"].to_numpy()
        n, taken = len(rows), self.train.take(rows)
        bases = self._bases(taken)
        if self.augment.outside != "none":
            bases = self._change_outside(bases, batch, start)
        draws = draw_augmentations(
            self.augment,
            self.seed,
            plan["slot"].to_numpy(),
            copies=plan["copy"].to_numpy(),
            image_keys=self.image_keys[rows],
        )
        made["pixels"][:n] = augment_batch(bases, draws, self.image_size)
        made["label"][:n], made["row"][:n] = self.train_labels[rows], rows
        if self.soft is not None:
            made["target"][:n], made["weight"][:n] = self.soft.target[rows], self.soft.weight[rows]
        if self.lung_maps is not None and self.guided:
            made |= self.lung_maps.of_training(taken, draws, len(made["row"]))
            made["num_lungs"] = np.array(np.count_nonzero(self._has_lungs[batch["row"].to_numpy()]))

    def _fill_validation(self, made: dict[str, np.ndarray], position: TicketPosition, schedule: Schedule) -> None:
        """Put the images of a validation ticket, as far as there are any, into its empty batch."""
        start, stop = schedule.share(position.rank)
        first = position.step * schedule.batch_size + start
        taken = self.val.slice(first, stop - start)
        if n := len(taken):
            made["pixels"][:n] = load_inputs(taken, self.image_size, self.cache_folder, self.fit, self.margin)
            made["label"][:n] = taken["label"].to_numpy()
            made["row"][:n] = np.arange(first, first + n)
            if self.lung_maps is not None:
                made |= self.lung_maps.of_evaluation(taken, len(made["row"]))

    def empty_batch(self, ticket: int, schedule: Schedule) -> dict[str, np.ndarray]:
        """Return a batch of padding alone."""
        n, size = schedule.local_batch, self.image_size
        pixels, labels = np.zeros((n, size, size), np.uint8), np.zeros(n, np.int8)
        made: dict[str, np.ndarray] = {"pixels": pixels, "label": labels}
        made |= {"row": np.full(n, PADDING, np.int32), "ticket": np.array(ticket)}
        if self.soft is not None:
            made |= {"target": np.zeros(n, np.float32), "weight": np.zeros(n, np.float32)}
        return made if self.lung_maps is None else made | self.lung_maps.empty(n)

    def _bases(self, rows: pa.Table) -> np.ndarray:
        return load_bases(rows, self.image_size, self.cache_folder, self.fit, self.margin)

    def _change_outside(self, bases: np.ndarray, batch: pa.Table, start: int) -> np.ndarray:
        """Change what lies outside the lungs of some of the bases that begin at `start` of a global batch of the plan."""
        rows, places = batch["row"].to_numpy(), np.arange(start, start + len(bases))
        draws = draw_outside(self.augment, self.seed, batch["slot"].to_numpy()[places], places, len(batch))
        chosen = np.flatnonzero(draws.happens & self._has_lungs[rows[places]])
        if len(chosen):
            kind = self.augment.outside
            partners = self._bases(self.train.take(rows[draws.partner[chosen]])) if kind == "swap" else None
            own = self.train.take(rows[places[chosen]])
            bases[chosen] = change_outside(bases[chosen], own, partners, kind, self.image_size, self.fit, self.margin)
        return bases

    @cached_property
    def _has_lungs(self) -> np.ndarray:
        return has_lungs(self.train)

    @cached_property
    def _plan(self) -> Callable[[int], pa.Table]:
        """Return the plan of an epoch; the newest two are kept, because tickets of two epochs are made at the same time."""

        def plan(epoch: int) -> pa.Table:
            return epoch_plan(
                self.balanced_labels, balance=self.balance, seed=self.seed, epoch=epoch, batch_size=self.batch_size
            )

        return lru_cache(maxsize=2)(plan)
