"""16-bit colour: what was saved as grey, as colour of equal channels, or with an opaque alpha is one image."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pneumo_ray.images.decode import (
    DecodeError,
    ImageTooLargeError,
    UnsupportedSyntaxError,
    decode_image,
    inspect_image,
)

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels -> colour type of a PNG (PNG specification, 11.2.2)."""


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(values: np.ndarray, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits written by hand, from uint16 [H, W] or [H, W, channels]; Pillow cannot write it."""
    channels = values.shape[2] if values.ndim == 3 else 1
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, COLOUR_TYPES[channels], 0, 0, 0)
    raw = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def tiff(pages: list[np.ndarray], order: str = "<", orientation: int = 1, planar: int = 1, alpha: int = 2) -> bytes:
    """An uncompressed TIFF of 16-bit RGB or RGBA pages, uint16 [H, W, channels], written by hand."""
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8))
    for number, page in enumerate(pages):
        rows, columns, channels = page.shape
        planes = [page] if planar == 1 else [page[..., k] for k in range(channels)]
        data = [plane.astype(order + "u2").tobytes() for plane in planes]
        tags: list[tuple[int, int, list[int]]] = [
            *((256, 4, [columns]), (257, 4, [rows]), (258, 3, [16] * channels), (259, 3, [1]), (262, 3, [2])),
            *((273, 4, [0] * len(data)), (274, 3, [orientation]), (277, 3, [channels]), (278, 4, [rows])),
            *((279, 4, [len(part) for part in data]), (284, 3, [planar])),
            *([(338, 3, [alpha])] if channels == 4 else []),
        ]
        start = len(out) + 6 + 12 * len(tags)
        after = bytearray()
        sizes = [len(values) * (2 if kind == 3 else 4) for _, kind, values in tags]
        place = start + sum(size for size in sizes if size > 4)
        out += struct.pack(order + "H", len(tags))
        for (tag, kind, values), size in zip(tags, sizes, strict=True):
            if tag == 273:
                values = list(np.cumsum([place, *map(len, data[:-1])]))
            packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
            out += struct.pack(order + "HHI", tag, kind, len(values))
            out += packed.ljust(4, b"\0") if size <= 4 else struct.pack(order + "I", start + len(after))
            after += packed if size > 4 else b""
        end = place + sum(map(len, data))
        out += struct.pack(order + "I", end if number < len(pages) - 1 else 0) + after + b"".join(data)
    return bytes(out)


def grey12(seed: int = 0) -> np.ndarray:
    """A smooth image of 12 bits without symmetry, uint16 [96, 80]."""
    y, x = np.mgrid[0:96, 0:80]
    return (2048 + 1500 * np.sin(x / 17 + seed) + 500 * np.cos(y / 11 + x / 40)).astype(np.uint16)


def luma16(colour: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma in float64, laid over black by the fourth channel."""
    luma = colour[..., :3] @ np.array([0.299, 0.587, 0.114])
    return luma * colour[..., 3] / 65535 if colour.shape[2] == 4 else luma


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [0.5, 99.5], method="inverted_cdf")
    return 255 * np.clip((values - low) / (high - low), 0, 1)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["LA", "RGB", "RGBA", "tiff RGB", "tiff RGBA", "big-endian tiff RGB"])
