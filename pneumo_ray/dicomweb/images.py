"""An archive in a PACS, as other archives are: list its images, and read the bytes of one.

Listing writes the private index; reading needs it. An image is moved (WADO-RS, PS3.18 10.4) as the file that was stored: in
its own transfer syntax, in one request, by the process that decodes it.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.dicomweb.index import SUFFIX, find_instance, written
from pneumo_ray.dicomweb.listing import Missing, find, find_uids, read_uids
from pneumo_ray.dicomweb.multipart import BrokenAnswerError, parts_of
from pneumo_ray.dicomweb.query import asked
from pneumo_ray.dicomweb.server import is_dicomweb
from pneumo_ray.dicomweb.web import Answer, Limits, ResourceError, UnavailableError, Web, web_of
from pneumo_ray.errors import ArchiveError
from pneumo_ray.run_folder import salt_of

AT_ONCE = Limits().at_once
"""Images that a process reads at once."""
_IN_A_ROW = 4
"""Images in a row that no try can get: then the server is in trouble, though it answers searches."""
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True)
class Private:
    """What a job keeps for itself when it lists a PACS."""

    folder: str
    """Where the index goes."""
    salt: bytes | None = None
    """Key of the hash that becomes the name of an image; None takes its SOP Instance UID."""
    uids: tuple[str, ...] = ()
    """Studies, series and instances to list; none lists all that the query of the address asks for."""


@dataclass(frozen=True)
class Image:
    """An image of a PACS, not read yet."""

    name: str
    """A hash of its SOP Instance UID."""
    uri: str
    """The index that has it, whole when all are listed."""
    row: int
    """Where it stands there."""
    frames: int
    error: str | None = None
    """Why it cannot be read, if listing already found out."""


def private_of(
    archives: Sequence[str], out: str, uids: str | None = None, *, keep_identifiers: bool = False
) -> Private | None:
    """Return what a job keeps for itself, in a folder of its own; None where no archive is in a PACS.

    Args:
        archives: of the job.
        out: the job's folder, absolute.
        uids: file that names what is listed (see `read_uids`); None for none.
        keep_identifiers: name images by their SOP Instance UIDs.

    Raises:
        ConfigError: if the file cannot be used.
        StorageError: if the salt cannot be written.
    """
    if not any(map(is_dicomweb, archives)):
        return None
    named = () if uids is None else read_uids(uids)
    storage.require_writable(out)
    return Private(storage.join(out, "_pacs"), None if keep_identifiers else salt_of(out), named)


def list_pacs(address: str, private: Private, passed_over: Counter[str]) -> Iterator[Image]:
    """Yield the images that an address asks for, and one with an error for each UID that is not there.

    Args:
        address: dicomweb+http:// or dicomweb+https://.
        private: where the index goes, and what is listed.
        passed_over: is added to, by the keys of `data.names.REASONS`.

    Raises:
        ServerError: if the server is not there, is no DICOMweb server, or cannot be listed.
        ArchiveError: if it refuses the query, or nothing meets it.
        StorageError: if the index cannot be written.
    """
    server, query = asked(address)
    web = web_of(server)
    if web.is_overheard:
        log(
            f"warning: credentials and images travel without encryption to {web.name}; use dicomweb+https where it speaks it"
        )
    uri = storage.join(private.folder, fingerprint([address, *private.uids], private.salt) + SUFFIX)
    count = 0
    with written(uri, server) as add:
        found = find_uids(web, query, private.uids, passed_over) if private.uids else find(web, query, passed_over)
        for item in found:
            if isinstance(item, Missing):
                yield Image(name_of(item.uid, private.salt), uri, -1, 1, item.reason)
            else:
                name = name_of(item.instance, private.salt)
                yield Image(name, uri, add(name, item), item.frames)
            count += 1
        if not count:
            left_out = (
                f"; {passed_over.total():,} instances were left out by their header" if passed_over.total() else ""
            )
            raise ArchiveError(
                f"{web.name} has no radiograph that --archive asks for ({query.words() or 'everything'}){left_out}"
            )


def read_instance(uri: str, name: str, row: int | None = None) -> bytes:
    """Return the file of an image, as the PACS has stored it.

    Args:
        uri: of the index.
        name: of the image.
        row: where the listing put it.

    Raises:
        ServerError: if the server is not there or refuses the credentials: no other image can be read either.
        ResourceError: if the server is there and does not give this image.
        ArchiveError: if the index does not have it.
    """
    server, where = find_instance(uri, name, row)
    web = web_of(server)
    try:
        return web.get(where.path, accept=_AS_STORED, read=lambda answer: _file(web, answer))
    except UnavailableError as error:
        # An image that no try can get is one row; a server that is not there any more ends the job, which can be continued.
        if web.unanswered >= _IN_A_ROW or not web.is_there():
            raise
        raise ResourceError(f"{error}, and other requests it does answer", 0) from None


def _file(web: Web, answer: Answer) -> bytes:
    kind = answer.content_type.partition(";")[0].strip().lower()
    if kind == "application/dicom":
        return answer.body
    if not kind.startswith("multipart/"):
        raise ResourceError(f"{web.name} answers without a DICOM file", answer.status)
    files = [part.content for part in parts_of(answer.content_type, answer.body) if part.content]
    if len(files) != 1:
        raise BrokenAnswerError(f"an answer has {len(files)} files and not one")
    return files[0]


def name_of(uid: str, salt: bytes | None) -> str:
    """Return the name of an image: an HMAC-SHA256 of a UID, 96 bits in hexadecimal.

    Args:
        uid: SOP Instance UID.
        salt: key; None returns the UID.
    """
    if salt is None:
        return uid
    return "i" + hmac.new(salt, uid.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:24]


def fingerprint(uids: Sequence[str], salt: bytes | None) -> str:
    """Return a hash of a list of UIDs, 48 bits in hexadecimal, by which a job knows it again."""
    return hmac.new(salt or b"", "\n".join(uids).encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:12]
