"""The sampler as data: an epoch is a table of (slot, row, copy), computed on the driver and independent of the cluster.

Class balance, shuffling, the key of every augmentation and the place to resume all follow from that table. The modes of
balance are those of arXiv 2507.18647, one at a time or, as the paper has them, all at once.

With soft labels an image belongs to both classes, to each by its probability: the expected numbers of normal and of
pneumonia images, as weighted, take the place of the counts, and each mode makes them equal.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.data.config import BALANCE_MODES, Balance
from pneumo_ray.data.soft_labels import SoftLabels
from pneumo_ray.errors import ConfigError
from pneumo_ray.images.rng import stream_key

NORMAL, PNEUMONIA = 0, 1

Labels = NDArray[np.int8] | SoftLabels
"""Of n training rows: int8 [n], 0 normal and 1 pneumonia, or as probabilities."""


def epoch_plan(labels: Labels, *, balance: Balance, seed: int, epoch: int, batch_size: int) -> pa.Table:
    """Return what one epoch trains on, in order.

    The table depends on nothing but the arguments. Its length is a multiple of the global batch: the last batch is
    filled with the first entries of the epoch's own order under fresh slots, as `DistributedSampler` does.

    Args:
        labels: of the training rows.
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


def epoch_slots(labels: Labels, *, balance: Balance, batch_size: int) -> int:
    """Return the number of rows of `epoch_plan` without making it: the same for every epoch and seed.

    Raises:
        ConfigError: if the balance is impossible with these labels or this batch size.
    """
    _class_counts(labels, balance)
    if batch_size < 1:
        raise ConfigError(f"batch-size must be at least 1, got {batch_size}")
    drawn = len(labels) + (len(_copied(labels)[1]) if balance in ("copies", "paper") else 0)
    return -(-drawn // batch_size) * batch_size


def virtual_copies(labels: Labels) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Return every original once, then as many copies of the smaller class as make the classes equal.

    Copies are distributed evenly: the numbers of copies of two images differ by at most one. With soft labels the images
    that are more likely of the smaller class are copied, until the expected numbers are nearly equal.

    Args:
        labels: of n images.

    Returns:
        rows int32 [n + copies], indices into `labels`; copies int16 of the same length, 0 for the originals and
        1, 2, ... for the copies of one image.

    Raises:
        ConfigError: if a class is missing, or an image would need more than 32,767 copies.
    """
    source, copy = _copied(labels)
    rows = np.concatenate([np.arange(len(labels), dtype=np.int32), source.astype(np.int32)])
    return rows, np.concatenate([np.zeros(len(labels), np.int16), copy.astype(np.int16)])


def _copied(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which image each copy is of, and the number of the copy among those of its image."""
    normal, pneumonia = _class_counts(labels, "copies")
    smaller = NORMAL if normal < pneumonia else PNEUMONIA
    if isinstance(labels, SoftLabels):
        gain = labels.weight * (2 * labels.target - 1) * (1 if smaller == PNEUMONIA else -1)
        minority = np.flatnonzero(gain > 0)
        if not len(minority):
            raise ConfigError(
                f"Balance by copies needs images that are more likely {('normal', 'pneumonia')[smaller]} than not: "
                "choose --balance pos-weight or none."
            )
        missing = round(abs(normal - pneumonia) / float(gain[minority].mean()))
    else:
        minority = np.flatnonzero(labels == smaller)
        missing = int(abs(normal - pneumonia))
    if missing > len(minority) * np.iinfo(np.int16).max:
        raise ConfigError(
            f"Balance by copies would need {missing} copies of {len(minority)} images, more than 32767 of each: "
            "choose --balance sampler or pos-weight."
        )
    copy_index = np.arange(missing, dtype=np.int64)
    source = copy_index * len(minority) // max(missing, 1)
    first_of_source = -(-source * missing // len(minority))
    return minority[source], copy_index - first_of_source + 1


def positive_weight(labels: Labels, balance: Balance) -> float:
    """Return the weight of the pneumonia class in the loss: normal / pneumonia of the originals, or 1 where unused.

    Raises:
        ConfigError: if the labels cannot be balanced this way.
    """
    normal, pneumonia = _class_counts(labels, balance)
    return normal / pneumonia if balance in ("pos-weight", "paper") else 1.0


def effective_odds(labels: Labels, balance: Balance) -> float:
    """Return the odds of pneumonia that the loss sees: expected pneumonia draws times their weight, per normal draw.

    With the paper's 1,341 normal and 3,875 pneumonia images: none 2.89; copies, sampler and pos-weight 1; paper 0.12.
    With soft labels that of copies is nearly 1, and that of paper is what it would be with hard ones.

    Raises:
        ConfigError: if the labels cannot be balanced this way.
    """
    normal, pneumonia = _class_counts(labels, balance)
    if balance == "none":
        return pneumonia / normal if normal else float("inf")
    # The paper's sampler weights equal numbers of items by 1 / original count, then its loss weights again.
    return (normal / pneumonia) ** 2 if balance == "paper" else 1.0


def _draw_with_replacement(labels: Labels, rows: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Draw len(rows) items with weights 1 / (number of originals of the item's class).

    The weights are constant within a class, so the class is drawn first and an item of it uniformly.
    """
    if isinstance(labels, SoftLabels):
        edges = np.cumsum(_drawing_weights(labels)[rows])
        drawn = np.searchsorted(edges, rng.random(len(rows)) * edges[-1], side="right")
        return np.minimum(drawn, len(rows) - 1).astype(np.int32)  # the product may round up to the end
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


def _drawing_weights(labels: SoftLabels) -> NDArray[np.float64]:
    """Return weights [n] with which both classes are expected equally often: `a t + b (1 - t)` of an image of target t.

    An image counts in the loss by its own weight w, so a and b solve `sum w (a t + b (1 - t)) (2 t - 1) = 0`. Hard labels
    give a = 1 / pneumonia and b = 1 / normal.

    Raises:
        ConfigError: if no weights can: the images of one class are as likely of the other.
    """
    lean = labels.weight * (2 * labels.target - 1)
    pneumonia, normal = float(np.sum(lean * labels.target)), float(-np.sum(lean * (1 - labels.target)))
    if not (pneumonia > 0 and normal > 0):
        raise ConfigError(
            "The labels are too doubtful for --balance sampler: no way of drawing makes both classes equally likely. "
            "Choose --balance pos-weight or none."
        )
    weights: NDArray[np.float64] = labels.target / pneumonia + (1 - labels.target) / normal
    return weights


def _class_counts(labels: Labels, balance: Balance) -> tuple[float, float]:
    """Return (normal, pneumonia), after checking that the balance is possible with these labels; expected if soft."""
    if balance not in BALANCE_MODES:
        raise ConfigError(f"Balance {balance!r} is not known: choose one of {', '.join(BALANCE_MODES)}.")
    if len(labels) == 0:
        raise ConfigError("There is no training image to sample from: check the manifest's split and label columns.")
    normal: float
    pneumonia: float
    if isinstance(labels, SoftLabels):
        normal, pneumonia = labels.masses
    else:
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
