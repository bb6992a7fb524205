"""Files on local disks and any `pyarrow.fs` URI, read and written the same way."""

from pneumo_ray.storage.addresses import absolute, base_name, is_local, join, local_path, parent, split_query, uri_of
from pneumo_ray.storage.files import (
    Pieces,
    atomic_file,
    exists,
    list_files,
    read_bytes,
    remove,
    require_writable,
    write_bytes,
    write_csv,
    write_json,
)
from pneumo_ray.storage.remote import (
    FIRST_WAIT,
    LONGEST_WAIT,
    TRIES,
    RefusedError,
    RetriesExhaustedError,
    filesystem,
    retried,
)
from pneumo_ray.storage.tables import READ_AHEAD, ahead, read_table, read_tables, write_table

__all__ = [
    "FIRST_WAIT",
    "LONGEST_WAIT",
    "READ_AHEAD",
    "TRIES",
    "Pieces",
    "RefusedError",
    "RetriesExhaustedError",
    "absolute",
    "ahead",
    "atomic_file",
    "base_name",
    "exists",
    "filesystem",
    "is_local",
    "join",
    "list_files",
    "local_path",
    "parent",
    "read_bytes",
    "read_table",
    "read_tables",
    "remove",
    "require_writable",
    "retried",
    "split_query",
    "uri_of",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_table",
]