def test_grey_saved_as_colour_is_the_same_image(kind, bits):
    grey = (grey12() >> 4 if bits == 8 else grey12().astype(np.uint32) * (1 << bits) // 4096).astype(np.uint16)
    opaque = np.full_like(grey, 65535)
    channels = [grey] * (1 if kind == "LA" else 3) + [opaque] * kind.endswith("A")
    colour = np.dstack(channels)
    data = tiff([colour], ">" if "big" in kind else "<") if "tiff" in kind else png(colour)
    assert np.array_equal(decode_image(data), decode_image(png(grey)))


@pytest.mark.parametrize("write", [png, lambda colour: tiff([colour])], ids=["png", "tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_deep_colour_becomes_luma_over_black(write, channels):
    colour = np.dstack([grey12(k) for k in range(3)] + [grey12(4) * 15] * (channels == 4))
    assert np.abs(decode_image(write(colour)) - scaled(luma16(colour))).max() <= 1


def test_premultiplied_alpha_does_not_count_twice():
    """ExtraSamples 1 is associated alpha (TIFF 6.0, section 18)."""
    colour = np.dstack([grey12(k) for k in range(3)] + [grey12(4) * 15])
    expected = scaled(luma16(colour[..., :3]))
    for alpha in (1, 0):  # 0: a channel of no stated meaning
        assert np.abs(decode_image(tiff([colour], alpha=alpha)) - expected).max() <= 1


def test_one_transparent_colour_is_black():
    colour = np.dstack([grey12()] * 3)
    value = int(colour[50, 40, 0])
    grey = decode_image(png(colour, chunk(b"tRNS", struct.pack(">HHH", value, value, value))))
    hole = colour[..., 0] == value
    assert not grey[hole].any()
    assert grey[~hole].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colour_is_turned_as_pillow_turns_it(orientation):
    """Pillow's own turning of the same file read with 8 bits, which is tested against EXIF's table elsewhere."""
    colour = np.dstack([grey12() * 16] * 3)
    data = tiff([colour], orientation=orientation)
    turned = np.asarray(Image.open(io.BytesIO(data)).convert("L"), float)
    grey = decode_image(data)
    assert grey.shape == turned.shape == (inspect_image(data).height, inspect_image(data).width)
    assert np.corrcoef(grey.ravel(), turned.ravel())[0, 1] > 0.99


def test_every_page_of_deep_colour_is_its_own():
    pages = [np.dstack([grey12(k)] * 3) for k in range(3)]
    data = tiff(pages)
    assert inspect_image(data).frames == 3
    for k, page in enumerate(pages):
        assert np.array_equal(decode_image(data, frame=k), decode_image(png(page[..., 0])))


def test_separate_planes_are_refused_and_not_read_wrong():
    """OpenCV reads the planes one behind the other as if they were pixels."""
    with pytest.raises(UnsupportedSyntaxError, match="one plane"):
        decode_image(tiff([np.dstack([grey12()] * 3)], planar=2))


@pytest.mark.parametrize("write", [png, lambda colour: tiff([colour])], ids=["png", "tiff"])
def test_damaged_deep_colour_has_its_own_error(write):
    data = write(np.dstack([grey12(k) for k in range(3)]))
    for cut in (len(data) // 3, len(data) // 2, len(data) - 2000):
        with pytest.raises(DecodeError):
            decode_image(data[:cut])


def test_large_deep_colour_is_refused_by_header():
    data = png(np.dstack([grey12()] * 3))
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 16, 2, 0, 0, 0)
    with pytest.raises(ImageTooLargeError):
        decode_image(data[:8] + chunk(b"IHDR", header) + data[33:])


def test_opencv_is_given_the_pixels_alone(monkeypatch):
    """It allocates the length that any chunk claims: 2 GB for a file of 4 kB."""
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 900
    data = cv2.imencode(".png", np.dstack([grey] * 3))[1].tobytes()
    text = struct.pack(">I", 3) + b"tEXta\0b" + struct.pack(">I", zlib.crc32(b"tEXta\0b"))
    given = []
    decode = cv2.imdecodemulti
    monkeypatch.setattr(cv2, "imdecodemulti", lambda raw, *a, **k: given.append(raw.tobytes()) or decode(raw, *a, **k))
    for end in (data[-12:], b""):
        assert np.array_equal(decode_image(data[:-12] + text + end), decode_image(data))
    assert not any(b"tEXt" in content for content in given)
    with pytest.raises(DecodeError):
        decode_image(data[:33] + struct.pack(">I", 0x7FFFFFF0) + text[4:] + data[33:])
    assert not any(b"tEXt" in content for content in given)
