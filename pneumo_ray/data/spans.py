"""Where a member of a tar file lies, so that a process reads it without going through the file again.

A tar file is a chain of headers: to find one member is to read all headers before it. The process that lists a tar file
passes the place of every member on with its name, and the file is gone through once and not once in a process. In a
compressed tar file the place is that in the unpacked one: a process unpacks what lies before a member and does not search it.
What is read there is checked against name and size, so a file that has changed since is gone through instead.
"""

import io
import re
import tarfile
import zipfile
from collections.abc import Sequence
from typing import IO, NamedTuple, Self

_COPY = re.compile(r"#\d+$")
"""End of the name of a member that another member has as well."""


class Span(NamedTuple):
    """Bytes of a tar file, unpacked: all headers of one member, and its content behind them."""

    start: int
    length: int

    @classmethod
    def of(cls, numbers: Sequence[int] | None) -> Self | None:
        """Return what a table holds of a place, or None where it holds none."""
        return None if numbers is None else cls(*numbers)


def span_of(info: tarfile.TarInfo | zipfile.ZipInfo, most: int) -> Span | None:
    """Return where a member lies; None where that is not enough to read it.

    That is so in a zip file, which has a directory, and for a link or a sparse file.

    Args:
        info: the member.
        most: bytes of a longer member are not looked for.
    """
    if not isinstance(info, tarfile.TarInfo) or not info.isreg() or info.issparse() or info.size > most:
        return None
    return Span(info.offset, info.offset_data + info.size - info.offset)


def read_span(stream: IO[bytes], member: str, span: Span) -> bytes | None:
    """Return the content of a member; None if another or none lies there.

    Args:
        stream: the tar file, unpacked.
        member: its name, as the listing has it.
        span: where the listing found it.
    """
    stream.seek(span.start)
    raw = stream.read(span.length)
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            info = tar.next()
    except tarfile.TarError:
        return None
    if info is None or not info.isreg() or info.offset_data + info.size != len(raw):
        return None
    return raw[info.offset_data :] if member_name(info) in (member, _COPY.sub("", member)) else None


def member_name(info: tarfile.TarInfo | zipfile.ZipInfo) -> str:
    """Return the name of a member as text; bytes that are not UTF-8 are spelled out."""
    raw = info.filename if isinstance(info, zipfile.ZipInfo) else info.name
    return raw.encode("utf-8", "backslashreplace").decode() or "unnamed"
