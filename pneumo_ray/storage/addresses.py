"""Paths and URIs as text."""

import os
from urllib.parse import quote, unquote_to_bytes


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine (a plain path or a `file://` URI)."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> bytes | str:
    """Return the path behind a local URI, as bytes where the name is not valid UTF-8."""
    if uri.startswith("file://"):
        return unquote_to_bytes(uri.removeprefix("file://"))
    return os.path.abspath(uri)


def uri_of(path: bytes) -> str:
    """Return the URI of a local path: the path itself, or `file://` with escapes if it is not valid UTF-8."""
    try:
        return path.decode("utf-8")
    except UnicodeDecodeError:
        return "file://" + quote(path)


def absolute(uri: str) -> str:
    """Return an absolute `uri`, independent of the working directory."""
    if uri.startswith("file://"):
        return uri_of(os.fsencode(local_path(uri))).rstrip("/")
    return uri.rstrip("/") if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def base_name(uri: str) -> str:
    """Return the last name of a path or URI."""
    return split_query(uri)[0].rstrip("/").rsplit("/", 1)[-1]


def split_query(uri: str) -> tuple[str, str]:
    """Return a path or URI without its query, and the query with its question mark, empty where there is none."""
    address, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return address, mark + query


def parent(uri: str) -> str:
    """Return the folder that holds the file or folder at a path or URI; a URI keeps its query."""
    address, query = split_query(uri)
    return address.rstrip("/").rpartition("/")[0] + query


def join(base: str, *parts: str) -> str:
    """Join names to a path or URI; in a URI the names are escaped and its query (`?endpoint_override=...`) stays last."""
    if "://" not in base:
        return "/".join([base.rstrip("/"), *parts])
    address, query = split_query(base)
    return "/".join([address.rstrip("/"), *map(quote, parts)]) + query
