"""Number of frames of a file, from its header: multi-frame DICOM and TIFF with several pages."""

import re

from pneumo_ray import storage
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.spans import Span
from pneumo_ray.errors import PneumoError
from pneumo_ray.images.decode import inspect_image
from pneumo_ray.images.isolation import Call, unguarded

_HEADER_BYTES = 1 << 20
_SINGLE = re.compile(r"\.(jpe?g|jpe|jfif|pjpeg|pjp|png|webp)$", re.IGNORECASE)


def may_hold_frames(name: str) -> bool:
    """Whether a file of this name can hold more than one frame. (A file with frames in spite of its name fails when it is decoded.)"""
    return not _SINGLE.search(storage.base_name(name))


def count_frames(uri: str, member: str | None, span: Span | None = None, call: Call = unguarded) -> int:
    """Return the number of frames of an image; 1 where the header cannot be read, so that it becomes a failed row.

    Args:
        uri: of its file.
        member: its name in that file, where it is a tar or zip file.
        span: where the listing found it there.
        call: decodes where a file may end the process.
    """
    try:
        if member is None:
            head = storage.read_bytes(uri, _HEADER_BYTES)
            # The pages of a TIFF may lie anywhere, the header of a DICOM lies before its pixels; gzip hides both.
            if len(head) == _HEADER_BYTES and not head.startswith((b"II", b"MM", b"\x1f\x8b")):
                try:
                    return call(inspect_image, head).frames
                except PneumoError:
                    pass
        return call(inspect_image, read_image(uri, member, span)).frames
    except (PneumoError, OSError):
        return 1
