"""Tar and zip files, read in place: what they hold, and the bytes of one member.

Nothing is ever unpacked, so a member named `../../evil.jpg` is a name like any other. A member is found by its name as
it stands in the file; `names.slashed` makes of it the path that the archive is listed by.
"""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import IO, NamedTuple, cast

from pneumo_ray import storage
from pneumo_ray.data.names import CONTAINER, LOOK_BYTES, Found, Sieve, slashed
from pneumo_ray.data.spans import Span, member_name, read_span, span_of
from pneumo_ray.errors import ArchiveError, PneumoError
from pneumo_ray.images.decode import ImageTooLargeError

MAX_FILE_BYTES = 1 << 29
"""A larger image is refused: a member of a 1 MB zip file may unpack to a thousand times that size."""

REMOTE_BUFFER = 1 << 18
"""Bytes that are read ahead in a tar or zip file on a remote place."""

MAX_ZEROS = 1 << 26
"""Bytes of zeros behind the end of a tar file after which nothing more is looked for."""

_METHODS = {9: "Deflate64", 93: "Zstandard", 97: "WavPack", 98: "PPMd", 99: "AES encryption"}
"""Compression methods of zip files that Python cannot read (APPNOTE.TXT 4.4.5)."""

Member = tuple[tarfile.TarFile | zipfile.ZipFile, tarfile.TarInfo | zipfile.ZipInfo]


def is_container(name: str) -> bool:
    """Whether a file of this name is read as a tar or zip file."""
    return CONTAINER.search(name) is not None


class Listed(NamedTuple):
    """An image in a tar or zip file."""

    path: str
    """By which the archive lists it."""
    member: str | None
    error: str | None = None
    span: Span | None = None
    """Where it lies, if that is enough to read it."""


def list_members(uri: str, sieve: Sieve) -> Iterator[Listed]:
    """Yield every image in a tar or zip file, in its order.

    Where the container ends early, the reason is one more, with an empty path and no member.

    Args:
        uri: of the container.
        sieve: decides by the paths and first bytes, and counts what it passes over.
    """
    seen: set[str] = set()
    try:
        for name, (container, info) in _named(uri):
            path = slashed(name)
            if _is_folder(info):
                sieve.passes_folder(path.rstrip("/"))
                continue
            found = sieve.judge(path)
            if found is None:
                continue
            if isinstance(info, tarfile.TarInfo) and not (info.isreg() or info.islnk() or info.issym()):
                sieve.pass_over("not_a_file")
                continue
            if found is Found.CONTAINER:
                sieve.pass_over("nested_archive")
                continue
            # In passing, because going back in a compressed tar file means to begin again.
            if found is Found.UNSURE and not sieve.passes_bytes(_head(container, info)):
                continue
            while path in seen:  # `a\b.png` beside `a/b.png`
                path += "~"
            seen.add(path)
            yield Listed(path or "unnamed", name, span=span_of(info, MAX_FILE_BYTES))
    except _BrokenOffError as broken:
        yield Listed("", None, f"the archive ends early: {broken}")
    except PneumoError:
        raise
    except Exception as broken:
        yield Listed("", None, f"not a readable tar or zip file: {_reason(broken)}")


