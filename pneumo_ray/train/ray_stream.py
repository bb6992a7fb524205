"""The Ray dataset that training consumes: the tickets of `batches`, in order, dealt to the workers."""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import cv2
import numpy as np
import ray
import ray.data
from ray.train import DataConfig
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pneumo_ray.errors import ManifestError, PneumoError
from pneumo_ray.ray_cluster import fetch_once, range_dataset
from pneumo_ray.train.batches import Schedule, TicketSource

_BLOCK_BYTES, _BLOCK_TICKETS = 1 << 24, 8
"""Bounds of a block: more tickets would not be cheaper, and the first of them would come later."""

_PAUSE_SECONDS = 0.01
"""A turn of the scheduler takes over all blocks that are ready, so more turns in a second would not be faster."""


class StreamConfig(DataConfig):
    """Assigns tickets to training workers, in order, from the epoch where the run continues.

    Ray Data's own shuffling restarts its seeds in a new process, so the order comes from the plan of `sampling`.
    """

    def __init__(
        self,
        source: "ray.ObjectRef[TicketSource]",
        epochs: int,
        first_epoch: Callable[[], int],
        cpus_per_task: float,
        reserved: PlacementGroup | None = None,
    ) -> None:
        """Make the configuration.

        Args:
            source: a `TicketSource` in the object store.
            epochs: the last epoch is `epochs - 1`.
            first_epoch: called each time a group of workers starts, after they have loaded what they resume from.
            cpus_per_task: logical CPUs of one task that makes tickets.
            reserved: where these tasks run; None lets them run anywhere.
        """
        super().__init__()
        self._source, self._epochs, self._first_epoch = source, epochs, first_epoch
        self._cpus_per_task, self._reserved = cpus_per_task, reserved

    def shares(self, world_size: int) -> list[ray.data.DataIterator]:
        """Return each worker's tickets, from where the run continues.

        A process of its own deals them, even to a single worker. Ray Data's scheduler in the worker's process would take
        the interpreter's lock from the operations of every step.
        """
        tickets = ticket_stream(
            self._source, self._first_epoch(), self._epochs, world_size, self._cpus_per_task, self._reserved
        )
        return tickets.streaming_split(world_size, equal=True)

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: object, **kwargs: object
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Return each worker's share of the stream, under the name of the placeholder dataset given to the trainer."""
        (name,) = datasets
        return [{name: share} for share in self.shares(world_size)]


class Unhurried:
    """Has Ray Data's scheduler of a dataset pause at every turn.

    While more is made than is read, its loop turns without a pause and takes a core that the training needs.
    """

    def before_execution_starts(self, executor: object) -> None:
        """Do nothing."""

    def on_execution_step(self, executor: object) -> None:
        """Pause."""
        time.sleep(_PAUSE_SECONDS)

    def after_execution_succeeds(self, executor: object) -> None:
        """Do nothing."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Do nothing."""


def ticket_stream(
    source: "ray.ObjectRef[TicketSource]",
    first_epoch: int,
    epochs: int,
    world_size: int,
    cpus_per_task: float = 1.0,
    reserved: PlacementGroup | None = None,
) -> ray.data.Dataset:
    """Return a dataset of tickets, to be read by `tickets_in`.

    A row is a block and holds consecutive tickets of one rank, and the rows go round the ranks, so a splitter that deals
    them in turn hands every rank its tickets in order. Several tickets share a block because a block costs Ray Data
    milliseconds of CPU, whatever it holds.
    """
    loaded = ray.get(source)
    schedule = loaded.schedule(world_size)
    first = first_epoch * schedule.tickets_per_epoch
    each = (epochs * schedule.tickets_per_epoch - first) // world_size
    num_bytes = sum(value.nbytes for value in loaded.empty_batch(0, schedule).values())
    per_block = int(np.clip(_BLOCK_BYTES // num_bytes, 1, _BLOCK_TICKETS))
    blocks = TicketBlocks(first, each, world_size, per_block)
    if reserved is not None:
        _stay_in(reserved)
    dataset = range_dataset(blocks.count, partial(_make_blocks, source=source, blocks=blocks), cpus_per_task)
    # One byte as the target makes one row one block.
    dataset.context.target_max_block_size = 1
    dataset.context.execution_options.preserve_order = True
    dataset.context.memory_usage_poll_interval_s = None
    callbacks = dataset.context.custom_execution_callback_classes
    dataset.context.custom_execution_callback_classes = [*callbacks, Unhurried]
    return dataset


@dataclass(frozen=True)
class TicketBlocks:
    """Which tickets share a block."""

    first: int
    """First ticket of the stream, of rank 0."""
    each: int
    """Tickets of every rank."""
    world_size: int
    per_block: int
    """Tickets of a block; the last block of each rank may have fewer."""

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.each // self.per_block) * self.world_size

    def tickets(self, block: int) -> range:
        """Return the tickets of a block."""
        turn, rank = divmod(block, self.world_size)
        start, stop = turn * self.per_block, min((turn + 1) * self.per_block, self.each)
        base = self.first + rank
        return range(base + start * self.world_size, base + stop * self.world_size, self.world_size)


def _make_blocks(
    batch: dict[str, np.ndarray], source: "ray.ObjectRef[TicketSource]", blocks: TicketBlocks
) -> Iterator[dict[str, np.ndarray]]:
    cv2.setNumThreads(1)
    loaded = fetch_once(source)
    schedule = _schedule(source, blocks.world_size)
    for number in batch["id"]:
        made, error = [], ""
        for ticket in blocks.tickets(int(number)):
            try:
                made.append(loaded.batch(ticket, schedule))
            except PneumoError as reason:
                # Ray wraps the message of an exception in its own; a column carries the sentence unchanged.
                made.append(loaded.empty_batch(ticket, schedule))
                error = str(reason)
                break
        columns = {name: np.stack([each[name] for each in made])[None] for name in made[0]}
        yield columns | {"error": np.array([error])}


def tickets_in(block: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the tickets of a block in order: what `TicketSource.batch` returned for each.

    Args:
        block: a row of `ticket_stream`, as a NumPy batch of one.

    Raises:
        ManifestError: in the place of the ticket that could not be made.
    """
    (error,), count = block["error"], block["ticket"].shape[1]
    for position in range(count):
        if error and position == count - 1:  # nothing was made after it
            raise ManifestError(str(error))
        yield {name: block[name][0][position] for name in block if name != "error"}


@lru_cache(maxsize=2)
def _schedule(source: "ray.ObjectRef[TicketSource]", world_size: int) -> Schedule:
    loaded: TicketSource = fetch_once(source)
    return loaded.schedule(world_size)


def _stay_in(reserved: PlacementGroup) -> None:
    """Make the Ray Data tasks of this process run in a placement group.

    Ray Data shares the CPUs of a node evenly among the streams of a cluster and rounds down: with more streams than a
    node has CPUs each gets none, and all stand still silently. In a group of its own a stream counts what is there.
    """
    context = ray.data.DataContext.get_current()
    strategy = PlacementGroupSchedulingStrategy(reserved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are deprecated in Ray 2.60 without a replacement
        context.scheduling_strategy = strategy
        context.scheduling_strategy_large_args = strategy
