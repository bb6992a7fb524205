"""List the images of an archive: folders, tar and zip files, local or on object storage, and a PACS.

An archive of files is the same archive in each of these forms: `names` decides for all of them what is an image, and the
paths below it are the same. In a PACS a search decides, and a hash stands for the path.
"""

import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pyarrow import fs as pafs

from pneumo_ray import storage
from pneumo_ray.data import containers
from pneumo_ray.data.names import LOOK_BYTES, Found, PassedOver, Sieve, litter, slashed
from pneumo_ray.data.spans import Span
from pneumo_ray.dicomweb.images import Private, list_pacs
from pneumo_ray.dicomweb.server import is_dicomweb
from pneumo_ray.errors import ArchiveError

_CHUNK = 512
"""Files of a folder among which those that need a look are read together, ahead where they lie in a bucket."""


@dataclass(frozen=True)
class Entry:
    """One image of an archive, not read yet."""

    image_id: str
    """Unique name: the path below the archive, with forward slashes."""
    uri: str
    """The file that holds it, or the private index of its place in a PACS."""
    member: str | None
    """Its name inside a tar or zip file, or in the index."""
    facts_path: str
    """The path from which label, subtype, patient and split are read: `image_id` below the archive's own name."""
    error: str | None = None
    """Why it cannot be read, if listing already found out (a broken tar or zip file, a folder without permission)."""
    span: Span | None = None
    """Where it lies in a tar file, or its row in the index."""
    frames: int | None = None
    """How many it has, if listing found out."""


@dataclass
class ListingCount:
    """Counts of files that a listing skipped, filled while it runs."""

    passed_over: PassedOver = field(default_factory=PassedOver)
    """How many files and folders, by reason."""

    @property
    def ignored(self) -> int:
        """All of them."""
        return self.passed_over.total()


class _File(NamedTuple):
    """A file of a folder or bucket, or a folder that cannot be listed."""

    path: str
    """Below the archive, from `slashed`."""
    uri: str
    error: str | None = None


def list_archives(
    archives: Sequence[str], count: ListingCount | None = None, private: Private | None = None
) -> Iterator[Entry]:
    """Yield every image of the archives, one at a time, in a stable order.

    A folder below an archive that may not be listed is an entry with an error.

    Args:
        archives: folders, tar or zip files, or single images, local paths or `pyarrow.fs` URIs; or addresses of a PACS.
        count: filled with the number of skipped files.
        private: where the indexes of a PACS go; they are whole when all is listed.

    Raises:
        ArchiveError: if an archive is missing or cannot be listed at all.
        ServerError: if a PACS is not there.
    """
    count = count if count is not None else ListingCount()
    roots = [storage.absolute(archive) for archive in archives]
    for number, root in enumerate(roots):
        for other in roots[:number]:
            one, two = (f"{storage.split_query(uri)[0]}/" for uri in (root, other))
            if one.startswith(two) or two.startswith(one):
                raise ArchiveError(
                    f"--archive {root} and {other} overlap, so images would be counted twice; give one of them"
                )
    for number, root in enumerate(roots):
        name = storage.base_name(root)
        prefix = ""
        if len(roots) > 1:
            same_before = sum(storage.base_name(other) == name for other in roots[:number])
            prefix = f"{name}~{same_before + 1}/" if same_before else f"{name}/"
        if is_dicomweb(root):
            yield from _of_pacs(root, name, prefix, private, count.passed_over)
            continue
        seen: set[str] = set()
        for uri, found in _images(root, name, count.passed_over):
            path = found.path
            identity = prefix + path
            while identity in seen:
                identity += "~"
            # Two names that are not UTF-8 can become one when their bytes are spelled out, and `a\\b` is `a\b`.
            if "\\" in identity or "\\" in uri or "%5C" in uri:
                seen.add(identity)
            yield Entry(identity, uri, found.member, f"{name}/{path}", found.error, found.span)


def _of_pacs(root: str, name: str, prefix: str, private: Private | None, passed_over: PassedOver) -> Iterator[Entry]:
    if private is None:
        raise ArchiveError(f"--archive {root} is a PACS, which is read by jobs that have a folder for its index")
    for image in list_pacs(root, private, passed_over):
        span = None if image.error else Span(image.row, 1)
        facts_path = f"{name}/{image.name}"
        yield Entry(prefix + image.name, image.uri, image.name, facts_path, image.error, span, image.frames)


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


def _images(root: str, name: str, passed_over: PassedOver) -> Iterator[tuple[str, containers.Listed]]:
    """Yield the images of one archive, each behind the URI of its file."""
    if _kind(root) == pafs.FileType.Directory:
        files = _walk_local(root, passed_over) if storage.is_local(root) else _walk_remote(root, passed_over)
        for file, found in _looked_at(files, Sieve(passed_over)):
            if found is Found.CONTAINER:
                for listed in containers.list_members(file.uri, Sieve(passed_over)):
                    path = f"{file.path}/{listed.path}" if listed.path else file.path
                    yield file.uri, listed._replace(path=path)
            else:
                yield file.uri, containers.Listed(file.path, None, file.error)
    elif containers.is_container(name):
        for listed in containers.list_members(root, Sieve(passed_over)):
            yield root, listed._replace(path=listed.path or name)
    else:
        yield root, containers.Listed(name, None)


