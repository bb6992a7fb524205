"""The sampler as data: an epoch is a table of (slot, row, copy), computed on the driver and independent of the cluster.

Class balance, shuffling, the key of every augmentation and the place to resume all follow from that table. The modes of
balance are those of arXiv 2507.18647, one at a time or, as the paper has them, all at once.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.data.config import BALANCE_MODES, Balance
from pneumo_ray.errors import ConfigError
from pneumo_ray.images.rng import stream_key

NORMAL, PNEUMONIA = 0, 1


def epoch_plan(labels: NDArray[np.int8], *, balance: Balance, seed: int, epoch: int, batch_size: int) -> pa.Table:
    """Return what one epoch trains on, in order.

    The table depends on nothing but the arguments. Its length is a multiple of the global batch: the last batch is
    filled with the first entries of the epoch's own order under fresh slots, as `DistributedSampler` does.

    Args:
        labels: int8 [n], 0 normal and 1 pneumonia, one per training row.
        balance: how the classes are balanced.
        seed: the run's seed.
        epoch: number of the epoch, from 0.
        batch_size: the global batch, over all workers.

    Returns:
        Table of `epoch_slots(...)` rows: `slot` uint64 (epoch * epoch_slots + position, so no slot ever repeats),
        `row` int32 (index into `labels`), `copy` int16 (0 for the original, else the number of the virtual copy).

    Raises:
        ConfigError: if the balance is impossible with these labels or this batch size.
    """
    length = epoch_slots(labels, balance=balance, batch_size=batch_size)
    rng = np.random.Generator(np.random.Philox(key=np.array([stream_key(seed, "epoch"), epoch], dtype=np.uint64)))
    if balance in ("copies", "paper"):
        rows, copies = virtual_copies(labels)
    else:
        rows = np.arange(len(labels), dtype=np.int32)
        copies = np.zeros(len(labels), dtype=np.int16)
    if balance in ("sampler", "paper"):
        order = _draw_with_replacement(labels, rows, rng)
    else:
        order = rng.permutation(np.arange(len(rows), dtype=np.int32))
    order = np.resize(order, length)
    slots = np.arange(length, dtype=np.uint64) + np.uint64(epoch * length)
    return pa.table({"slot": slots, "row": rows[order], "copy": copies[order]})


def epoch_slots(labels: NDArray[np.int8], *, balance: Balance, batch_size: int) -> int:
    """Return the number of rows of `epoch_plan` without making it: the same for every epoch and seed.

    Raises:
        ConfigError: if the balance is impossible with these labels or this batch size.
    """
    normal, pneumonia = _class_counts(labels, balance)
    if batch_size < 1:
        raise ConfigError(f"batch-size must be at least 1, got {batch_size}")
    drawn = 2 * max(normal, pneumonia) if balance in ("copies", "paper") else normal + pneumonia
    return -(-drawn // batch_size) * batch_size


def virtual_copies(labels: NDArray[np.int8]) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Return every original once, then as many copies of the smaller class as make the classes equal.

    Copies are distributed evenly: the numbers of copies of two images differ by at most one.

    Args:
        labels: int8 [n], 0 normal and 1 pneumonia.

    Returns:
        rows int32 [2 * larger class], indices into `labels`; copies int16 of the same length, 0 for the originals and
        1, 2, ... for the copies of one image.

    Raises:
        ConfigError: if a class is missing, or an image would need more than 32,767 copies.
    """
    normal, pneumonia = _class_counts(labels, "copies")
    minority = np.flatnonzero(labels == (NORMAL if normal < pneumonia else PNEUMONIA))
    missing = abs(normal - pneumonia)
    if missing > len(minority) * np.iinfo(np.int16).max:
        raise ConfigError(
            f"Balance by copies would need {missing} copies of {len(minority)} images, more than 32767 of each: "
            "choose --balance sampler or pos-weight."
        )
    copy_index = np.arange(missing, dtype=np.int64)
    source = copy_index * len(minority) // max(missing, 1)
    first_of_source = -(-source * missing // len(minority))
    originals = np.arange(len(labels), dtype=np.int32)
    rows = np.concatenate([originals, minority[source].astype(np.int32)])
    copies = np.concatenate([np.zeros(len(labels), np.int16), (copy_index - first_of_source + 1).astype(np.int16)])
    return rows, copies


def positive_weight(labels: NDArray[np.int8], balance: Balance) -> float:
    """Return the weight of the pneumonia class in the loss: normal / pneumonia of the originals, or 1 where unused.

    Raises:
        ConfigError: if the labels cannot be balanced this way.
    """
    normal, pneumonia = _class_counts(labels, balance)
    return normal / pneumonia if balance in ("pos-weight", "paper") else 1.0


def effective_odds(labels: NDArray[np.int8], balance: Balance) -> float:
    """Return the odds of pneumonia that the loss sees: expected pneumonia draws times their weight, per normal draw.

    With the paper's 1,341 normal and 3,875 pneumonia images: none 2.89; copies, sampler and pos-weight 1; paper 0.12.

    Raises:
        ConfigError: if the labels cannot be balanced this way.
    """
    normal, pneumonia = _class_counts(labels, balance)
    if balance == "none":
        return pneumonia / normal if normal else float("inf")
    # The paper's sampler weights equal numbers of items by 1 / original count, then its loss weights again.
    return (normal / pneumonia) ** 2 if balance == "paper" else 1.0


def _draw_with_replacement(
    labels: NDArray[np.int8], rows: NDArray[np.int32], rng: np.random.Generator
) -> NDArray[np.int32]:
    """Draw len(rows) items with weights 1 / (number of originals of the item's class).

    The weights are constant within a class, so the class is drawn first and an item of it uniformly.
    """
    item_is_pneumonia = labels[rows] == PNEUMONIA
    normal_items = np.flatnonzero(~item_is_pneumonia).astype(np.int32)
    pneumonia_items = np.flatnonzero(item_is_pneumonia).astype(np.int32)
    num_pneumonia = np.count_nonzero(labels == PNEUMONIA)
    normal_mass = len(normal_items) / (len(labels) - num_pneumonia)
    pneumonia_mass = len(pneumonia_items) / num_pneumonia
    draws_pneumonia = rng.random(len(rows)) < pneumonia_mass / (normal_mass + pneumonia_mass)
    order = np.empty(len(rows), dtype=np.int32)
    for chosen, items in ((draws_pneumonia, pneumonia_items), (~draws_pneumonia, normal_items)):
        order[chosen] = items[rng.integers(0, len(items), np.count_nonzero(chosen))]
    return order


def _class_counts(labels: NDArray[np.int8], balance: Balance) -> tuple[int, int]:
    """Return (normal, pneumonia), after checking that the balance is possible with these labels."""
    if balance not in BALANCE_MODES:
        raise ConfigError(f"Balance {balance!r} is not known: choose one of {', '.join(BALANCE_MODES)}.")
    if len(labels) == 0:
        raise ConfigError("There is no training image to sample from: check the manifest's split and label columns.")
    normal, pneumonia = int(np.count_nonzero(labels == NORMAL)), int(np.count_nonzero(labels == PNEUMONIA))
    if normal + pneumonia != len(labels):
        raise ConfigError(
            f"{len(labels) - normal - pneumonia} training rows have a label that is neither 0 (normal) nor 1 "
            "(pneumonia): leave them out of the training split."
        )
    if balance != "none" and not (normal and pneumonia):
        missing = "pneumonia" if normal else "normal"
        raise ConfigError(
            f"Balance {balance!r} needs both classes, and no training image is {missing}: check the manifest, "
            "or choose --balance none."
        )
    return normal, pneumonia
