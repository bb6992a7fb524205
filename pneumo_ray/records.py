"""Records and the JSON that files hold of them.

A record that crosses a module is a frozen dataclass; it becomes plain JSON only where a file is written. Files keep the
names and the order that they have had since their first version, which three kinds of fields allow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

JsonObject = dict[str, Any]
"""A JSON object of a file that another version or another program may have written: the code that reads a value checks it."""
Row = dict[str, Any]
"""A row of an Arrow table as `to_pylist` gives it: the table's schema has the names and the types."""

_NAME, _ABSENT, _INLINE = "json_name", "json_absent", "json_inline"

ABSENT = {_ABSENT: True}
"""Metadata of a field that the file leaves out if it is None."""
INLINE = {_INLINE: True}
"""Metadata of a record whose fields stand among those of the record around it; none of them does if it is None."""


def named(name: str) -> dict[str, str]:
    """Return the metadata of a field that has another name in the file."""
    return {_NAME: name}


def json_of(record: object) -> JsonObject:
    """Return what a file holds of a record.

    Args:
        record: a dataclass; its fields are records, mappings, sequences, or what JSON can hold.

    Raises:
        TypeError: if it is no dataclass.
    """
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        raise TypeError(f"{type(record).__name__} is no record")
    out: JsonObject = {}
    for spec in dataclasses.fields(record):
        value = getattr(record, spec.name)
        if value is None and (_ABSENT in spec.metadata or _INLINE in spec.metadata):
            continue
        if _INLINE in spec.metadata:
            out |= json_of(value)
        else:
            out[spec.metadata.get(_NAME, spec.name)] = _plain(value)
    return out


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return json_of(value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
