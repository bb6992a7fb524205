"""One Arrow table describes an archive: one row per image, with what is known of it and where it lies."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pneumo_ray import storage
from pneumo_ray.data.kermany import SPLIT_FOLDERS
from pneumo_ray.errors import LeakageError, ManifestError

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        ("uri", pa.string()),
        ("member", pa.string()),
        ("frame", pa.int32()),
        ("label", pa.int8()),
        ("subtype", pa.string()),
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("content_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("num_bytes", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
"""The contract. `label`: 0 normal, 1 pneumonia, null unknown. `split`: train, val, test, null not used.
A manifest may carry more columns: `cache_file` and `cache_row` where `prepare --cache` ran, `copy_of` where copies
were written, and whatever the label table brought along."""

CACHE_FIELDS = (pa.field("cache_file", pa.string()), pa.field("cache_row", pa.int32()))
SHAPE_FIELDS = (pa.field("shape_width", pa.float32()), pa.field("shape_height", pa.float32()))
"""The true shape of an image whose file was squashed, where a table of lungs says so; only the ratio counts."""

LUNG_FIELDS = (
    pa.field("lung_box", pa.list_(pa.float32(), 4)),
    pa.field("lung_right_box", pa.list_(pa.float32(), 4)),
    pa.field("lung_left_box", pa.list_(pa.float32(), 4)),
    pa.field("lung_area", pa.float32()),
    pa.field("lung_quality", pa.string()),
    pa.field("lung_mask", pa.binary()),
    pa.field("view", pa.string()),
)
"""Where the lungs are, after all other columns; null where nobody looked and for failed rows. Boxes are x0, y0, x1, y1 as
fractions of the image, sides are the patient's, the area is a share of the image. `lung_quality` is "plausible" or why
not (`anatomy.lungs.QUALITIES`); `lung_mask` is a 1-bit PNG of 128 x 128 over the whole image, squashed; `view` is frontal
or doubtful. A table of labels may bring a `view` of its own, which then stays."""

SPLITS = ("train", "val", "test")
RESERVED_COLUMNS = (
    "cache_file",
    "cache_row",
    "copy_of",
    "folder",
    *(field.name for field in LUNG_FIELDS if field.name != "view"),
)
LABEL_COLUMNS = ("label", "subtype", "patient_id", "split")
_LABEL_WORDS = {"0": 0, "normal": 0, "false": 0, "1": 1, "pneumonia": 1, "true": 1}


def write_manifest(table: pa.Table, uri: str) -> None:
    """Write a manifest, complete or not at all.

    Raises:
        ManifestError: if the table breaks the contract.
        StorageError: if the place cannot be written.
    """
    validate(table, uri)
    storage.write_table(table, uri)


def read_manifest(uri: str) -> pa.Table:
    """Read and check a manifest.

    Raises:
        ManifestError: one sentence, if it is missing, not Parquet, or breaks the contract.
    """
    try:
        table = storage.read_table(uri)
    except FileNotFoundError as error:
        raise ManifestError(f"manifest {uri} does not exist; make one with jobs/prepare.py") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(f"manifest {uri} is not a readable Parquet file: {error}") from error
    validate(table, uri)
    return table


def validate(table: pa.Table, name: str) -> None:
    """Hold a table against the contract of names.

    Raises:
        ManifestError: naming the first thing that is wrong.
    """
    missing = [field.name for field in SCHEMA if field.name not in table.column_names]
    if missing:
        raise ManifestError(f"manifest {name} lacks the column(s) {', '.join(missing)}; make it with jobs/prepare.py")
    wrong = [f.name for f in SCHEMA if not _same_kind(table.schema.field(f.name).type, f.type)]
    if wrong:
        raise ManifestError(
            f"manifest {name} has columns of the wrong type: {', '.join(wrong)}; make it with jobs/prepare.py"
        )
    ids = table["image_id"]
    if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
        twice = [value for value, count in Counter(ids.to_pylist()).items() if count > 1 or value is None]
        raise ManifestError(
            f"manifest {name} has {len(twice)} image_id value(s) that are missing or occur more than once, such as {twice[0]!r}"
        )
    for column, allowed in (("label", [0, 1]), ("split", list(SPLITS)), ("status", ["ok", "failed"])):
        values = pc.unique(table[column]).drop_null().to_pylist()
        if foreign := [value for value in values if value not in allowed]:
            raise ManifestError(
                f"manifest {name} has {column} {foreign[0]!r}; allowed are {', '.join(map(str, allowed))} and null"
            )


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_null(found)
    return pa.types.is_integer(found) or pa.types.is_null(found)


def fingerprint(table: pa.Table) -> str:
    """Return a hash of what training sees of a manifest: ids, contents, labels and splits, in order."""
    digest = hashlib.sha256()
    for column in ("image_id", "frame", "content_sha256", "label", "split", "status"):
        for value in table[column].to_pylist():
            digest.update(f"{value}\0".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def usable(table: pa.Table, split: str | None = None) -> pa.Table:
    """Return the readable, labelled rows of a manifest (of one split)."""
    mask = pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["label"]))
    if split is not None:
        mask = pc.and_(mask, pc.fill_null(pc.equal(table["split"], split), False))
    return table.filter(mask)


def crossing(table: pa.Table, column: str) -> list[str]:
    """Return the values of `column` (patient_id or content_sha256) that stand in more than one split, sorted."""
    known = table.filter(pc.and_(pc.is_valid(table["split"]), pc.is_valid(table[column])))
    splits = known.group_by(column).aggregate([("split", "count_distinct")])
    return sorted(splits.filter(pc.greater(splits["split_count_distinct"], 1))[column].to_pylist())


def refuse_leakage(table: pa.Table) -> None:
    """Refuse a manifest in which a patient, or an exact duplicate, stands in two splits.

    Raises:
        LeakageError: saying how many, and what to do.
    """
    rows = usable(table)
    patients, contents = crossing(rows, "patient_id"), crossing(rows, "content_sha256")
    if patients or contents:
        raise LeakageError(
            f"{len(patients)} patient(s) and {len(contents)} exact duplicate(s) stand in more than one split, so the result would be "
            "flattered; prepare with --protocol grouped, or pass --allow-leakage to train all the same"
        )


def read_labels(uri: str) -> pa.Table:
    """Read a CSV or Parquet table of labels.

    Raises:
        ManifestError: if it cannot be read, lacks `image_id`, or has a column that the manifest uses itself.
    """
    facts = _read_table(uri)
    if "image_id" not in facts.column_names:
        raise ManifestError(f"--labels {uri} has no column image_id; its columns are {', '.join(facts.column_names)}")
    if reserved := [name for name in facts.column_names if name in RESERVED_COLUMNS]:
        raise ManifestError(
            f"--labels {uri} has a column {reserved[0]}, a name that the manifest uses itself; rename it"
        )
    return facts


def apply_labels(table: pa.Table, facts: pa.Table, uri: str) -> pa.Table:
    """Take labels and other facts from a table that `read_labels` read from `uri`.

    Its column `image_id` names images by their full id or, where that is unique, by their file name. `label`
    (0/1, normal/pneumonia), `subtype`, `patient_id` and `split` replace what the paths said; every other column is carried along.

    Raises:
        ManifestError: if it names unknown or ambiguous images, or has a label or split that is none.
    """
    rows = _match(facts["image_id"].cast(pa.string()).to_pylist(), table["image_id"].to_pylist(), uri)
    position: list[int | None] = [None] * len(table)
    for fact, row in enumerate(rows):
        position[row] = fact
    order = pa.array(position, pa.int64())
    for name in facts.column_names:
        if name == "image_id" or (name in SCHEMA.names and name not in LABEL_COLUMNS):
            continue
        values = facts[name].combine_chunks()
        if name == "label":
            values = pa.array([_label(value, uri) for value in values.to_pylist()], pa.int8())
        elif name in LABEL_COLUMNS:
            values = pc.replace_with_mask(
                values.cast(pa.string()), pc.equal(values.cast(pa.string()), ""), pa.scalar(None, pa.string())
            )
        if name == "split":
            values = pa.array([_split(value, uri) for value in values.to_pylist()], pa.string())
        taken = values.take(order)
        if name in table.column_names:
            named = pc.is_valid(order)
            merged = pc.if_else(named, taken, table[name].combine_chunks())
            table = table.set_column(table.column_names.index(name), name, merged)
        else:
            table = table.append_column(name, taken)
    return table


def _read_table(uri: str) -> pa.Table:
    try:
        if storage.base_name(uri).lower().endswith((".parquet", ".pq")):
            return storage.read_table(uri)
        return pyarrow.csv.read_csv(
            pa.BufferReader(storage.read_bytes(uri)),
            # As text, so that 00012 stays 00012 and an empty cell is no patient.
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in ("image_id", "patient_id", "subtype", "split")},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except FileNotFoundError as error:
        raise ManifestError(f"--labels {uri} does not exist") from error
    except storage.RetriesExhaustedError:
        raise
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(f"--labels {uri} is neither a CSV nor a Parquet table that can be read: {error}") from error


def _match(names: Sequence[str | None], image_ids: Sequence[str], uri: str) -> list[int]:
    by_id = {image_id: row for row, image_id in enumerate(image_ids)}
    base_names = Counter(image_id.rsplit("/", 1)[-1] for image_id in image_ids)
    by_name = {image_id.rsplit("/", 1)[-1]: row for row, image_id in enumerate(image_ids)}
    rows, unknown = [], []
    for name in names:
        row = by_id.get(name or "")
        if row is None and base_names.get(name or "", 0) == 1:
            row = by_name[name or ""]
        if row is None:
            unknown.append(name)
        else:
            rows.append(row)
    if unknown:
        raise ManifestError(
            f"--labels {uri} names {len(unknown)} image(s) that the archive does not have, such as {unknown[0]!r}"
        )
    if len(set(rows)) < len(rows):
        twice = next(image_ids[row] for row, count in Counter(rows).items() if count > 1)
        raise ManifestError(f"--labels {uri} names {twice!r} more than once")
    return rows


def _split(value: str | None, uri: str) -> str | None:
    if value is None:
        return None
    if value.strip().lower() not in SPLIT_FOLDERS:
        raise ManifestError(f"--labels {uri} has the split {value!r}; give train, val or test, or nothing")
    return SPLIT_FOLDERS[value.strip().lower()]


def _label(value: object, uri: str) -> int | None:
    if value is None or value == "":
        return None
    word = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if word.strip().lower() not in _LABEL_WORDS:
        raise ManifestError(f"--labels {uri} has the label {value!r}; give 0 or normal, 1 or pneumonia, or nothing")
    return _LABEL_WORDS[word.strip().lower()]
