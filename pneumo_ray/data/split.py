"""Splits: which images train the model, which choose it and which measure it.

Three protocols. `grouped` and `official` support claims; `paper` (arXiv 2507.18647) is for comparison only.
"""

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pneumo_ray.data.config import Protocol
from pneumo_ray.errors import ConfigError

VAL_FRACTION = 0.1
"""Share of the images of each class that `grouped` and `official` take for validation."""
TEST_FRACTION = 0.1
"""Share that `grouped` takes for the test if the archive has no test folder."""


def check_folders(splits: Collection[str | None], protocol: Protocol) -> None:
    """Refuse a protocol that needs folders which the archive does not have.

    Args:
        splits: the splits named by the archive's folders (or the label table): train, val, test or None.
        protocol: one of the three.

    Raises:
        ConfigError: naming what is missing.
    """
    needs_test = "test" in splits if protocol == "official" else any(name != "train" for name in splits)
    if protocol != "grouped" and not ("train" in splits and needs_test):
        raise ConfigError(
            f"--protocol {protocol} needs an archive with a train and a test folder; use --protocol grouped"
        )


def assign_splits(table: pa.Table, protocol: Protocol, seed: int, *, keep_val: bool = False) -> pa.Table:
    """Fill the column `split` of a manifest.

    * `grouped`: a test folder stays as it is; training images that share a patient or identical bytes with
      it are set aside (split null). The rest is divided such that patients and exact duplicates stay on one side.
    * `official`: train and test folders as they are, validation carved out of train by patient. A patient that the
      archive itself has on both sides stays there, and training refuses it without --allow-leakage.
    * `paper`: the train folder trains; everything else is halved at random, class by class.

    Rows that failed or have no label get no split.

    Args:
        table: manifest whose `split` is that of the archive's folders.
        protocol: one of the three.
        seed: of the random choices; the same seed and the same archive give the same splits.
        keep_val: take the validation rows as they are given (by a label table) instead of carving some out of train;
            `grouped` then sets aside the training rows that are linked to them.

    Raises:
        ConfigError: if the archive lacks folders that the protocol needs.
    """
    folder = np.array(table["split"].to_pylist(), dtype=object)
    label = pc.fill_null(table["label"], -1).to_numpy().astype(np.int64)
    active = pc.equal(table["status"], "ok").to_numpy(zero_copy_only=False).astype(bool) & (label >= 0)
    check_folders(set(folder[active].tolist()), protocol)
    # Drawn in the order of the ids, so that the order of listing does not matter.
    order = pc.sort_indices(table["image_id"]).to_numpy()
    order = order[active[order]]
    random = np.random.default_rng([seed, 0x5B117])
    split = np.full(len(table), None, dtype=object)
    in_test = active & (folder == "test")
    if protocol == "paper":
        split[active & (folder == "train")] = "train"
        rest = order[folder[order] != "train"]
        for value in (0, 1):
            rows = random.permutation(rest[label[rest] == value])
            split[rows[: len(rows) // 2]] = "val"
            split[rows[len(rows) // 2 :]] = "test"
    else:
        group = link_groups(table)
        split[active] = "train"
        split[in_test] = "test"
        in_val = active & (folder == "val") & keep_val
        split[in_val] = "val"
        if protocol == "grouped":
            split[active & ~in_test & np.isin(group, group[in_test])] = None
            split[active & ~in_test & ~in_val & np.isin(group, group[in_val])] = None
            if not in_test.any():
                _carve(split, "test", TEST_FRACTION, order, label, group, random)
        if not in_val.any():
            _carve(split, "val", VAL_FRACTION, order, label, group, random)
    return table.set_column(table.column_names.index("split"), "split", pa.array(split, pa.string()))


def permute_labels(rows: pa.Table, seed: int) -> pa.Table:
    """Permute the labels of the rows; the class counts stay the same (Adebayo et al. 2018, arXiv 1810.03292)."""
    order = np.random.default_rng([seed, 0x1ABE1]).permutation(len(rows))
    return rows.set_column(rows.column_names.index("label"), "label", rows["label"].take(pa.array(order)))


def link_groups(table: pa.Table) -> np.ndarray:
    """Return a group number per row, int [n]: rows of one patient or with the same bytes share a group, transitively."""
    n = len(table)
    rows, columns = [], []
    offset = n
    for name in ("patient_id", "content_sha256"):
        codes = table[name].combine_chunks().dictionary_encode()
        index = pc.fill_null(codes.indices, -1).to_numpy()
        known = np.flatnonzero(index >= 0)
        rows.append(known)
        columns.append(index[known] + offset)
        offset += len(codes.dictionary)
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_matrix((np.ones(len(edges[0]), bool), edges), shape=(offset, offset))
    return connected_components(graph, directed=False)[1][:n]


def _carve(
    split: np.ndarray,
    name: str,
    fraction: float,
    order: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    random: np.random.Generator,
) -> None:
    """Move whole groups from train to `name` until it holds `fraction` of the images of each class."""
    pool = order[split[order] == "train"]
    groups, first, member = np.unique(group[pool], return_index=True, return_inverse=True)
    size = np.bincount(member, minlength=len(groups))
    positive = np.bincount(member, weights=label[pool], minlength=len(groups))
    kind = (2 * positive >= size).astype(int)  # a group counts for the class that most of its images have
    groups_in_order = np.argsort(first, kind="stable")  # by id, not by group number, which depends on the order of rows
    for value in (0, 1):
        candidates = random.permutation(groups_in_order[kind[groups_in_order] == value])
        if len(candidates) < 2:
            continue
        wanted = max(1, round(fraction * size[candidates].sum()))
        before = np.cumsum(size[candidates]) - size[candidates]
        taken = candidates[:-1][before[:-1] < wanted]  # at least one group stays in train
        split[pool[np.isin(member, taken)]] = name
