"""List the images of an archive, and read one of them: folders, tar and zip files, local or on object storage.

Members of tar and zip files are read in place. Nothing is ever unpacked, so a member named
`../../evil.jpg` is a name like any other.
"""

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

from pyarrow import fs as pafs

from pneumo_ray import storage
from pneumo_ray.errors import ArchiveError, PneumoError
from pneumo_ray.images.decode import EmptyFileError, ImageTooLargeError

MAX_FILE_BYTES = 1 << 29
"""A single image larger than this is refused: a member of a zip file of 1 MB may unpack to a thousand times that."""

REMOTE_BUFFER = 1 << 18
"""Bytes that are read ahead in a tar or zip file on a remote place."""

_TAR = re.compile(r"\.(tar|tgz|tbz2|txz|tar\.(gz|bz2|xz))$", re.IGNORECASE)
_ZIP = re.compile(r"\.zip$", re.IGNORECASE)
_IMAGE = re.compile(r"\.(jpe?g|jpe|png|tiff?|webp|dcm|dicom|ima|bmp|gif)$", re.IGNORECASE)
# A real extension is a dot and a few characters with a letter; DICOM files are often named by a UID such as 1.2.840.1.
_EXTENSION = re.compile(r"\.(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{1,12}$")
_NOT_IMAGES = {"dicomdir", "readme", "license", "licence", "makefile", "thumbs.db"}


@dataclass(frozen=True)
class Entry:
    """One image of an archive, not read yet."""

    image_id: str
    """Unique name: the path below the archive, with forward slashes."""
    uri: str
    """The file that holds it."""
    member: str | None
    """Its name inside a tar or zip file."""
    facts_path: str
    """The path from which label, subtype, patient and split are read: `image_id` below the archive's own name."""
    error: str | None = None
    """Why it cannot be read, if listing already found out (a broken tar or zip file)."""


@dataclass
class ListingCount:
    """What a listing passed over, filled while it runs."""

    ignored: int = 0
    """Files that are not images by their name."""


def list_archives(archives: Sequence[str], count: ListingCount | None = None) -> Iterator[Entry]:
    """Yield every image of the archives, one at a time, in a stable order.

    Args:
        archives: folders, tar or zip files, or single images; local paths or `pyarrow.fs` URIs.
        count: filled with what was passed over.

    Raises:
        ArchiveError: if an archive is missing or cannot be listed at all.
    """
    count = count if count is not None else ListingCount()
    roots = [storage.absolute(archive) for archive in archives]
    for number, root in enumerate(roots):
        for other in roots[:number]:
            one, two = (f"{storage.split_query(uri)[0]}/" for uri in (root, other))
            if one.startswith(two) or two.startswith(one):
                raise ArchiveError(
                    f"--archive {root} and {other} overlap, so images would count twice; give one of them"
                )
    for number, root in enumerate(roots):
        name = storage.base_name(root)
        prefix = ""
        if len(roots) > 1:
            same_before = sum(storage.base_name(other) == name for other in roots[:number])
            prefix = f"{name}~{same_before + 1}/" if same_before else f"{name}/"
        kind = _kind(root)
        if kind == pafs.FileType.Directory:
            files: Iterator[tuple[str, str]] = _walk_local(root) if storage.is_local(root) else _walk_remote(root)
        else:
            files = iter([(name, root)])
        seen: set[str] = set()
        for relative, uri in files:
            in_folder = kind == pafs.FileType.Directory
            for below, member, error in _images_of(relative, uri, in_folder, count):
                identity = prefix + below
                while identity in seen:
                    identity += "~"
                if "\\" in identity:  # two names that are not UTF-8 can become one when their bytes are spelled out
                    seen.add(identity)
                yield Entry(identity, uri, member, f"{name}/{below}", error)


