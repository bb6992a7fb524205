"""A table of labels onto the manifest of an archive: which row means which image, and what it changes.

An empty cell changes nothing. A patient that the table names anew is that patient in all images which the archive
gives to the same patient, so that a table with gaps cannot put one child on both sides of a split.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.kermany import CLASS_FOLDERS, SPLIT_FOLDERS
from pneumo_ray.data.label_table import NUM_BOXES, shown
from pneumo_ray.data.names import same_extension, slashed, stem
from pneumo_ray.errors import ManifestError

RESERVED_COLUMNS = (
    *("cache_file", "cache_row", "copy_of", "folder", "decode_note"),
    *("lung_box", "lung_right_box", "lung_left_box", "lung_area", "lung_quality", "lung_mask"),
    *("contrast", "member_span", "label_soft", "label_weight", "num_readers"),
)
"""Columns that a manifest may get later, beside those that it has."""
LABEL_COLUMNS = ("label", "subtype", "patient_id", "split")
"""Columns of a manifest that a table of labels fills."""


def apply_labels(table: pa.Table, facts: pa.Table, uri: str, *, more_labels: bool = False) -> pa.Table:
    """Take labels and other facts from a table that `read_labels` read from `uri`.

    Its column `image_id` names images by their id or, where that is unique, by the end of it, without the extension, or
    with its extension in another case. `label`, `subtype`, `patient_id` and `split` replace what the archive has, where
    they are not empty; every other column is carried along, as `table_NAME` if the manifest has one of its name.
    Rows that repeat one another count once. One log line names what was used.

    Args:
        table: the manifest.
        facts: the table of labels.
        uri: of it, for messages.
        more_labels: readings follow, which may label any image.

    Raises:
        ManifestError: if it names unknown or ambiguous images, contradicts itself, or leaves open which patient some
            images belong to.
    """
    facts, rows, numbers = _one_row_an_image(facts, table["image_id"].to_pylist(), uri)
    position: list[int | None] = [None] * len(table)
    for fact, row in enumerate(rows):
        position[row] = fact
    order = pa.array(position, pa.int64())
    log(f"--labels {storage.base_name(uri)}: {len(rows):,} of {len(table):,} images are named by it{numbers}")
    before = table
    for name in facts.column_names:
        if name == "image_id":
            continue
        taken = facts[name].combine_chunks().take(order)
        if name in LABEL_COLUMNS:
            merged = pc.coalesce(taken, table[name].combine_chunks().cast(taken.type))
            table = table.set_column(table.column_names.index(name), table.schema.field(name), merged)
        else:
            table = table.append_column(_free_name(name, before, facts, uri), taken)
    if "label" in facts.column_names:
        given = facts["subtype"].combine_chunks().take(order) if "subtype" in facts.column_names else None
        table = without_stale_subtypes(before, table, given)
    if "patient_id" in facts.column_names:
        labelled = [more_labels or label is not None for label in table["label"].to_pylist()]
        table = _with_whole_patients(before, table, facts["patient_id"].combine_chunks().take(order), labelled, uri)
    return table


def _free_name(name: str, table: pa.Table, facts: pa.Table, uri: str) -> str:
    """Return a name that the manifest has no column of, nor will get one."""
    used = {*table.column_names, *RESERVED_COLUMNS}
    if name not in used:
        return name
    new = f"table_{name}"
    while new in used or new in facts.column_names:
        new = f"table_{new}"
    log(
        f"--labels {storage.base_name(uri)}: its column {shown(name)} becomes {new}, because a manifest has one of that name"
    )
    return new


def _one_row_an_image(facts: pa.Table, image_ids: Sequence[str], uri: str) -> tuple[pa.Table, list[int], str]:
    """Return the table with one row per image, which row of the manifest each is, and words about what was left out."""
    names = facts["image_id"].to_pylist()
    empty = _empty_rows(facts, names, uri)
    rows = _match([None if k in empty else name for k, name in enumerate(names)], image_ids, uri)
    groups: dict[int, list[int]] = defaultdict(list)
    for fact, row in enumerate(rows):
        if row is not None:
            groups[row].append(fact)
    words = f"; {len(empty):,} empty rows are left out" if empty else ""
    repeated = len(names) - len(empty) - len(groups)
    if not repeated:
        return facts.take(pa.array([group[0] for group in groups.values()], pa.int64())), list(groups), words
    is_box_table = b"boxes" in (facts.schema.metadata or {})
    columns: dict[str, pa.Array] = {"image_id": pa.array([names[group[0]] for group in groups.values()], pa.string())}
    for name in facts.column_names[1:]:
        values = facts[name].to_pylist()
        merge = sum if is_box_table and name == NUM_BOXES else _agreed(name, uri)
        merged = [
            merge([values[k] for k in group]) if len(group) > 1 else values[group[0]] for group in groups.values()
        ]
        columns[name] = pa.array(merged, facts.schema.field(name).type)
    words += (
        f"; {repeated:,} rows repeat others and count once"
        if not is_box_table
        else f"; {repeated:,} rows are further boxes"
    )
    return pa.table(columns), list(groups), words


def _empty_rows(facts: pa.Table, names: Sequence[str | None], uri: str) -> set[int]:
    """Return the rows without a cell that is filled, such as Excel's at the end.

    Raises:
        ManifestError: if one has cells but names no image.
    """
    nameless = [k for k, name in enumerate(names) if name is None]
    rest = facts.drop_columns(["image_id"])
    for k in nameless:
        cells = {name: rest[name][k].as_py() for name in rest.column_names}
        if any(cell is not None and (name, cell) != (NUM_BOXES, 0) for name, cell in cells.items()):
            raise ManifestError(f"--labels {uri} names no image in row {k + 2}; fill its image_id, or remove the row")
    return set(nameless)


def _agreed(name: str, uri: str) -> Callable[[list[object]], object]:
    def merge(values: list[object]) -> object:
        known = [value for value in values if value is not None]
        if any(value != known[0] for value in known[1:]):
            raise ManifestError(
                f"--labels {uri} names an image more than once, with different values in its column {shown(name)}; keep one row for each image"
            )
        return known[0] if known else None

    return merge


def rows_meant(names: Sequence[str | None], image_ids: Sequence[str]) -> list[list[int]]:
    """Return the rows of the manifest that each name can mean: none where there is no name, several where it is not clear.

    A name is an image's id or the end of it, in whole names of folders, with or without its extension.
    """
    by_id = {image_id: row for row, image_id in enumerate(image_ids)}
    found = [[by_id[name]] if name is not None and name in by_id else [] for name in names]
    left = [k for k, name in enumerate(names) if name is not None and not found[k]]
    if left:
        ends = _Ends(image_ids)
        common = _common_folder([names[k] or "" for k in left])
        for k in left:
            path = same_extension(slashed(names[k] or ""))
            found[k] = ends.meant(path) or (ends.meant(path[len(common) :]) if common else [])
    return found


def _match(names: Sequence[str | None], image_ids: Sequence[str], uri: str) -> list[int | None]:
    """Return the row of the manifest that each name means, None where there is no name.

    Raises:
        ManifestError: if a name means none, or could mean several.
    """
    found = rows_meant(names, image_ids)
    if wrong := [k for k, meant in enumerate(found) if names[k] is not None and len(meant) != 1]:
        first = wrong[0]
        why = "has several of" if found[first] else "does not have"
        name = names[first] or ""
        example = f"such as {name!r}" if is_file_name(name) else f"the first in row {first + 2}"
        raise ManifestError(
            f"--labels {uri} names {len(wrong)} image(s) that the archive {why}, {example}; name them by their path in the archive"
        )
    return [meant[0] if meant else None for meant in found]


class _Ends:
    """The images of an archive by the last name of their path, with and without its extension."""

    def __init__(self, image_ids: Sequence[str]) -> None:
        self._paths = [same_extension(image_id) for image_id in image_ids]
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for row, path in enumerate(self._paths):
            name = path.rpartition("/")[2]
            self._by_name[name].append(row)
            self._by_stem[stem(name)].append(row)

    def meant(self, path: str) -> list[int]:
        """Return the rows that a path can mean: one path must be the end of the other, in whole names."""
        folder, _, name = path.rpartition("/")
        for candidates in (self._by_name.get(name, ()), self._by_stem.get(name, ())):
            own = {row: self._paths[row].rpartition("/")[0] for row in candidates}
            fitting = [row for row in candidates if not folder or _end_alike(own[row], folder)]
            exact = [row for row in fitting if own[row] == folder]
            if fitting:
                return exact if len(exact) == 1 else fitting
        return []


def _end_alike(one: str, other: str) -> bool:
    return not one or f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _common_folder(names: Sequence[str]) -> str:
    """Return the folder that all names share, where they are paths of a machine (`C:\\x\\a.png`, `/data/x/a.png`), else nothing.

    It ends before a folder that names a split or class, which is no folder of the machine.
    """
    if not all(name[1:3] in (":\\", ":/") or name.startswith(("/", "\\\\")) for name in names):
        return ""
    common = ""
    for parts in zip(*(same_extension(slashed(name)).split("/")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1 or parts[0].lower() in (*SPLIT_FOLDERS, *CLASS_FOLDERS):
            break
        common += f"{parts[0]}/"
    return common


def is_file_name(name: str) -> bool:
    """Return whether a name can be repeated in a message: that of a file, and not a sentence or a person."""
    return " " not in name and "\n" not in name and stem(name) != name and len(name) < 200


def without_stale_subtypes(before: pa.Table, table: pa.Table, given: pa.Array | None) -> pa.Table:
    """Take away the subtypes of images whose label changed.

    Args:
        before: manifest with the labels that the subtypes belong to.
        table: the same with the labels as they are now.
        given: [n], subtypes that belong to the new labels, null where there is none; None for none at all.
    """
    changed = pc.fill_null(pc.not_equal(before["label"].combine_chunks(), table["label"].combine_chunks()), False)
    stale = changed if given is None else pc.and_(changed, pc.is_null(given))
    values = pc.if_else(stale, pa.scalar(None, pa.string()), table["subtype"].combine_chunks().cast(pa.string()))
    return table.set_column(table.column_names.index("subtype"), table.schema.field("subtype"), values)


def _with_whole_patients(
    before: pa.Table, table: pa.Table, given: pa.Array, labelled: Sequence[bool], uri: str
) -> pa.Table:
    """Give what the table calls a patient to all images that the archive gives to the same patient.

    Args:
        before: manifest with the archive's patients.
        table: the same with those of the table, where it names one.
        given: [n], the patient that the table names, null where it names none.
        labelled: [n], whether an image has a label or may get one.
        uri: of the table, for the error message.

    Raises:
        ManifestError: if the archive's patient is several in the table, so that it is unknown to which of them a labelled
            image without a cell belongs.
    """
    own, named = before["patient_id"].to_pylist(), given.to_pylist()
    known: dict[str, set[str]] = defaultdict(set)
    for patient, name in zip(own, named, strict=True):
        if patient is not None and name is not None:
            known[patient].add(name)
    open_rows = [row for row, name in enumerate(named) if name is None and own[row] in known]
    undecided = [row for row in open_rows if len(known[own[row]]) > 1 and labelled[row]]
    if undecided:
        raise ManifestError(
            f"--labels {uri} divides {len({own[row] for row in undecided}):,} patient(s) of the archive into several and names none for "
            f"{len(undecided):,} image(s) of theirs, so the same patient could train and test; fill patient_id for all of them"
        )
    patients = table["patient_id"].to_pylist()
    for row in open_rows:
        if len(known[own[row]]) == 1:
            (patients[row],) = known[own[row]]
    if divided := sum(len(names) > 1 for names in known.values()):
        log(f"--labels {storage.base_name(uri)}: divides {divided:,} patients of the archive into several")
    counts = Counter(
        "kept" if patient is not None else "none" for patient, name in zip(patients, named, strict=True) if name is None
    )
    if counts:
        log(
            f"--labels {storage.base_name(uri)}: no patient_id for {counts.total():,} images: {counts['kept']:,} keep that of the "
            f"archive, {counts['none']:,} have none and count as a patient each"
        )
    return table.set_column(
        table.column_names.index("patient_id"), table.schema.field("patient_id"), pa.array(patients, pa.string())
    )