def _looked_at(files: Iterator[_File], sieve: Sieve) -> Iterator[tuple[_File, Found]]:
    """Yield the images and containers among the files of a folder; those whose names leave it open are looked into."""
    while chunk := list(itertools.islice(files, _CHUNK)):
        found = [Found.IMAGE if file.error else sieve.judge(file.path) for file in chunk]
        unsure = [file.uri for file, verdict in zip(chunk, found, strict=True) if verdict is Found.UNSURE]
        heads = storage.ahead(_head, unsure) if unsure and not storage.is_local(unsure[0]) else map(_head, unsure)
        for file, verdict in zip(chunk, found, strict=True):
            if verdict is Found.UNSURE:
                head = next(heads)
                if head is not None and not sieve.passes_bytes(head):
                    continue
            if verdict is not None:
                yield file, verdict


def _head(uri: str) -> bytes | None:
    """Return the first bytes of a file, or None where it cannot be read, so that it becomes a failed row."""
    try:
        return storage.read_bytes(uri, LOOK_BYTES)
    except storage.RetriesExhaustedError:
        raise
    except OSError:
        return None


def _walk_local(root: str, passed_over: PassedOver) -> Iterator[_File]:
    """Yield the files below a folder; a folder reached twice through links is walked once."""
    visited: set[tuple[int, int]] = set()
    path = storage.local_path(root)
    top = path if isinstance(path, bytes) else os.fsencode(path)

    def walk(folder: bytes, relative: str) -> Iterator[_File]:
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            reason = f"the folder cannot be listed: {error.strerror}"
            if not relative:
                raise ArchiveError(f"--archive {root}: {reason}") from error
            yield _File(relative.rstrip("/"), storage.uri_of(folder), reason)
            return
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = relative + _spelled(entry.name)
            try:
                is_folder = is_special = False
                if not entry.is_file(follow_symlinks=False):  # nearly all are, and that is known without a question
                    is_folder = entry.is_dir()
                    is_special = not is_folder and _is_device(entry)
            except OSError:  # a loop of symbolic links becomes a failed row
                is_folder = is_special = False
            if is_special:
                passed_over["not_a_file"] += 1
            elif not is_folder:
                if b"\\" in entry.name:
                    while os.path.lexists(os.path.join(top, os.fsencode(name))):  # `a\b.png` beside `a/b.png`
                        name += "~"
                yield _File(name, storage.uri_of(entry.path))
            elif out := next(filter(None, map(litter, _spelled(entry.name).split("/"))), None):
                passed_over[out] += 1
            else:
                yield from walk(entry.path, name + "/")

    return walk(top, "")


def _spelled(name: bytes) -> str:
    """Return a local name as text with forward slashes; bytes that are not UTF-8 are spelled out (`\xff`)."""
    if b"\\" in name:
        name = os.fsencode(slashed(os.fsdecode(name)))
    return name.decode("utf-8", "backslashreplace")


def _is_device(entry: os.DirEntry[bytes]) -> bool:
    """Whether it is, or leads to, a device, pipe or socket. A link that leads nowhere is a file that cannot be read."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return False
    return not stat.S_ISREG(os.stat(entry.path).st_mode)


def _walk_remote(root: str, passed_over: PassedOver) -> Iterator[_File]:
    fs, base = storage.filesystem(root)

    def walk(folder: str, raw: str, relative: str) -> Iterator[_File]:
        try:
            infos = storage.retried("list", root, lambda: fs.get_file_info(pafs.FileSelector(folder)))
        except (storage.RefusedError, FileNotFoundError, PermissionError) as error:
            if not relative:
                raise
            yield _File(
                relative.rstrip("/"), storage.join(root, raw.rstrip("/")), f"the folder cannot be listed: {error}"
            )
            return
        for info in sorted(infos, key=lambda info: str(info.base_name)):
            spelled = slashed(info.base_name)
            if info.type != pafs.FileType.Directory:
                while spelled != info.base_name and _is_there(fs, f"{base}/{relative}{spelled}"):
                    spelled += "~"
                yield _File(relative + spelled, storage.join(root, raw + info.base_name))
            elif reason := next(filter(None, map(litter, spelled.split("/"))), None):
                passed_over[reason] += 1
            else:
                yield from walk(info.path, f"{raw}{info.base_name}/", f"{relative}{spelled}/")

    return walk(base, "", "")


def _is_there(fs: pafs.FileSystem, path: str) -> bool:
    return bool(storage.retried("look for", path, lambda: fs.get_file_info(path)).type != pafs.FileType.NotFound)
