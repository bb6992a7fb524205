"""The instances of a PACS, listed by searches (QIDO-RS, PS3.18 10.6) page by page; no pixels are moved."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from pydicom.dataset import Dataset

from pneumo_ray import storage
from pneumo_ray.dicomweb.multipart import BrokenAnswerError
from pneumo_ray.dicomweb.query import SEVERAL, Query
from pneumo_ray.dicomweb.seen import Seen
from pneumo_ray.dicomweb.web import JSON, Answer, ResourceError, ServerError, Web
from pneumo_ray.errors import ArchiveError, ConfigError, DecodeError
from pneumo_ray.images.dicom import RADIOGRAPHY, SECONDARY_CAPTURE, check_modality
from pneumo_ray.records import JsonObject

PAGE = 1000
"""Instances that are asked for at once; a server may answer with fewer."""

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_SOP_CLASS, _FRAMES = "00080016", "00280008"
_LEVELS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_SINGLE = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
    SECONDARY_CAPTURE,
)
"""SOP classes of one frame."""
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class Instance:
    """An instance of a PACS: the three UIDs by which it is found."""

    study: str
    series: str
    instance: str
    frames: int = 1

    @property
    def path(self) -> str:
        """Its path below the service root."""
        return f"/studies/{quote(self.study, '')}/series/{quote(self.series, '')}/instances/{quote(self.instance, '')}"


@dataclass(frozen=True)
class Missing:
    """A UID of a list that nothing in the PACS has."""

    uid: str
    reason: str


def find(web: Web, query: Query, passed_over: Counter[str]) -> Iterator[Instance]:
    """Yield the radiographs that a query asks for, each once; without a modality, those of `RADIOGRAPHY`.

    Args:
        web: of the server.
        query: conditions.
        passed_over: is added to, by the keys of `data.names.REASONS`.

    Raises:
        ServerError: if the server is not there, is no DICOMweb server, or cannot be listed.
        ArchiveError: if it refuses the query.
    """
    query = query.or_of("Modality", RADIOGRAPHY)
    seen = Seen()
    for search in query.searches():
        yield from _wanted(web, query, _items(web, search), seen, passed_over)


def find_uids(web: Web, query: Query, uids: Sequence[str], passed_over: Counter[str]) -> Iterator[Instance | Missing]:
    """Yield the radiographs of studies, series and instances that meet a query, each once, in the order of the list.

    Args:
        web: of the server.
        query: conditions.
        uids: of studies, series or instances.
        passed_over: as in `find`.

    Raises:
        ServerError: as `find` does.
        ArchiveError: as `find` does.
    """
    query = query.or_of("Modality", RADIOGRAPHY)
    seen = Seen()
    order = list(_LEVELS)

    def items_of(uid: str) -> list[JsonObject]:
        for level in tuple(order):
            found = [item for search in query.searches() for item in _items(web, [(level, uid), *search])]
            if any(uid in values_of(item, tag) for item in found for tag in (_STUDY, _SERIES, _INSTANCE)):
                order.sort(key=lambda other: other != level)  # a list has UIDs of one kind, mostly
                return found
        return []

    for uid, items in zip(uids, storage.ahead(items_of, uids, web.limits.at_once), strict=True):
        if not items:
            yield Missing(uid, f"the PACS has nothing under this UID with {query.words()}")
        yield from _wanted(web, query, iter(items), seen, passed_over)


def _wanted(
    web: Web, query: Query, items: Iterator[JsonObject], seen: Seen, passed_over: Counter[str]
) -> Iterator[Instance]:
    """Yield the instances among the answers of searches that the query asks for and that are radiographs."""
    for item in items:
        if any(
            (there := values_of(item, SEVERAL[name])) and not {*map(str.upper, there)} & {*map(str.upper, values)}
            for name, values in query.conditions
            if name in SEVERAL and not any(mark in value for value in values for mark in "*?")
        ):
            passed_over["other_header"] += 1  # a server may leave out conditions that it does not know
            continue
        if not _is_radiograph(item):
            passed_over["no_radiograph"] += 1
            continue
        found = _instance(web, item)
        if seen.add(found.instance):
            yield found


def _items(web: Web, search: Sequence[tuple[str, str]]) -> Iterator[JsonObject]:
    """Yield the answers of a search, page by page, until one is empty: a server may give fewer than are asked for."""
    offset, first = 0, None
    while True:
        page = _page(web, [*search, ("limit", str(PAGE)), ("offset", str(offset))])
        uids = [values_of(item, _INSTANCE) for item in page]
        if not page:
            return
        if uids == first:  # the same again: this server knows no offset
            if len(page) == PAGE:
                raise ServerError(
                    f"{web.name} answers with the same {PAGE} instances to every offset, so it cannot be listed; ask for less "
                    "at once, by StudyDate or --uids"
                )
            return
        first = uids if first is None else first
        yield from page
        offset += len(page)


def _page(web: Web, search: Sequence[tuple[str, str]]) -> list[JsonObject]:
    def read(answer: Answer) -> list[JsonObject]:
        if answer.status == 204 or not answer.body:
            return []
        no_dicomweb = ServerError(
            f"{web.name} is no DICOMweb server at this path: it answers a search with {_kind(answer.content_type)}; "
            "the path is often /dicom-web"
        )
        if "json" not in answer.content_type:
            raise no_dicomweb
        found = answer.json()
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise no_dicomweb
        return found

    try:
        return web.get("/instances", search, accept=JSON, read=read)
    except ResourceError as error:
        if error.status in (404, 405, 501):
            raise ServerError(
                f"{web.name} has no search for instances at this path (it answers {error.status}); the path is often /dicom-web"
            ) from None
        raise ArchiveError(f"{error}: it does not grant the search of --archive") from None


def _kind(content_type: str) -> str:
    kind = content_type.partition(";")[0].strip()
    return kind if kind.replace("/", "").replace("-", "").replace("+", "").isalnum() else "something else"


def _instance(web: Web, item: JsonObject) -> Instance:
    uids = [values_of(item, tag) for tag in (_STUDY, _SERIES, _INSTANCE)]
    if not all(uids):
        raise ServerError(f"{web.name} does not name study, series and instance in its answers, so nothing can be read")
    found = Instance(uids[0][0], uids[1][0], uids[2][0])
    frames = _frames(item)
    if frames is None and not {*values_of(item, _SOP_CLASS)} & {*_SINGLE}:
        frames = _frames_by_header(web, found)
    return replace(found, frames=max(1, frames or 1))


def _frames_by_header(web: Web, found: Instance) -> int | None:
    """Return the number of frames by the header of an instance (PS3.18 10.4.1.1.2), where searches do not tell it."""

    def read(answer: Answer) -> int | None:
        items = answer.json()
        return _frames(items[0]) if isinstance(items, list) and items and isinstance(items[0], dict) else None

    try:
        return web.get(f"{found.path}/metadata", accept=JSON, read=read)
    except (ResourceError, BrokenAnswerError):
        return None  # decoding says that it has several


def _frames(item: JsonObject) -> int | None:
    values = values_of(item, _FRAMES)
    return int(values[0]) if values and values[0].isdecimal() else None


def _is_radiograph(item: JsonObject) -> bool:
    """Whether an instance may be a radiograph, by the rule that holds for files."""
    header = Dataset()
    header.SOPClassUID = (values_of(item, _SOP_CLASS) or [""])[0]
    header.Modality = (values_of(item, SEVERAL["Modality"]) or [""])[0]
    try:
        check_modality(header)
    except DecodeError:
        return False
    return True


def values_of(item: JsonObject, tag: str) -> list[str]:
    """Return the values of an element of the JSON model (PS3.18 F.2) as text; none where it has none."""
    element: Any = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [str(value) for value in values if isinstance(value, str | int)] if isinstance(values, list) else []


def read_uids(path: str) -> tuple[str, ...]:
    """Return the UIDs of a file, in order, each once: one in a line, of studies, series or instances.

    Args:
        path: of a text file; what follows a `#` is left out.

    Raises:
        ConfigError: if it cannot be read, or has a line that is no UID, which is not quoted.
    """
    try:
        lines = storage.read_bytes(storage.absolute(path)).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise ConfigError(f"--uids {path} cannot be read: {reason}") from error
    uids: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        if word and not _UID.fullmatch(word):
            raise ConfigError(f"line {number} of --uids {path} is no UID; a line has one, of digits and dots")
        if word:
            uids[word] = None
    if not uids:
        raise ConfigError(f"--uids {path} has no UID in it")
    return tuple(uids)
