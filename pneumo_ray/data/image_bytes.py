"""Read the bytes of one image of an archive: a file, a member of a tar or zip file, or an instance of a PACS, unpacked."""

import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence

from pneumo_ray import storage
from pneumo_ray.data import containers
from pneumo_ray.data.spans import Span
from pneumo_ray.dicomweb.images import AT_ONCE, read_instance
from pneumo_ray.dicomweb.index import is_index
from pneumo_ray.dicomweb.web import ServerError
from pneumo_ray.errors import PneumoError
from pneumo_ray.images.decode import CorruptImageError, EmptyFileError, ImageTooLargeError, TruncatedImageError


def read_image(uri: str, member: str | None, span: Span | None = None) -> bytes:
    """Return the bytes of one image; those of a gzip file around it are unpacked.

    Args:
        uri: of its file, or of the index of a PACS.
        member: its name in that file, where it is a tar or zip file or an index.
        span: where the listing found it there.

    Raises:
        ServerError: if the PACS that has it is not there: no other image can be read either.
        DecodeError: if it is empty or larger than `containers.MAX_FILE_BYTES`, or its gzip file is damaged.
        OSError: as the file system reports it.
        ArchiveError: if the tar or zip file around it cannot be read, or has no such member.
    """
    if member is None:
        if storage.is_local(uri) and os.stat(storage.local_path(uri)).st_size > containers.MAX_FILE_BYTES:
            raise ImageTooLargeError(f"the file is larger than {containers.MAX_FILE_BYTES >> 20} MiB")
        data = storage.read_bytes(uri)
    elif is_index(uri):
        data = read_instance(uri, member, None if span is None else span.start)
    else:
        data = containers.read_member(uri, member, span)
    if data.startswith(b"\x1f\x8b"):
        data = _gunzipped(data)
    if not data:
        raise EmptyFileError("the file is empty")
    return data


def _gunzipped(data: bytes) -> bytes:
    try:
        unpacked = containers.read_limited(gzip.GzipFile(fileobj=io.BytesIO(data)))
    except EOFError:
        raise TruncatedImageError("the gzip file ends early; copy it again from its source") from None
    except (OSError, zlib.error):
        raise CorruptImageError("the gzip file cannot be unpacked; copy it again from its source") from None
    if len(unpacked) > containers.MAX_FILE_BYTES:
        raise ImageTooLargeError(f"the file unpacks to more than {containers.MAX_FILE_BYTES >> 20} MiB")
    return unpacked


read_picture = read_image
"""Name of `read_image` in versions before 0.2, for scripts that use it."""


def read_images(places: Sequence[tuple[str, str | None, Span | None]]) -> Iterator[bytes | PneumoError | OSError]:
    """Yield the bytes of images in the order asked for, or for each the error that `read_image` raises.

    Files in a bucket and instances of a PACS are read ahead: their requests take longer than decoding the file. What is
    asked for several times in a row, as the frames of a file are, is read once.

    Args:
        places: URI, member and span of each.

    Raises:
        ServerError: if the PACS that has one is not there.
    """

    def read(place: tuple[str, str | None, Span | None]) -> bytes | PneumoError | OSError:
        try:
            return read_image(*place)
        except ServerError:
            raise
        except (PneumoError, OSError) as error:
            return error

    runs = [(place, sum(1 for _ in same)) for place, same in itertools.groupby(places)]
    once = [place for place, _ in runs]
    if all(is_index(uri) for uri, _, _ in places):
        contents = storage.ahead(read, once, AT_ONCE)
    elif all(member is None and not storage.is_local(uri) for uri, member, _ in places):
        contents = storage.ahead(read, once)
    else:
        contents = map(read, once)
    for (_, count), content in zip(runs, contents, strict=True):
        yield from itertools.repeat(content, count)
