"""The manifest: an Arrow table with one row per image, its location and what is known about it."""

import hashlib
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.data.label_merge import RESERVED_COLUMNS, apply_labels
from pneumo_ray.data.label_table import read_labels
from pneumo_ray.errors import LeakageError, ManifestError

__all__ = [
    "CACHE_FIELDS",
    "OPINION_FIELDS",
    "RESERVED_COLUMNS",
    "SCHEMA",
    "SPLITS",
    "apply_labels",
    "count_notes",
    "crossing",
    "fingerprint",
    "read_labels",
    "read_manifest",
    "refuse_leakage",
    "usable",
    "validate",
    "write_manifest",
]

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
were written, and the other columns of the label table."""

CACHE_FIELDS = (pa.field("cache_file", pa.string()), pa.field("cache_row", pa.int32()))
NOTE_FIELD = pa.field("decode_note", pa.string())
"""What of a readable file took no part in its pixels, such as `window_left_one_grey`; null for nothing."""
SHAPE_FIELDS = (pa.field("shape_width", pa.float32()), pa.field("shape_height", pa.float32()))
"""The true shape of an image whose file was squashed, where a table of lungs has it; only the ratio counts."""

CONTRAST_FIELD = pa.field("contrast", pa.float32())
"""Standard deviation of the grey levels of the image at 256 x 256, white being 1; null for failed rows."""

SPAN_FIELD = pa.field("member_span", pa.list_(pa.int64(), 2))
"""Where a member lies in its tar file (`spans.Span`), so that no process searches it; null elsewhere. A table without this
column, of an earlier version say, is read by the names of the members."""

LUNG_FIELDS = (
    pa.field("lung_box", pa.list_(pa.float32(), 4)),
    pa.field("lung_right_box", pa.list_(pa.float32(), 4)),
    pa.field("lung_left_box", pa.list_(pa.float32(), 4)),
    pa.field("lung_area", pa.float32()),
    pa.field("lung_quality", pa.string()),
    pa.field("lung_mask", pa.binary()),
    pa.field("view", pa.string()),
)
"""Where the lungs are, after all other columns; null where none were looked for and for failed rows. Boxes are x0, y0, x1, y1 as
fractions of the image, sides are the patient's, the area is a share of the image. `lung_quality` is "plausible" or why
not (`anatomy.lungs.QUALITIES`); `lung_mask` is a 1-bit PNG of 128 x 128 over the whole image, squashed; `view` is frontal
or doubtful. A table of labels may bring a `view` of its own, which then stays."""

OPINION_FIELDS = (
    pa.field("label_soft", pa.float64()),
    pa.field("label_weight", pa.float64()),
    pa.field("num_readers", pa.int32()),
)
"""The consensus of the readers, where there are readings: the probability of pneumonia (0 or 1 where there is no reading and a label is known),
the weight of that label in training (1 without a stated confidence), and how many readers answered 0 or 1."""

SPLITS = ("train", "val", "test")


def write_manifest(table: pa.Table, uri: str) -> None:
    """Write a manifest, complete or not at all.

    Raises:
        ManifestError: if the table breaks the contract.
        StorageError: if the location cannot be written.
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
    """Check a table against the contract of names.

    Raises:
        ManifestError: naming the first violation.
    """
    missing = [field.name for field in SCHEMA if field.name not in table.column_names]
    if missing:
        raise ManifestError(f"manifest {name} lacks the column(s) {', '.join(missing)}; make it with jobs/prepare.py")
    wrong = [f.name for f in SCHEMA if not _same_kind(table.schema.field(f.name).type, f.type)]
    if SPAN_FIELD.name in table.column_names and not _holds_places(table.schema.field(SPAN_FIELD.name).type):
        wrong.append(SPAN_FIELD.name)
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


def _holds_places(found: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(found) or pa.types.is_list(found) or pa.types.is_large_list(found)
    return pa.types.is_null(found) or (is_list and pa.types.is_integer(found.value_type))


def fingerprint(table: pa.Table) -> str:
    """Return a hash of the columns that training depends on: ids, contents, labels and splits, in order."""
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
    """Return the values of `column` (patient_id or content_sha256) that are in more than one split, sorted."""
    known = table.filter(pc.and_(pc.is_valid(table["split"]), pc.is_valid(table[column])))
    splits = known.group_by(column).aggregate([("split", "count_distinct")])
    return sorted(splits.filter(pc.greater(splits["split_count_distinct"], 1))[column].to_pylist())


def refuse_leakage(table: pa.Table) -> None:
    """Refuse a manifest in which a patient or an exact duplicate is in two splits.

    Raises:
        LeakageError: with the counts and what to do.
    """
    rows = usable(table)
    patients, contents = crossing(rows, "patient_id"), crossing(rows, "content_sha256")
    if patients or contents:
        raise LeakageError(
            f"{len(patients)} patient(s) and {len(contents)} exact duplicate(s) are in more than one split, so the result would be "
            "too good; prepare with --protocol grouped, or give --allow-leakage to train anyway"
        )


def count_notes(notes: Iterable[str | None]) -> dict[str, int]:
    """Return the number of images by what took no part in their pixels, the most frequent first.

    Args:
        notes: values of the column `decode_note`; an image with several notes counts for each.
    """
    return dict(Counter(note for several in notes if several for note in several.split(",")).most_common())