def read_member(uri: str, member: str, span: Span | None = None) -> bytes:
    """Return the bytes of a member.

    Args:
        uri: of the container.
        member: its name there.
        span: where the listing found it; None, or a file that has changed, is gone through for it.

    Raises:
        ImageTooLargeError: above `MAX_FILE_BYTES`.
        OSError: as the file system reports it.
        ArchiveError: if it cannot be read, or there is none of this name.
    """
    try:
        data = storage.retried("read", uri, lambda: _member_bytes(uri, member, span))
    except KeyError as error:
        raise ArchiveError(f"{uri} has no member {member!r}") from error
    except (PneumoError, OSError):
        raise
    except Exception as error:
        raise ArchiveError(f"a member of {uri} cannot be read: {_reason(error)}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"the member is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def read_limited(stream: IO[bytes] | gzip.GzipFile) -> bytes:
    """Return at most `MAX_FILE_BYTES` + 1 bytes, whatever size the archive's directory claims.

    Reads in pieces, because zipfile and tarfile hold two copies of the data of one call.
    """
    content = io.BytesIO()
    while content.tell() <= MAX_FILE_BYTES and (
        piece := stream.read(min(1 << 20, MAX_FILE_BYTES + 1 - content.tell()))
    ):
        content.write(piece)
    return content.getvalue()


class _BrokenOffError(Exception):
    """A container whose first members could be listed."""


def _open(uri: str) -> IO[bytes]:
    if storage.is_local(uri):
        return open(storage.local_path(uri), "rb")
    fs, path = storage.filesystem(uri)
    # A tar file is a chain of small headers, and each of them would be a request.
    return io.BufferedReader(storage.retried("read", uri, lambda: fs.open_input_file(path)), REMOTE_BUFFER)


def _named(uri: str) -> Iterator[tuple[str, Member]]:
    """Yield all that a container holds, each under a name of its own."""
    copies: dict[
        str, int
    ] = {}  # the last number is kept: a search from 2 takes hours in a tar file with one repeated name
    taken: set[str] = set()
    match = CONTAINER.search(storage.base_name(uri))
    for container, info in _zip_members(uri) if match and match[1] else _tar_members(uri):
        # A tar file may hold two members of one name; both are images, so both get a name.
        unique = name = member_name(info)
        while unique in taken:
            copies[name] = copies.get(name, 1) + 1
            unique = f"{name}#{copies[name]}"
        taken.add(unique)
        yield unique, (container, info)


def _zip_members(uri: str) -> Iterator[Member]:
    container = zipfile.ZipFile(_open(uri))
    infos = container.infolist()
    yield from ((container, info) for info in infos)
    # Only the last of several zip files one behind the other has a directory that is read.
    stream = container.fp
    if stream is not None and infos and min(info.header_offset for info in infos) > 0:
        stream.seek(0)
        if stream.read(4) == b"PK\x03\x04":
            raise _BrokenOffError(
                "members that its directory does not name stand before the first that it does; unpack it and pack it again"
            )


def _tar_members(uri: str) -> Iterator[Member]:
    """Yield the members of a tar file, and of those that stand behind it (`cat a.tar b.tar`), folders included."""
    container: tarfile.TarFile | None = tarfile.open(fileobj=_open(uri), mode="r:*")  # noqa: SIM115 (kept open)
    try:
        while container is not None:
            for info in container:
                yield container, info
            container = _tar_behind(container)
    except Exception as broken:  # tarfile.ReadError, zlib.error and whatever else hostile bytes make of tarfile
        raise _BrokenOffError(_reason(broken)) from broken


def _tar_behind(container: tarfile.TarFile) -> tarfile.TarFile | None:
    """Return the tar file behind the end of one, which is blocks of zeros, or None.

    tarfile takes the first block that is no header for the end; a damaged header would end the list without a word.

    Raises:
        tarfile.ReadError: if something else stands there.
    """
    stream = container.fileobj
    assert stream is not None
    stream.seek(container.offset)
    zeros = 0
    while zeros <= MAX_ZEROS and (block := stream.read(tarfile.BLOCKSIZE)):
        if block.count(0) == len(block):
            zeros += len(block)
            continue
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise tarfile.ReadError(
                "what follows its members is not a tar header; copy it again from its source"
            ) from None
        stream.seek(stream.tell() - len(block))
        return tarfile.TarFile(fileobj=stream, mode="r")
    return None


def _is_folder(info: tarfile.TarInfo | zipfile.ZipInfo) -> bool:
    if isinstance(info, tarfile.TarInfo):
        return info.isdir()
    return info.filename.endswith(("/", "\\")) and not info.file_size


def _head(container: tarfile.TarFile | zipfile.ZipFile, info: tarfile.TarInfo | zipfile.ZipInfo) -> bytes:
    """Return the first bytes of a member; those of a DICOM file where they cannot be read, so that the row says why."""
    unread = bytes(128) + b"DICM"
    try:
        stream = _stream(container, info)
        return unread if stream is None else stream.read(LOOK_BYTES)
    except storage.RetriesExhaustedError:
        raise
    except Exception:
        return unread


def _stream(container: tarfile.TarFile | zipfile.ZipFile, info: tarfile.TarInfo | zipfile.ZipInfo) -> IO[bytes] | None:
    if isinstance(container, zipfile.ZipFile):
        assert isinstance(info, zipfile.ZipInfo)
        if info.compress_type in _METHODS:
            raise ArchiveError(
                f"the member is compressed with {_METHODS[info.compress_type]} (method {info.compress_type} of zip files), which "
                "is not read; unpack the file with 7-Zip and pack it again with the method Deflate"
            )
        return container.open(info)
    assert isinstance(info, tarfile.TarInfo)
    return container.extractfile(info)


@lru_cache(maxsize=8)
def _index(uri: str) -> dict[str, Member]:
    """Return the members of a container by name; it is kept open for the members that follow."""
    index: dict[str, Member] = {}
    with suppress(_BrokenOffError):  # the listing has a row that says so
        index.update(_named(uri))
    return index


@lru_cache(maxsize=8)
def _opened(uri: str) -> IO[bytes]:
    """Return a tar file, unpacked, and kept open for the members that follow: what is read ahead of one may hold the next."""
    if uri.lower().endswith(".tar"):  # to look whether it is compressed would be a request
        return _open(uri)
    stream = tarfile.open(fileobj=_open(uri), mode="r:*").fileobj  # noqa: SIM115 (kept open)
    return cast(IO[bytes], stream)


def _member_bytes(uri: str, member: str, span: Span | None) -> bytes:
    if span is not None and (content := read_span(_opened(uri), member, span)) is not None:
        return content
    container, info = _index(uri)[member]
    stream = _stream(container, info)
    if stream is None:
        raise ArchiveError(f"member {member!r} of {uri} is a link to something that is not a file")
    with stream:
        return read_limited(stream)


def _reason(error: Exception) -> str:
    """Return the reason of an exception of tarfile or zipfile; on hostile bytes it may be of any type and have no message."""
    return str(error) or type(error).__name__
