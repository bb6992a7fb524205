"""Where objects go: a folder of DICOM files, or a server that takes them by STOW-RS (PS3.18 10.5)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pneumo_ray import storage
from pneumo_ray.dicomweb.listing import values_of
from pneumo_ray.dicomweb.multipart import BrokenAnswerError, packed
from pneumo_ray.dicomweb.server import Server
from pneumo_ray.dicomweb.web import JSON, Answer, ResourceError, Web, web_of
from pneumo_ray.errors import StorageError
from pneumo_ray.pacs.objects import OWN
from pneumo_ray.storage import Pieces

_SERIES_UID, _DESCRIPTION, _INSTANCE_UID, _FAILED = "0020000E", "0008103E", "00080018", "00081198"


@dataclass(frozen=True)
class Study:
    """What a study has already."""

    present: frozenset[str]
    """SOP Instance UIDs of results."""
    has_others: bool = False
    """It has results of another model or config."""


class Outlet(Protocol):
    """Takes objects. It is sent to other processes."""

    def look(self, study: str, series: frozenset[str], instances: frozenset[str], mark: str) -> Study:
        """Return which results a study has.

        Args:
            study: its UID.
            series: UIDs of the series that are to be published.
            instances: UIDs of the objects.
            mark: of the algorithm; results with another one are those of another model or config.
        """
        ...

    def store(self, study: str, files: Mapping[str, Pieces]) -> None:
        """Store DICOM files by their SOP Instance UIDs; the same file may be stored twice.

        Raises:
            StorageError: if it cannot.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A folder, in which an object is a file that is named by its own UID."""

    uri: str

    def look(self, study: str, series: frozenset[str], instances: frozenset[str], mark: str) -> Study:
        """Return which of the instances are there."""
        return Study(frozenset(uid for uid in instances if storage.exists(self._path(uid))))

    def store(self, study: str, files: Mapping[str, Pieces]) -> None:
        """Write each file, whole or not at all."""
        for uid, content in files.items():
            storage.write_bytes(self._path(uid), content, durable=False)

    def prepare(self) -> None:
        """Create the folder, which only its owner may read.

        Raises:
            StorageError: if it cannot be written.
        """
        if storage.is_local(self.uri):
            with suppress(OSError):  # require_writable has the sentence
                os.makedirs(self.uri, mode=0o700, exist_ok=True)
        storage.require_writable(self.uri)

    def _path(self, uid: str) -> str:
        return storage.join(self.uri, f"{uid}.dcm")


@dataclass(frozen=True)
class Pacs:
    """A DICOMweb server."""

    server: Server

    def look(self, study: str, series: frozenset[str], instances: frozenset[str], mark: str) -> Study:
        """Ask for the series of the study, and for the instances of those that are to be published."""
        listed = self._asked(f"/studies/{study}/series", ("SeriesDescription",))
        found = {uid: values_of(one, _DESCRIPTION) for one in listed for uid in values_of(one, _SERIES_UID)}
        others = any(
            words.startswith(OWN) and not words.endswith(mark) for several in found.values() for words in several
        )
        present: set[str] = set()
        for uid in series & found.keys():
            for one in self._asked(f"/studies/{study}/series/{uid}/instances"):
                present.update(values_of(one, _INSTANCE_UID))
        return Study(frozenset(present & instances), others)

    def store(self, study: str, files: Mapping[str, Pieces]) -> None:
        """Send files in one request.

        Raises:
            StorageError: if the server does not take all of them.
        """
        content_type, body = packed(files.values())
        try:
            answer: Answer = self._web.post("/studies", body, content_type=content_type)
        except ResourceError as error:
            raise StorageError(f"{error}, so it takes no results; allow it to store instances") from None
        if failed := _num_failed(answer):
            raise StorageError(f"{self._web.name} took all but {failed} of {len(files)} objects; see its log")

    @property
    def _web(self) -> Web:
        return web_of(self.server)

    def _asked(self, path: str, include: tuple[str, ...] = ()) -> Iterator[Any]:
        """Yield what a search finds; nothing in a study that the server does not have."""
        query = [("includefield", name) for name in include]
        try:
            answer: Answer = self._web.get(path, query, accept=JSON)
        except ResourceError as error:
            if error.status == 404:
                return
            raise
        yield from answer.json()


def _num_failed(answer: Answer) -> int:
    """Return how many instances a server says that it did not store (PS3.18 10.5.3); not every server says so in JSON."""
    try:
        told = answer.json()
    except BrokenAnswerError:
        return 0
    failed = told.get(_FAILED) if isinstance(told, dict) else None
    return len(failed.get("Value", [])) if isinstance(failed, dict) else 0
