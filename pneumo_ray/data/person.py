"""Columns of a manifest about the person on an image: from the DICOM header, else from the columns of a label table."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray.images.dicom_person import capped_age, sex_of, view_of

PERSON_FIELDS = (
    pa.field("age_years", pa.float32()),
    pa.field("sex", pa.string()),
    pa.field("view_position", pa.string()),
    pa.field("manufacturer", pa.string()),
)
"""Never a name, an identifier or a date; ages above 89 are 90."""
_OTHERS = {"age_years": ("age",), "view_position": ("view", "projection")}
"""Columns of label tables that mean the same; `sex` and `manufacturer` have these names there as well."""


def person_columns(manifest: pa.Table) -> dict[str, pa.Array]:
    """Return the columns of `PERSON_FIELDS` of a manifest of any origin, null where nothing is known.

    What the columns of a label table hold that is no age, sex or view position is null, too.
    """
    found = {}
    for spec in PERSON_FIELDS:
        values = pa.nulls(len(manifest), spec.type)
        for name in (spec.name, *_OTHERS.get(spec.name, ()), f"table_{spec.name}"):
            if name in manifest.column_names:
                values = pc.coalesce(values, _read(spec.name, manifest[name].combine_chunks(), spec.type))
        found[spec.name] = values
    return found


def _read(name: str, values: pa.Array, kind: pa.DataType) -> pa.Array:
    read = _READERS[name]
    return pa.array([None if value is None else read(value) for value in values.to_pylist()], kind)


def _age(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return capped_age(number) if np.isfinite(number) else None


_READERS: dict[str, Callable[[object], object]] = {
    "age_years": _age,
    "sex": lambda value: sex_of(str(value)),
    "view_position": lambda value: view_of(str(value)),
    "manufacturer": lambda value: str(value)[:40],
}
