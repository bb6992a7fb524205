"""Tables of labels as people have them: which of their columns mean what.

Columns are found by their meaning (`Label`, `Target`, `Patient ID`, `filename`); one that nearly has such a name is
refused, because labels that are overlooked are wrong labels. No message quotes a cell: it may be text of a report.
"""

import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.csv

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.kermany import SPLIT_FOLDERS
from pneumo_ray.data.table_cells import BLANKS, Columns, clean, read_columns, typed
from pneumo_ray.errors import ManifestError

ROLES: dict[str, tuple[str, ...]] = {
    "image_id": (
        *("imageid", "image", "imagename", "imagefile", "imagefilename", "imagepath", "imageindex", "filename", "file"),
        *("filepath", "path", "img", "imgname", "xrayimagename", "dicomid", "dicom", "sopinstanceuid", "id"),
    ),
    "label": ("label", "labels", "target", "class", "finding", "findings", "groundtruth", "pneumonia"),
    "subtype": ("subtype", "etiology", "aetiology", "pathogen"),
    "patient_id": (
        *(
            "patientid",
            "patient",
            "patientidentifier",
            "patientnumber",
            "patientnum",
            "patientno",
            "patientnr",
            "patientkey",
        ),
        *("patientcode", "patientuid", "subjectid", "subject", "pid", "mrn"),
    ),
    "split": ("split", "subset", "partition", "datasettype", "set"),
}
"""Column of the manifest -> names that mean it, without case, blanks and punctuation, the surest first."""

NUM_BOXES = "num_boxes"
"""Column that takes the place of x, y, width and height in a table of boxes: how many an image has."""

TRUE_SHAPE = ("shape_width", "shape_height")
"""Columns with the width and height of the original, where files were squashed: positive numbers, or nothing."""

_BOX = ("x", "y", "width", "height")
_LABEL_WORDS = {"0": 0, "0.0": 0, "normal": 0, "false": 0, "1": 1, "1.0": 1, "pneumonia": 1, "true": 1}
_NEAR = 0.8
"""Ratio of difflib above which a name counts as a misspelling of another: `lable` and `label` have 0.8."""


def read_labels(uri: str) -> pa.Table:
    """Read a CSV or Parquet table of labels.

    Returns:
        `image_id` (text) and, where the table has them, `label` (int8, 0 or 1), `subtype`, `patient_id` (text) and
        `split` (train, val, test), null where a cell is empty; then its other columns. A row of the table is a row.

    Raises:
        ManifestError: one sentence, if it cannot be read, or the meaning of a column is unclear, or its values do not fit its name.
    """
    found = _without_nameless(read_columns(uri), uri)
    if twice := [name for name, count in Counter(found.names).items() if count > 1]:
        raise ManifestError(
            f"--labels {uri} has {found.names.count(twice[0])} columns of the name {shown(twice[0])}; rename or remove one of them"
        )
    if not found.values or not len(found.values[0]):
        raise ManifestError(f"--labels {uri} has no rows")
    chosen = _assign(found, uri)
    table = {role: _role_values(role, found.values[place], uri) for role, place in chosen.items()}
    rest = [place for place in range(len(found.names)) if place not in chosen.values()]
    metadata = {}
    lower = {found.names[place].lower(): place for place in rest}
    if all(name in lower for name in _BOX):  # a row per box, as in RSNA's stage_2_train_labels.csv
        corners = [found.values[lower[name]] for name in _BOX]
        table[NUM_BOXES] = pa.array(
            [int(all(v.is_valid for v in box)) for box in zip(*corners, strict=True)], pa.int32()
        )
        rest = [place for place in rest if place not in {lower[name] for name in _BOX}]
        metadata["boxes"] = "1"
    names, values = [found.names[place] for place in rest], [found.values[place] for place in rest]
    table |= dict(zip(names, typed(values) if found.is_csv else values, strict=True))
    table |= _true_shape(table, uri)
    log(
        _summary(
            uri, {role: found.names[place] for role, place in chosen.items()}, [*list(metadata and [NUM_BOXES]), *names]
        )
    )
    return pa.table(table).replace_schema_metadata(metadata)


def shown(name: str) -> str:
    """Return a column's name for a message; where there is no header the first row is data, which is not repeated."""
    return repr(name) if re.fullmatch(r"[\w.()/%#-]{1,30}( [\w.()/%#-]{1,30}){0,2}", name) else "(a long name)"


def _summary(uri: str, chosen: dict[str, str], rest: Sequence[str]) -> str:
    parts = [f"{role} from {shown(name)}" if role != name else role for role, name in chosen.items()]
    text = f"--labels {storage.base_name(uri)}: uses {', '.join(parts)}"
    if rest:
        text += f"; carries along {', '.join(map(shown, rest))}"
    if chosen.keys() == {"image_id"}:
        text += "; no column of it is a label, subtype, patient or split, so these stay as the archive has them"
    return text


def _without_nameless(found: Columns, uri: str) -> Columns:
    """Leave out nameless columns that are empty, or count the rows as pandas writes them; refuse others."""
    kept = []
    for place, (name, values) in enumerate(zip(found.names, found.values, strict=True)):
        if name:
            kept.append(place)
        elif values.null_count < len(values):
            numbers = [str(value) for value in values.to_pylist()]
            if numbers not in ([str(k) for k in range(len(values))], [str(k + 1) for k in range(len(values))]):
                raise ManifestError(
                    f"--labels {uri} has values in column {place + 1}, which has no name; name or remove it"
                )
    return Columns([found.names[k] for k in kept], [found.values[k] for k in kept], found.is_csv)


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _speaks_of_label(name: str) -> bool:
    words = re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", name)
    return len(words) > 1 and not {"label", "labels", "pneumonia"}.isdisjoint(word.casefold() for word in words)


