"""Messages of several parts (multipart/related, RFC 2046 and 2387), in which DICOMweb packs instances."""

import re
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pneumo_ray.storage import Pieces

_END_OF_HEADER = b"\r\n\r\n"


class BrokenAnswerError(Exception):
    """An answer that cannot be whole."""


class Part(NamedTuple):
    """One part of a message."""

    content_type: str
    """In lower case, without parameters; empty where the part has none."""
    content: bytes


def parts_of(content_type: str, body: bytes) -> Iterator[Part]:
    """Yield the parts of a message.

    Args:
        content_type: its header `Content-Type`, with the boundary.
        body: the message.

    Raises:
        BrokenAnswerError: if it is no message of several parts, or ends early.
    """
    match = re.search(r'boundary\s*=\s*(?:"([^"]+)"|([^\s;]+))', content_type, re.IGNORECASE)
    if match is None:
        raise BrokenAnswerError("an answer of several parts names no boundary")
    delimiter = b"--" + (match[1] or match[2]).encode("latin-1", "replace")
    position = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if position == 1:
        raise BrokenAnswerError("an answer of several parts has none")
    while True:
        position += len(delimiter)
        if body.startswith(b"--", position):
            return
        line_end = body.find(b"\r\n", position)
        # The empty line that ends the header may be the end of the boundary's own line: then there is no header.
        end_of_header = -1 if line_end < 0 else body.find(_END_OF_HEADER, line_end)
        if end_of_header < 0:
            raise BrokenAnswerError("an answer ends early")
        header = body[line_end + 2 : max(line_end + 2, end_of_header)].decode("latin-1")
        fields = {name.strip().lower(): value.strip() for name, _, value in map(_halves, header.split("\r\n"))}
        start = end_of_header + len(_END_OF_HEADER)
        stop = _end_of_part(body, start, b"\r\n" + delimiter, fields.get("content-length", ""))
        yield Part(fields.get("content-type", "").partition(";")[0].strip().lower(), body[start:stop])
        position = stop + 2


def _halves(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _end_of_part(body: bytes, start: int, delimiter: bytes, length: str) -> int:
    """Return where a part ends: by its length, if that is given and true, else at the next boundary."""
    if length.isdecimal() and body.startswith(delimiter, start + int(length)):
        return start + int(length)
    stop = body.find(delimiter, start)
    if stop < 0:
        raise BrokenAnswerError("an answer ends early")
    return stop


def packed(contents: Iterable[Pieces], content_type: str = "application/dicom") -> tuple[str, bytes]:
    """Return a message of several parts: the value of its header `Content-Type`, and its body.

    Args:
        contents: of the parts, each in pieces.
        content_type: of each part.
    """
    boundary = uuid.uuid4().hex
    message: list[bytes | memoryview] = []
    for content in contents:
        header = f"--{boundary}\r\nContent-Type: {content_type}\r\nContent-Length: {sum(map(len, content))}\r\n\r\n"
        message += [header.encode("ascii"), *content, b"\r\n"]
    message.append(f"--{boundary}--\r\n".encode("ascii"))
    return f'multipart/related; type="{content_type}"; boundary={boundary}', b"".join(message)
