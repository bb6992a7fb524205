"""The batches of images and masks that the lung segmenter is trained and validated on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.anatomy.examples import example
from pneumo_ray.anatomy.lungs import MASK_SIZE
from pneumo_ray.anatomy.masks import MASK_COLUMN, decode_mask, resize_mask
from pneumo_ray.data.dataset import CACHE_SIZE, load_squares
from pneumo_ray.data.sampling import epoch_plan
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.phantom.synthetic import draw_lungs, draw_radiograph
from pneumo_ray.train.batches import PADDING, Schedule

Grey = NDArray[np.uint8]

_PHANTOM_SEED = 977
_PHANTOM_SIZE = 192


def draw_phantoms(count: int) -> tuple[Grey, Grey]:
    """Draw phantom chests, three of five with pneumonia, and their true lungs: uint8 [n, S, S] each, S = `MASK_SIZE`."""
    images, masks = np.empty((2, count, MASK_SIZE, MASK_SIZE), np.uint8)
    for index in range(count):
        image, _ = draw_radiograph(
            _PHANTOM_SEED, index, pneumonia=index % 5 < 3, image_size=_PHANTOM_SIZE, difficulty=0.5
        )
        images[index] = resize_grey(image, MASK_SIZE)
        masks[index] = resize_mask(draw_lungs(_PHANTOM_SEED, index, image_size=_PHANTOM_SIZE))
    return images, masks


def load_images(rows: pa.Table, cache_folder: str | None) -> Grey:
    """Return the images of manifest rows as the segmenter sees them, uint8 [n, S, S] with S = `MASK_SIZE`.

    Raises:
        ManifestError: naming a file that can no longer be read.
    """
    squares = load_squares(rows, CACHE_SIZE, cache_folder)
    return np.stack([resize_grey(square, MASK_SIZE) for square in squares]) if len(squares) else squares[:, ::2, ::2]


def load_masks(rows: pa.Table) -> Grey:
    """Return the masks of rows that have one, uint8 [n, S, S], the share of each pixel that is lung, times 255."""
    masks = [resize_mask(decode_mask(png)) for png in rows[MASK_COLUMN].to_pylist()]
    return np.stack(masks) if masks else np.empty((0, MASK_SIZE, MASK_SIZE), np.uint8)


@dataclass(frozen=True)
class LungSource:
    """Turns tickets into images and masks: a `TicketSource`."""

    train: pa.Table
    """Manifest rows to train on, with the column `mask_png`."""
    val: pa.Table
    """Manifest rows to validate on, with the column `mask_png`."""
    phantoms: Grey
    """uint8 [n, S, S], mixed among the training images."""
    phantom_masks: Grey
    """uint8 [n, S, S]."""
    seed: int
    batch_size: int
    cache_folder: str | None = None

    @property
    def num_train(self) -> int:
        """Training images and phantoms."""
        return len(self.train) + len(self.phantoms)

    def schedule(self, world_size: int) -> Schedule:
        """Return the schedule of a run with this many workers."""
        slots = -(-self.num_train // self.batch_size) * self.batch_size
        return Schedule(slots, len(self.val), self.batch_size, world_size)

    def batch(self, ticket: int, schedule: Schedule) -> dict[str, np.ndarray]:
        """Return one ticket's batch.

        Returns:
            `pixels` and `mask` uint8 [b, S, S]; `row` int32 [b]: index into `train` (phantoms after it) or `val`, or
            `PADDING`; `ticket` int64 scalar. b is `schedule.local_batch`.
        """
        position = schedule.position(ticket)
        start, stop = schedule.share(position.rank)
        first, made = position.step * schedule.batch_size + start, self.empty_batch(ticket, schedule)
        if position.phase == "train":
            plan = self._plan(position.epoch).slice(first, stop - start)
            rows = plan["row"].to_numpy()
            images, masks = self._examples(rows)
            for i, slot in enumerate(plan["slot"].to_pylist()):
                made["pixels"][i], made["mask"][i] = example(images[i], masks[i], self.seed, slot)
            made["row"][: len(rows)] = rows
            return made
        taken = self.val.slice(first, stop - start)
        if n := len(taken):
            made["pixels"][:n], made["mask"][:n] = load_images(taken, self.cache_folder), load_masks(taken)
            made["row"][:n] = np.arange(first, first + n)
        return made

    def empty_batch(self, ticket: int, schedule: Schedule) -> dict[str, np.ndarray]:
        """Return a batch of padding alone."""
        pixels, masks = np.zeros((2, schedule.local_batch, MASK_SIZE, MASK_SIZE), np.uint8)
        rows = np.full(schedule.local_batch, PADDING, np.int32)
        return {"pixels": pixels, "mask": masks, "row": rows, "ticket": np.array(ticket)}

    def _examples(self, rows: NDArray[np.int32]) -> tuple[Grey, Grey]:
        images, masks = np.empty((2, len(rows), MASK_SIZE, MASK_SIZE), np.uint8)
        drawn = rows >= len(self.train)
        images[drawn] = self.phantoms[rows[drawn] - len(self.train)]
        masks[drawn] = self.phantom_masks[rows[drawn] - len(self.train)]
        taken = self.train.take(rows[~drawn])
        images[~drawn], masks[~drawn] = load_images(taken, self.cache_folder), load_masks(taken)
        return images, masks

    @cached_property
    def _plan(self) -> Callable[[int], pa.Table]:
        """Return the plan of an epoch, as `BatchSource` does."""
        same_class = np.zeros(self.num_train, np.int8)

        def plan(epoch: int) -> pa.Table:
            return epoch_plan(same_class, balance="none", seed=self.seed, epoch=epoch, batch_size=self.batch_size)

        return lru_cache(maxsize=2)(plan)
