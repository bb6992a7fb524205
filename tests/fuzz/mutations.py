"""How a good file becomes a hostile one: seeded, so that number n of a format is the same bytes on every machine.

Blind damage (bits, bytes, cuts, copies, pieces of other formats) finds what nobody thought of. Attacks on fields
(lengths, sizes, counts, numbers in text) find what a checksum or a parser's first look would otherwise keep away, and
so checksums are often put right again afterwards, and compressed content is damaged before it is compressed.
"""

import gzip
import hashlib
import io
import json
import lzma
import re
import struct
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

from pydicom import dcmread

_INTEGERS = [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 129, 254, 255, 256, 257, 511, 512, 1000, 1024, 4096]
_INTEGERS += [9999, 16383, 16384, 20_000, 32767, 32768, 60_000, 65534, 65535, 65536, 1 << 20, 1 << 24, 100_000_000]
_INTEGERS += [(1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1]
_WORDS = [
    b"nan",
    b"inf",
    b"-inf",
    b"1e308",
    b"-1e308",
    b"1e-320",
    b"-1",
    b"0",
    b"1e999",
    b"\\",
    b"1\\2\\3",
    b"%s",
    b"../../../../etc/passwd",
]
_WORDS += [
    b"\xff" * 8,
    b"\x00" * 8,
    b"\xf0\x9f\xab\x81",
    b"\xed\xa0\x80",
    b"MONOCHROME1 ",
    b"PALETTE COLOR",
    b"RGB ",
    b"YBR_FULL_422",
    b"YBR_ICT ",
]
_WORDS += [b"SIGMOID ", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.5", b"99999999999", b"ISO 2022 IR 87"]


def mutate(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Return `data` with one to four mutations, most often one or two.

    Args:
        data: a good file.
        rng: all choices come from it.
        others: files of all formats, for pieces.
    """
    wrapped = rng.random() < 0.5
    data, wrap = _unwrap(data) if wrapped else (data, None)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        operation = rng.choices(
            (_flip, _overwrite, _cut, _copy, _remove, _splice, _integer, _word, _field), (4, 4, 2, 2, 2, 2, 4, 2, 9)
        )[0]
        data = operation(data, rng, others)
    if rng.random() < 0.7:
        data = _put_checksums_right(data)
    return wrap(data) if wrap is not None else data


def _place(data: bytes, rng: Random) -> int:
    """Return a position, in the header half of the time."""
    if not data:
        return 0
    return rng.randrange(min(len(data), 600)) if rng.random() < 0.5 else rng.randrange(len(data))


def _put(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def _flip(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    return _put(data, _place(data, rng), rng.randbytes(rng.choice((1, 1, 1, 2, 4, 16, 100))))


def _cut(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    return data[: rng.randint(0, len(data)) if rng.random() < 0.7 else max(0, len(data) - rng.randint(1, 64))]


def _chunk(data: bytes, rng: Random) -> bytes:
    start = _place(data, rng)
    return data[start : start + rng.choice((1, 4, 12, 64, 512, 4096))]


def _copy(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    place = _place(data, rng)
    return data[:place] + _chunk(data, rng) * rng.choice((1, 1, 2, 30)) + data[place:]


def _remove(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    place = _place(data, rng)
    return data[:place] + data[place + rng.choice((1, 2, 4, 12, 64, 512)) :]


def _splice(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    if rng.random() < 0.4:  # the head of one and the tail of the other
        return data[: _place(data, rng)] + other[_place(other, rng) :]
    place = _place(data, rng)
    piece = _chunk(other, rng)
    return data[:place] + piece + data[place + (len(piece) if rng.random() < 0.5 else 0) :]


def _number(rng: Random, size: int, byte_order: str) -> bytes:
    value = rng.choice(_INTEGERS) if rng.random() < 0.8 else rng.getrandbits(8 * size)
    return (value % (1 << 8 * size)).to_bytes(size, byte_order)  # type: ignore[arg-type]


def _integer(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    return _put(data, _place(data, rng), _number(rng, rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))))


def _word(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    return _put(data, _place(data, rng), rng.choice(_WORDS))


def _field(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Attack one field that the format's reader will believe."""
    fields = _fields(data)
    if not fields:
        return _integer(data, rng, others)
    place, size, kind = rng.choice(fields)
    if kind == "text":
        return _put(data, place, rng.choice(_WORDS)[:size].ljust(size))
    if kind == "octal":
        return _put(data, place, b"%0*o\x00" % (size - 1, rng.choice(_INTEGERS) % 8 ** (size - 1)))
    return _put(data, place, _number(rng, size, kind))


def _fields(data: bytes) -> list[tuple[int, int, str]]:
    """Return place, size and byte order (or `text`, `octal`) of lengths, sizes, counts and numbers in a file."""
    if data.startswith(b"\x89PNG"):
        return [field for start in _chunks_of_png(data) for field in ((start, 4, "big"), (start + 4, 4, "big"))] + [
            (16, 4, "big"),
            (20, 4, "big"),
            *((place, 1, "big") for place in range(24, 29)),
        ]
    if data.startswith(b"\xff\xd8"):
        return _fields_of_jpeg(data)
    if data.startswith((b"II", b"MM")):
        return _fields_of_tiff(data)
    if data.startswith(b"RIFF"):
        places = [match.end() for match in re.finditer(rb"RIFF|VP8X|VP8L|VP8 |ALPH|ANIM|ANMF|ICCP|EXIF", data)]
        return [(place, 4, "little") for place in places] + [
            (place + k, 2, "little") for place in places for k in range(4, 16)
        ]
    if data.startswith((b"PK\x03\x04", b"PK\x01\x02")):
        return _fields_of_zip(data)
    if data[257:262] == b"ustar":
        heads = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
        return [field for place in heads for field in _fields_of_tar(place)]
    if data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return _fields_of_dicom(data)
    return []


def _chunks_of_png(data: bytes) -> list[int]:
    starts, place = [], 8
    while place + 12 <= len(data):
        starts.append(place)
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return starts


def _fields_of_jpeg(data: bytes, base: int = 0) -> list[tuple[int, int, str]]:
    fields: list[tuple[int, int, str]] = []
    place = base + 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        fields += [(place + 1, 1, "big"), (place + 2, 2, "big")]
        fields += [(place + k, 1, "big") for k in range(4, min(2 + length, 24))]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            fields += [(place + 5, 2, "big"), (place + 7, 2, "big")] * 4
        if marker == 0xDA:
            break
        place += 2 + length
    return fields


def _fields_of_tiff(data: bytes) -> list[tuple[int, int, str]]:
    order = "little" if data[:1] == b"I" else "big"
    is_big = b"+" in data[2:4]
    word, count_size, entry = (8, 8, 20) if is_big else (4, 2, 12)
    fields = [(8 if is_big else 4, word, order)]
    place = int.from_bytes(data[fields[0][0] : fields[0][0] + word], order)  # type: ignore[arg-type]
    for _ in range(5):
        count = int.from_bytes(data[place : place + count_size], order)  # type: ignore[arg-type]
        if not place or place + count_size > len(data):
            break
        fields.append((place, count_size, order))
        for number in range(min(count, 30)):
            start = place + count_size + entry * number
            fields += [(start, 2, order), (start + 2, 2, order), (start + 4, word, order)]
            fields += [(start + 4 + word, word, order), (start + 4 + word, 2, order)] * 3
        following = place + count_size + entry * count
        fields.append((following, word, order))
        place = int.from_bytes(data[following : following + word], order)  # type: ignore[arg-type]
    return [field for field in fields if field[0] < len(data)]


def _fields_of_zip(data: bytes) -> list[tuple[int, int, str]]:
    layout = {b"PK\x03\x04": "HHHHHIIIHH", b"PK\x01\x02": "HHHHHHIIIHHHHHII", b"PK\x05\x06": "HHHHIIH"}
    fields = []
    for match in re.finditer(rb"PK(\x03\x04|\x01\x02|\x05\x06)", data):
        place = match.end()
        for letter in layout[match[0]]:
            size = struct.calcsize(letter)
            fields.append((place, size, "little"))
            place += size
    return fields


def _fields_of_tar(place: int) -> list[tuple[int, int, str]]:
    return (
        [(place, 100, "text"), (place + 157, 100, "text"), (place + 156, 1, "text"), (place + 156, 1, "big")]
        + [(place + start, size, "octal") for start, size in ((124, 12), (124, 12), (124, 12), (136, 12), (100, 8))]
        + [(place + 124, 12, "big"), (place + 386, 8, "big"), (place + 345, 40, "text")]
    )


def _fields_of_dicom(data: bytes) -> list[tuple[int, int, str]]:
    """Return lengths and values of the elements: by pydicom where it reads the file, else by their tags."""
    order = "little"
    fields: list[tuple[int, int, str]] = []
    try:
        dataset = dcmread(io.BytesIO(data), force=True)
        order = "little" if dataset.original_encoding[1] in (True, None) else "big"
        for part in (dataset, dataset.file_meta):
            for tag in list(part.keys()):
                element: Any = part.get_item(tag)
                place, length = getattr(element, "value_tell", None), getattr(element, "length", 0)
                if place is None or not isinstance(length, int):
                    continue
                fields += [(place - 2, 2, order), (place - 4, 4, order), (place - 4, 2, order), (place - 8, 4, order)]
                size = min(length, 16) if length != 0xFFFFFFFF else 0
                weight = 4 if tag >> 16 in (0x0028, 0x2050) else 1
                if size in (1, 2, 4, 8):
                    fields += [(place, size, order)] * 2 * weight
                if size:
                    fields += [(place, size, "text")] * weight
    except Exception:
        fields = []
    for match in re.finditer(
        rb"\xfe\xff\x00\xe0|\xfe\xff\x0d\xe0|\x28\x00[\x00-\x10]\x00|\x28\x00.\x30", data[: 1 << 17], re.DOTALL
    ):
        fields += [(match.end(), 4, order), (match.end() + 2, 2, order), (match.end() + 4, 2, order)]
    stream = data.find(b"\xff\xd8\xff")
    if stream > 132:
        fields += _fields_of_jpeg(data, stream)
    stream = data.find(b"\xff\x4f\xff\x51")
    if stream > 132:  # SIZ of a JPEG 2000, and what follows it
        fields += [(stream + k, 4, "big") for k in range(8, 40, 4)] * 2
        fields += [(stream + 40, 2, "big"), *((stream + k, 1, "big") for k in range(42, 110))]
    return [field for field in fields if 0 <= field[0] < len(data)]


def _put_checksums_right(data: bytes) -> bytes:
    changed = bytearray(data)
    if data.startswith(b"\x89PNG"):
        for start in _chunks_of_png(data):
            end = start + 8 + int.from_bytes(data[start : start + 4], "big")
            if end + 4 <= len(data):
                changed[end : end + 4] = zlib.crc32(data[start + 4 : end]).to_bytes(4, "big")
    elif data[257:262] == b"ustar":
        for place in range(0, len(data) - 511, 512):
            if data[place + 257 : place + 262] == b"ustar":
                head = data[place : place + 148] + b" " * 8 + data[place + 156 : place + 512]
                changed[place + 148 : place + 156] = b"%06o\x00 " % sum(head)
    return bytes(changed)


def _unwrap(data: bytes) -> tuple[bytes, Any]:
    """Return what a compressed file holds and how to compress it again; a file of another kind as it is."""
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data), lambda inner: gzip.compress(inner, 1, mtime=0)
    if data.startswith(b"\xfd7zXZ"):
        return lzma.decompress(data), lambda inner: lzma.compress(inner, preset=0)
    if data.startswith(b"\x89PNG"):
        start = data.find(b"IDAT") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        head, tail = data[:start], data[end:]

        def compress(inner: bytes) -> bytes:
            body = b"IDAT" + zlib.compress(inner, 1)
            return head + (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + tail

        return zlib.decompress(data[start + 8 : end - 4]), compress
    start = data.find(b"1.2.840.10008.1.2.1.99", 0, 400)
    if start >= 0 and data[128:132] == b"DICM":
        start = 144 + int.from_bytes(data[140:144], "little")
        head = data[:start]

        def deflate(inner: bytes) -> bytes:
            deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
            return head + deflater.compress(inner) + deflater.flush()

        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:]), deflate
    return data, None


def mutate_bundle(description: bytes, weights: bytes, rng: Random) -> tuple[bytes, bytes]:
    """Return the two files of a bundle, damaged; most often under a hash that fits, as from an attacker who knows it."""
    if rng.random() < 0.4:
        if rng.random() < 0.8:  # the header of safetensors: 8 bytes of length, then JSON
            cut = 8 + int.from_bytes(weights[:8], "little")
            head = mutate(weights[:cut], rng, [description])
            weights = head + weights[cut:]
        else:
            weights = mutate(weights, rng, [description, b"\x80\x04\x95cos\nsystem\n"])
        if rng.random() < 0.2:
            return description, weights
        value = json.loads(description)
    elif rng.random() < 0.4:
        description = mutate(description, rng, [weights[:4096]])
        try:
            value = json.loads(description)
        except (ValueError, RecursionError):
            return description, weights
    else:
        value = json.loads(description)
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = _damaged_value(value, rng)
    if isinstance(value, dict):
        value.pop("hash", None)
        value["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        try:
            canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        except (ValueError, TypeError, RecursionError):
            return description, weights
        value["hash"] = hashlib.sha256(canonical).hexdigest()
    return json.dumps(value).encode(), weights


_VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**70,
    10**400,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    "../../etc/passwd",
]
_VALUES += [
    [],
    {},
    [[]],
    [1, 2, 3],
    [0, 0, 0],
    [1, "x", None],
    {"a": 1},
    "resnet50",
    "vgg16",
    "none",
    "tail",
    "\u0000",
    "9" * 5000,
    ["a", "b"],
]


def _damaged_value(value: Any, rng: Random) -> Any:
    """Return a JSON value with one part of it replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        value = dict(value)
        choice = rng.random()
        if choice < 0.1:
            del value[key]
        elif choice < 0.2:
            value[rng.choice(["surprise", "__class__", "", "weights", "threshold"])] = rng.choice(_VALUES)
        else:
            value[key] = _damaged_value(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.5:
        value = list(value)
        place = rng.randrange(len(value))
        value[place] = _damaged_value(value[place], rng)
        return value
    return rng.choice(_VALUES)
