"""Folds of the training images: every patient in one fold, and both classes spread evenly over them."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from pneumo_ray.data.split import link_groups
from pneumo_ray.errors import ConfigError

FOLD = "fold"
"""Column of a manifest that is trained without one fold: the fold of each training image, null for the others."""


def assign_folds(manifest: pa.Table, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row of a manifest, int [n], -1 for what does not train.

    Rows that share a patient or their bytes share a fold. The order of the rows does not matter.

    Args:
        manifest: with splits.
        folds: their number, at least 2.
        seed: of the draw.

    Raises:
        ConfigError: if a class has fewer patients than there are folds.
    """
    trains = pc.and_(pc.equal(manifest["status"], "ok"), pc.is_valid(manifest["label"]))
    trains = pc.and_(trains, pc.fill_null(pc.equal(manifest["split"], "train"), False))
    order = pc.sort_indices(manifest["image_id"]).to_numpy()
    rows = order[trains.to_numpy(zero_copy_only=False)[order]]
    label = pc.fill_null(manifest["label"], -1).to_numpy()[rows]
    _, group = np.unique(link_groups(manifest)[rows], return_inverse=True)
    fewest = min(len(np.unique(group[label == c])) for c in (0, 1))
    if fewest < folds:
        raise ConfigError(
            f"{folds} folds need at least {folds} patients of each class among the training images, and one class has "
            f"{fewest}; give fewer --folds"
        )
    # sklearn numbers the groups by their first row here, so that folds depend on the names alone.
    first = np.argsort(np.argsort(np.unique(group, return_index=True)[1]))
    fold = np.full(len(manifest), -1, np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a patient with many images may make a class smaller than its share
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for number, (_, left_out) in enumerate(splitter.split(rows, label, first[group])):
            fold[rows[left_out]] = number
    return fold


def without_fold(manifest: pa.Table, fold: NDArray[np.int64], number: int) -> pa.Table:
    """Return a manifest whose fold `number` does not train: its rows have no split. The column `fold` is added or replaced."""
    left_out = pa.array(fold == number)
    split = pc.if_else(left_out, pa.scalar(None, pa.string()), manifest["split"].combine_chunks().cast(pa.string()))
    table = manifest.set_column(manifest.column_names.index("split"), "split", split)
    if FOLD in table.column_names:
        table = table.drop_columns([FOLD])
    return table.append_column(FOLD, pa.array(fold, pa.int32(), mask=fold < 0))