def _assign(found: Columns, uri: str) -> dict[str, int]:
    """Return which column serves as what: role -> place.

    Raises:
        ManifestError: if two could, none does although one nearly has the name, or none names the images.
    """
    keys = [_key(name) for name in found.names]
    chosen: dict[str, int] = {}
    for role, meanings in ROLES.items():
        by_name = [[place for place, key in enumerate(keys) if key == meaning] for meaning in meanings]
        if role == "label":  # `Finding Labels`, `is_pneumonia`
            by_name.append([place for place, name in enumerate(found.names) if _speaks_of_label(name)])
        candidates = by_name[0] or [place for places in by_name for place in places]
        if role in ("label", "split") and not by_name[0] and candidates:
            good = [place for place in candidates if _first_wrong(role, found.values[place]) is None]
            if not good:
                name, row = shown(found.names[candidates[0]]), _first_wrong(role, found.values[candidates[0]])
                raise ManifestError(
                    f"--labels {uri} has no column {role}, and its column {name} could be meant but holds something else in row "
                    f"{row}: rename it to {role} and use {_ALLOWED[role]}, or rename it to something that cannot be mistaken"
                )
            candidates = good
        elif not by_name[0]:
            candidates = next(filter(None, by_name), [])
        if len(candidates) > 1:
            names = " and ".join(shown(found.names[place]) for place in candidates[:2])
            raise ManifestError(
                f"--labels {uri} has columns {names}, which could both be {role}; rename or remove one of them"
            )
        if candidates:
            chosen[role] = candidates[0]
    _refuse_near_names(found, keys, chosen, uri)
    if "image_id" not in chosen:
        if "patient_id" not in chosen:
            raise ManifestError(
                f"--labels {uri} has no column image_id; its columns are {', '.join(map(shown, found.names))}"
            )
        chosen = {"image_id": chosen["patient_id"], **chosen}  # as in RSNA's tables, where a patient has one image
    return chosen


def _refuse_near_names(found: Columns, keys: Sequence[str], chosen: dict[str, int], uri: str) -> None:
    """Refuse a column without a role whose name is a misspelling of a role that no column has.

    Args:
        found: the table.
        keys: its names without case, blanks and punctuation.
        chosen: role -> place.
        uri: of the table, for the error message.

    Raises:
        ManifestError: naming the column.
    """
    for place, key in enumerate(keys):
        if place in chosen.values():
            continue
        for role, meanings in ROLES.items():
            if role not in chosen and difflib.get_close_matches(key, meanings[:1], 1, _NEAR):
                raise ManifestError(
                    f"--labels {uri} has a column {shown(found.names[place])} and no column {role}; rename it to {role} "
                    "if that is meant, else to something that cannot be mistaken"
                )


_ALLOWED = {"label": "0 or normal, 1 or pneumonia, or nothing", "split": "train, val or test, or nothing"}


def _first_wrong(role: str, values: pa.Array) -> int | None:
    """Return the row (the header is row 1) of the first cell that a column of this role cannot hold, or None."""
    allowed = _LABEL_WORDS if role == "label" else SPLIT_FOLDERS
    for number, word in enumerate(_words(values), 2):
        if word is not None and word.lower() not in allowed:
            return number
    return None


def _role_values(role: str, values: pa.Array, uri: str) -> pa.Array:
    words = _words(values, () if role == "image_id" else BLANKS)
    if role in ("label", "split"):
        if row := _first_wrong(role, values):
            raise ManifestError(f"--labels {uri} has a {role} in row {row} that is none; give {_ALLOWED[role]}")
        allowed = _LABEL_WORDS if role == "label" else SPLIT_FOLDERS
        return pa.array(
            [None if w is None else allowed[w.lower()] for w in words], pa.int8() if role == "label" else pa.string()
        )
    return pa.array(words, pa.string())


def _true_shape(table: dict[str, pa.Array], uri: str) -> dict[str, pa.Array]:
    """Return the columns of the true shape as numbers, where the table has them.

    Raises:
        ManifestError: if it has one of the two, or a cell that is no positive number.
    """
    given = [name for name in TRUE_SHAPE if name in table]
    if len(given) == 1:
        (other,) = set(TRUE_SHAPE) - set(given)
        raise ManifestError(f"--labels {uri} has a column {given[0]} and no column {other}; give both or neither")
    shape = {}
    for name in given:
        numbers: list[float | None] = []
        for row, word in enumerate(_words(table[name]), 2):
            try:
                number = None if word is None else float(word)
            except ValueError:
                number = math.nan
            if number is not None and not 0 < number < math.inf:
                raise ManifestError(
                    f"--labels {uri} has no positive number in row {row} of its column {name}; give pixels of the original, or "
                    "nothing"
                )
            numbers.append(number)
        shape[name] = pa.array(numbers, pa.float32())
    return shape


def _words(values: pa.Array, blanks: Collection[str] = BLANKS) -> list[str | None]:
    """Return cells as text without blanks around it, None where nothing stands there."""

    def word(value: object) -> str | None:
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():  # as pandas writes whole numbers beside empty cells
            value = int(value)
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        cleaned = clean(text)
        return None if cleaned is None or cleaned.lower() in blanks else cleaned

    return [word(value) for value in values.to_pylist()]
