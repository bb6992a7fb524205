"""The Ray dataset that training consumes: the tickets of `batches`, in order, dealt to the workers."""

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import cv2
import numpy as np
import ray
import ray.data
from ray.train import DataConfig
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pneumo_ray.errors import PneumoError
from pneumo_ray.ray_cluster import fetch_once, range_dataset
from pneumo_ray.train.batches import Schedule, TicketSource


class StreamConfig(DataConfig):
    """Assigns tickets to training workers, in order, from the epoch where the run continues.

    Ray Data's own shuffling restarts its seeds in a new process, so the order comes from the plan of `sampling`.
    A block holds exactly one ticket and the order is preserved, so the splitter hands them out in turn.
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

    def stream(self, world_size: int) -> ray.data.Dataset:
        """Return the tickets of all workers, from where the run continues."""
        return ticket_stream(
            self._source, self._first_epoch(), self._epochs, world_size, self._cpus_per_task, self._reserved
        )

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: object, **kwargs: object
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Return each worker's share of the stream, under the name of the placeholder dataset given to the trainer."""
        (name,) = datasets
        return [{name: share} for share in self.stream(world_size).streaming_split(world_size, equal=True)]


def ticket_stream(
    source: "ray.ObjectRef[TicketSource]",
    first_epoch: int,
    epochs: int,
    world_size: int,
    cpus_per_task: float = 1.0,
    reserved: PlacementGroup | None = None,
) -> ray.data.Dataset:
    """Return a dataset with one row per ticket, in order: what `TicketSource.batch` returns, and `error`, empty if all is well."""
    schedule = ray.get(source).schedule(world_size)
    first = first_epoch * schedule.tickets_per_epoch
    count = epochs * schedule.tickets_per_epoch - first
    if reserved is not None:
        _stay_in(reserved)
    make = partial(_make_tickets, source=source, first=first, world_size=world_size)
    dataset = range_dataset(count, make, cpus_per_task)
    # One row is one ticket; one byte as the target makes one row one block.
    dataset.context.target_max_block_size = 1
    dataset.context.execution_options.preserve_order = True
    dataset.context.memory_usage_poll_interval_s = None
    return dataset


def _make_tickets(
    batch: dict[str, np.ndarray], source: "ray.ObjectRef[TicketSource]", first: int, world_size: int
) -> Iterator[dict[str, np.ndarray]]:
    cv2.setNumThreads(1)
    loaded = fetch_once(source)
    schedule = _schedule(source, world_size)
    for number in batch["id"]:
        ticket = first + int(number)
        try:
            made, error = loaded.batch(ticket, schedule), ""
        except PneumoError as reason:
            # Ray wraps the message of an exception in its own; a column carries the sentence unchanged.
            made, error = loaded.empty_batch(ticket, schedule), str(reason)
        yield {name: value[None] for name, value in made.items()} | {"error": np.array([error])}


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
