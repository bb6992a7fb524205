"""Messages of several parts, against RFC 2046 and the email package of the standard library."""

from email import message_from_bytes

import pytest

from pneumo_ray.dicomweb.multipart import BrokenAnswerError, packed, parts_of

CONTENTS = [b"DICM\r\n--\r\n", b"", bytes(range(256)) * 40]


def test_what_is_packed_comes_back():
    content_type, body = packed([(content,) for content in CONTENTS])
    parts = list(parts_of(content_type, body))
    assert [part.content for part in parts] == CONTENTS
    assert {part.content_type for part in parts} == {"application/dicom"}


def test_the_standard_library_reads_what_is_packed():
    content_type, body = packed([(b"o", memoryview(b"ne")), (b"two",)])
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    assert message.get_content_type() == "multipart/related"
    assert [part.get_payload(decode=True) for part in message.get_payload()] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("boundary", "body"),
    [
        ("boundary=q", b"--q\r\n\r\nhello\r\n--q--"),  # a part without a header
        ('boundary="q"; type=x', b"preamble\r\n--q\r\nA: b\r\n\r\nhello\r\n--q--\r\nepilogue"),
        ("BOUNDARY=q", b"--q  \r\nContent-Length: 4\r\n\r\nhello\r\n--q--"),  # a length that is wrong
    ],
)
def test_messages_of_other_servers_are_read(boundary, body):
    assert [part.content for part in parts_of(f"multipart/related; {boundary}", body)] == [b"hello"]


@pytest.mark.parametrize("end", [0, 5, 30, 60, 70])
def test_half_a_message_is_refused(end):
    body = b"--q\r\nContent-Type: application/dicom\r\n\r\n" + b"x" * 40 + b"\r\n--q--\r\n"
    with pytest.raises(BrokenAnswerError):
        list(parts_of("multipart/related; boundary=q", body[:end]))


def test_one_part_is_no_message_of_several():
    with pytest.raises(BrokenAnswerError):
        list(parts_of("application/dicom", b"DICM"))