def _kind(root: str) -> pafs.FileType:
    fs, path = storage.filesystem(root)
    try:
        kind = storage.retried("list", root, lambda: fs.get_file_info(path).type)
    except OSError as error:
        raise ArchiveError(f"--archive {root} cannot be read: {error}") from error
    if kind not in (pafs.FileType.Directory, pafs.FileType.File):
        raise ArchiveError(
            f"--archive {root} does not exist; give a folder, a tar or zip file, or a URI such as s3://bucket/path"
        )
    return kind


def _images_of(
    relative: str, uri: str, in_folder: bool, count: ListingCount
) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield (name below the archive, member, error) of one file: itself, or the members of a tar or zip file."""
    if _TAR.search(relative) or _ZIP.search(relative):
        before = f"{relative}/" if in_folder else ""
        index, error = archive_index(uri)
        for member in index:
            if _is_image(member):
                yield before + member, member, None
            else:
                count.ignored += 1
        if error is not None:
            yield relative, None, error
    elif _is_image(relative) or not in_folder:
        yield relative, None, None
    else:
        count.ignored += 1


def _is_image(path: str) -> bool:
    parts = path.split("/")
    name = parts[-1]
    if "__MACOSX" in parts or name.startswith(".") or name.lower() in _NOT_IMAGES:
        return False
    return bool(_IMAGE.search(name)) or not _EXTENSION.search(name)


def _walk_local(root: str) -> Iterator[tuple[str, str]]:
    """Yield (relative path, URI) of the files below a folder; a folder reached twice through links is walked once."""
    visited: set[tuple[int, int]] = set()

    def walk(folder: bytes, relative: str) -> Iterator[tuple[str, str]]:
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ArchiveError(f"folder {storage.uri_of(folder)} cannot be listed: {error.strerror}") from error
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = relative + entry.name.decode("utf-8", "backslashreplace")
            try:
                is_folder = entry.is_dir()
            except OSError:  # a loop of symbolic links: a row that will say so
                is_folder = False
            if is_folder:
                if not entry.name.startswith(b"."):
                    yield from walk(entry.path, name + "/")
            else:
                yield name, storage.uri_of(entry.path)

    path = storage.local_path(root)
    return walk(path if isinstance(path, bytes) else os.fsencode(path), "")


def _walk_remote(root: str) -> Iterator[tuple[str, str]]:
    fs, base = storage.filesystem(root)

    def walk(folder: str, relative: str) -> Iterator[tuple[str, str]]:
        infos = storage.retried("list", root, lambda: fs.get_file_info(pafs.FileSelector(folder)))
        for info in sorted(infos, key=lambda info: str(info.base_name)):
            name = relative + info.base_name
            if info.type == pafs.FileType.Directory:
                yield from walk(info.path, name + "/")
            else:
                yield name, storage.join(root, name)

    return walk(base, "")


def _open(uri: str) -> IO[bytes]:
    if storage.is_local(uri):
        return open(storage.local_path(uri), "rb")
    fs, path = storage.filesystem(uri)
    # A tar file is a chain of small headers, and each of them would be a request.
    return io.BufferedReader(storage.retried("read", uri, lambda: fs.open_input_file(path)), REMOTE_BUFFER)


@lru_cache(maxsize=8)
def _opened(
    uri: str,
) -> tuple[tarfile.TarFile | zipfile.ZipFile, dict[str, tarfile.TarInfo | zipfile.ZipInfo], str | None]:
    """Open a tar or zip file and index its regular members; kept open for the members that follow."""
    index: dict[str, tarfile.TarInfo | zipfile.ZipInfo] = {}
    archive: tarfile.TarFile | zipfile.ZipFile
    error: str | None = None
    copies: dict[str, int] = {}  # counted on, because a search from 2 takes hours in a tar file of one name only

    def add(name: str, info: tarfile.TarInfo | zipfile.ZipInfo) -> None:
        # A tar file may hold two members of one name; both are images, so both get a name.
        name = name.encode("utf-8", "backslashreplace").decode() or "unnamed"
        unique = name
        while unique in index:
            copies[name] = copies.get(name, 1) + 1
            unique = f"{name}#{copies[name]}"
        index[unique] = info

    if _ZIP.search(storage.base_name(uri)):
        archive = zipfile.ZipFile(_open(uri))
        for info in archive.infolist():
            if not info.filename.endswith("/"):
                add(info.filename, info)
    else:
        archive = tarfile.open(fileobj=_open(uri), mode="r:*")  # noqa: SIM115 (kept open for the members that follow)
        try:
            for tar_info in archive:
                # Links lead to other members of the same archive and nowhere else; a dangling one is a failed row.
                if tar_info.isreg() or tar_info.islnk() or tar_info.issym():
                    add(tar_info.name, tar_info)
        except Exception as broken:
            error = f"the archive breaks off: {_reason(broken)}"
    return archive, index, error


def _reason(error: Exception) -> str:
    """Say what tarfile or zipfile stumbled over: on hostile bytes any exception, some of them without a word."""
    return str(error) or type(error).__name__


def archive_index(uri: str) -> tuple[list[str], str | None]:
    """Return the names of the regular members of a tar or zip file, and why it could not be read to its end, if so."""
    try:
        _, index, error = _opened(uri)
    except Exception as broken:
        return [], f"not a readable tar or zip file: {_reason(broken)}"
    return list(index), error


def read_image(uri: str, member: str | None) -> bytes:
    """Return the bytes of one image.

    Raises:
        DecodeError: if it is empty or larger than `MAX_FILE_BYTES`.
        OSError: as the file system reports it.
        ArchiveError: if the tar or zip file around it cannot be read, or has no such member.
    """
    if member is None:
        if storage.is_local(uri) and os.stat(storage.local_path(uri)).st_size > MAX_FILE_BYTES:
            raise ImageTooLargeError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
        data = storage.read_bytes(uri)
    else:
        data = _read_member(uri, member)
    if not data:
        raise EmptyFileError("the file is empty")
    return data


def read_images(places: Sequence[tuple[str, str | None]]) -> Iterator[bytes | PneumoError | OSError]:
    """Yield the bytes of images in the order asked for, or for each the error that `read_image` raises.

    Files in a bucket are read some ahead: each is two requests, which take longer than decoding what they bring.

    Args:
        places: URI and member of each.
    """

    def read(place: tuple[str, str | None]) -> bytes | PneumoError | OSError:
        try:
            return read_image(*place)
        except (PneumoError, OSError) as error:
            return error

    apart = all(member is None and not storage.is_local(uri) for uri, member in places)
    return storage.ahead(read, places) if apart else map(read, places)


def _read_member(uri: str, member: str) -> bytes:
    try:
        data = storage.retried("read", uri, lambda: _member_bytes(uri, member))
    except KeyError as error:
        raise ArchiveError(f"{uri} has no member {member!r}") from error
    except (PneumoError, OSError):
        raise
    except Exception as error:
        raise ArchiveError(f"a member of {uri} cannot be read: {_reason(error)}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"the member is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _member_bytes(uri: str, member: str) -> bytes:
    archive, index, _ = _opened(uri)
    info = index[member]
    if isinstance(archive, zipfile.ZipFile):
        assert isinstance(info, zipfile.ZipInfo)
        with archive.open(info) as stream:
            return _read_limited(stream)
    assert isinstance(info, tarfile.TarInfo)
    extracted = archive.extractfile(info)
    if extracted is None:
        raise ArchiveError(f"member {member!r} of {uri} is a link to something that is not a file")
    return _read_limited(extracted)


def _read_limited(stream: IO[bytes]) -> bytes:
    """Return up to a byte more than `MAX_FILE_BYTES`, whatever size the archive's directory claims.

    In pieces, because zipfile and tarfile hold all of what one call reads twice.
    """
    content = io.BytesIO()
    while content.tell() <= MAX_FILE_BYTES and (
        piece := stream.read(min(1 << 20, MAX_FILE_BYTES + 1 - content.tell()))
    ):
        content.write(piece)
    return content.getvalue()
