"""Bytes -> grey: each expectation comes from the format's arithmetic, from OpenCV, or from NumPy."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pneumo_ray.images import decode, decode_errors, grey_levels
from pneumo_ray.images.decode import (
    MAX_FRAMES,
    CorruptImageError,
    DecodeError,
    EmptyFileError,
    ImageTooLargeError,
    NoPixelsError,
    NotAnImageError,
    TruncatedImageError,
    decode_image,
    inspect_image,
)
from pneumo_ray.images.decode_errors import DEEP_SAMPLES

RADIOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "kermany_fullres"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
QUICK = settings(deadline=None, max_examples=60)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def smooth(height: int = 120, width: int = 160) -> np.ndarray:
    """An image with slow gradients and no symmetry, uint8 [H, W]."""
    y, x = np.mgrid[0:height, 0:width]
    return (127 + 60 * np.sin(x / 17) + 60 * np.cos(y / 11 + x / 40)).astype(np.uint8)


def colour(height: int = 120, width: int = 160) -> Image.Image:
    grey = smooth(height, width)
    return Image.fromarray(np.stack([grey, grey[::-1], 255 - grey[:, ::-1]], axis=-1))


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., :3].astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def nearest_rank_scale(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, [0.5, 99.5], method="inverted_cdf").astype(np.float64)
    if low == high:
        low, high = float(image.min()), float(image.max())
    if low == high:
        return np.zeros(image.shape, np.uint8)
    return np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)


def png(width: int, height: int, *, before: bytes = b"", pixels: bytes = b"") -> bytes:
    """A PNG written by hand, 8-bit grey, whose header may claim any size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff_chain(pages: int) -> bytes:
    """A TIFF of 1 x 1 pages written by hand; each takes 102 bytes."""
    out, offset = bytearray(b"II*\x00" + struct.pack("<I", 8)), 8
    for page in range(pages):
        tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 0), (278, 1), (279, 1)]
        offset += 6 + 12 * len(tags)
        out += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        out += struct.pack("<I", offset if page < pages - 1 else 0)
    return bytes(out)


SAMPLES = {
    "grey jpeg": encode(Image.fromarray(smooth()), "JPEG"),
    "progressive jpeg": encode(colour(), "JPEG", progressive=True),
    "cmyk jpeg": encode(colour().convert("CMYK"), "JPEG"),
    "png": encode(Image.fromarray(smooth()), "PNG"),
    "deep png": encode(Image.fromarray(smooth().astype(np.uint16) * 250), "PNG"),
    "palette png": encode(colour().quantize(32), "PNG", transparency=3),
    "tiff": encode(Image.fromarray(smooth()), "TIFF"),
    "lzw tiff": encode(colour(), "TIFF", compression="tiff_lzw"),
    "deep tiff": encode(Image.fromarray(smooth().astype(np.uint16) * 250), "TIFF"),
    "pages": encode(Image.fromarray(smooth()), "TIFF", save_all=True, append_images=[colour()]),
    "webp": encode(colour(), "WEBP"),
    "lossless webp": encode(colour().convert("RGBA"), "WEBP", lossless=True),
}


MAGIC = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00+", b"RIFF\x20\x00\x00\x00WEBPVP8 "]

# Grey values


def test_rgb_becomes_itu_r_601_luma():
    rgb = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    for file_format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        grey = decode_image(encode(Image.fromarray(rgb), file_format, **options))
        assert np.abs(grey - luma(rgb)).max() <= 0.51


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True}, {"subsampling": 0}])
def test_colour_jpeg_has_the_luma_of_colours(options):
    data = encode(colour(), "JPEG", quality=95, **options)
    rgb = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(decode_image(data) - luma(rgb)).mean() < 1.0


@pytest.mark.parametrize("transform", [0, 2])
def test_adobe_cmyk_is_inverted_like_opencv(transform):
    """Adobe writes inverted inks; byte 11 of its marker says whether three of them are YCbCr (YCCK)."""
    data = bytearray(encode(colour().convert("CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = transform
    bgr = cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decode_image(bytes(data)) - luma(bgr[..., ::-1])).mean() < 2.0


def test_cmyk_paper_is_white_ink_is_black():
    for ink, grey in (((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((255, 255, 255, 0), 0)):
        data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        assert np.abs(decode_image(data).astype(int) - grey).max() <= 1


def test_palette_becomes_the_luma_of_its_colours():
    indexed = colour().quantize(16)
    table = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
    grey = decode_image(encode(indexed, "PNG"))
    assert np.abs(grey - luma(table[np.asarray(indexed)])).max() <= 0.51


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_over_black(mode):
    image = colour().convert(mode)
    alpha = smooth()[::-1]
    image.putalpha(Image.fromarray(alpha))
    expected = luma(np.asarray(image.convert("RGB"))) * alpha / 255
    assert np.abs(decode_image(encode(image, "PNG")) - expected).max() <= 1.01


def test_transparent_palette_entries_are_black():
    indexed = colour().quantize(8)
    grey = decode_image(encode(indexed, "PNG", transparency=3))
    opaque = decode_image(encode(indexed, "PNG"))
    hole = np.asarray(indexed) == 3
    assert hole.any()
    assert not grey[hole].any()
    assert np.array_equal(grey[~hole], opaque[~hole])


def test_one_bit_is_black_and_white():
    bits = smooth() > 127
    for file_format, options in (("PNG", {}), ("TIFF", {"compression": "group4"})):
        assert np.array_equal(decode_image(encode(Image.fromarray(bits), file_format, **options)), bits * np.uint8(255))


@QUICK
@given(arrays(np.uint16, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 65535)))
def test_16_bit_scales_between_nearest_rank_percentiles(image):
    for file_format in ("PNG", "TIFF"):
        assert np.array_equal(decode_image(encode(Image.fromarray(image), file_format)), nearest_rank_scale(image))


def test_a_bright_marker_does_not_darken_16_bit():
    image = smooth().astype(np.uint16) * 16
    image[:4, :4] = 65535
    plain = nearest_rank_scale(smooth().astype(np.uint16) * 16)
    assert np.abs(decode_image(encode(Image.fromarray(image), "PNG"))[8:].astype(int) - plain[8:]).max() <= 3


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_tiff_is_scaled_like_16_bit(dtype):
    image = smooth().astype(dtype) * 1000 - 50_000
    assert np.array_equal(decode_image(encode(Image.fromarray(image), "TIFF")), nearest_rank_scale(image))


def test_values_that_are_not_finite_count_as_zero():
    image = smooth().astype(np.float32)
    holes = image.copy()
    for k, value in enumerate([np.nan, np.inf, -np.inf]):
        holes[10 * k : 10 * k + 5], image[10 * k : 10 * k + 5] = value, 0
    assert np.array_equal(decode_image(encode(Image.fromarray(holes), "TIFF")), nearest_rank_scale(image))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_constant_is_black_a_lone_pixel_white():
    image = np.full((40, 40), 777, np.uint16)
    assert not decode_image(encode(Image.fromarray(image), "PNG")).any()
    image[3, 4] = 779  # less than 0.5 % of the pixels: both percentiles are 777
    grey = decode_image(encode(Image.fromarray(image), "PNG"))
    assert grey[3, 4] == 255
    assert grey.sum() == 255


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_min_is_white_tiff_is_a_negative(depth):
    image = smooth().astype(depth) * (250 if depth is np.uint16 else 1)
    data = encode(Image.fromarray(image), "TIFF")
    tag = struct.pack("<HHI", 262, 3, 1)
    negative = data.replace(tag + struct.pack("<I", 1), tag + struct.pack("<I", 0))
    assert negative != data
    assert np.array_equal(decode_image(negative), 255 - decode_image(data))


# Geometry


@pytest.mark.parametrize("min_size", [None, 30])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone(file_format, min_size):
    """Orientation says where row 0 and column 0 of the stored image lie in the upright one (EXIF 2.3, table 6)."""
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    upright = smooth(128, 160)
    for orientation, store in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.fromarray(np.ascontiguousarray(store(upright))), file_format, exif=exif)
        grey = decode_image(data, min_size=min_size)
        expected = cv2.resize(upright, grey.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(grey.astype(int) - expected).mean() < 3, orientation
        if min_size is None:
            assert grey.shape == (inspect_image(data).height, inspect_image(data).width)


def test_broken_exif_does_not_lose_a_good_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(smooth()), "JPEG", exif=exif)
    start = data.index(b"Exif\x00\x00") + 6
    broken = data[:start] + b"\xff" * 12 + data[start + 12 :]
    assert decode_image(broken).shape == smooth().shape


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 300))
def test_draft_keeps_min_size_and_never_enlarges(height, width, min_size):
    data = encode(Image.new("L", (width, height), 90), "JPEG")
    grey = decode_image(data, min_size=min_size)
    for side, full in zip(grey.shape, (height, width), strict=True):
        assert min(min_size, full) <= side <= full
    factor = min(height, width) // min_size
    assert max(grey.shape) <= -(-max(height, width) // (1 << min(3, max(factor, 1).bit_length() - 1)))


@pytest.mark.parametrize("min_size", [60, 30, 16])
def test_draft_approximates_area_averaging(min_size):
    for mode in ("L", "RGB", "CMYK"):
        data = encode(colour(240, 320).convert(mode), "JPEG", quality=95)
        full, small = decode_image(data), decode_image(data, min_size=min_size)
        assert small.size < full.size / 8
        averaged = cv2.resize(full, small.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - averaged).mean() < 1.5


def test_min_size_must_be_positive():
    with pytest.raises(ValueError, match="min_size"):
        decode_image(SAMPLES["grey jpeg"], min_size=0)


def test_only_tiff_has_pages():
    pages = [np.full((10 + k, 20), 40 * k, np.uint8) for k in range(4)]
    images = [Image.fromarray(page) for page in pages]
    tiff = encode(images[0], "TIFF", save_all=True, append_images=images[1:])
    assert inspect_image(tiff).frames == 4
    for k, page in enumerate(pages):
        assert np.array_equal(decode_image(tiff, frame=k), page)
    animated = encode(images[0], "WEBP", save_all=True, append_images=[Image.fromarray(pages[0] + 9)])
    assert inspect_image(animated).frames == 1
    for data, frame in ((tiff, 4), (tiff, -1), (animated, 1), (SAMPLES["grey jpeg"], 1)):
        with pytest.raises(NoPixelsError, match="frame"):
            decode_image(data, frame=frame)


@pytest.mark.parametrize("name", SAMPLES)
def test_header_and_image_agree(name):
    info, grey = inspect_image(SAMPLES[name]), decode_image(SAMPLES[name])
    assert grey.shape == (info.height, info.width) == (120, 160)
    assert grey.dtype == np.uint8
    assert grey.flags.c_contiguous
    assert grey.flags.writeable
    assert info.patient_key is None


def test_inspect_names_format_and_mode():
    expected = {
        "grey jpeg": ("JPEG", "L"),
        "progressive jpeg": ("JPEG", "RGB"),
        "cmyk jpeg": ("JPEG", "CMYK"),
        "deep png": ("PNG", "I;16"),
        "palette png": ("PNG", "P"),
        "lzw tiff": ("TIFF", "RGB"),
        "webp": ("WEBP", "RGB"),
    }
    for name, pair in expected.items():
        info = inspect_image(SAMPLES[name])
        assert (info.format, info.mode) == pair


# Refusals


def test_each_cause_has_its_own_kind():
    causes = [cause for cause in vars(decode).values() if isinstance(cause, type) and issubclass(cause, DecodeError)]
    kinds = "corrupt decode empty no_pixels not_an_image too_large truncated unsupported_syntax wrong_modality"
    assert sorted(cause.kind for cause in causes) == kinds.split()


@pytest.mark.parametrize("read", [decode_image, inspect_image])
def test_other_formats_are_not_images(read):
    with pytest.raises(EmptyFileError):
        read(b"")
    image = Image.fromarray(smooth())
    others = [encode(image, file_format) for file_format in ("GIF", "BMP", "PPM", "PDF", "ICO", "JPEG2000")]
    for data in [*others, b"\x00" * 500, b"patient,label\n1,0\n", b"\xff\xd8", b"RIFF\x00\x00\x00\x00WAVEfmt "]:
        with pytest.raises(NotAnImageError):
            read(data)


@pytest.mark.parametrize("read", [decode_image, inspect_image])
def test_bombs_are_refused_by_their_header(read):
    """Decoding any of them would run into the memory limit or pytest's timeout."""
    webp = bytearray(encode(colour(), "WEBP", save_all=True, append_images=[Image.fromarray(smooth())]))
    webp[24:30] = b"\xff\x3f\x00\xff\x3f\x00"  # canvas of VP8X: 16384 x 16384
    huge_tiff = tiff_chain(1).replace(struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 10**9))
    text = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(50_000_000)))
    profile = chunk(b"iCCP", b"k\x00\x00" + zlib.compress(bytes(50_000_000)))
    many_texts = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(1_000_000))) * 100
    bombs = {
        "png": png(100_000, 100_000),
        "just above the limit": png(8_000, 10_001),
        "webp": bytes(webp),
        "tiff": huge_tiff,
        "pages": tiff_chain(20 * MAX_FRAMES),
        "text": png(4, 4, before=text, pixels=bytes(20)),
        "profile": png(4, 4, before=profile, pixels=bytes(20)),
        "many texts": png(4, 4, before=many_texts, pixels=bytes(20)),
    }
    for data in bombs.values():
        with pytest.raises(ImageTooLargeError):
            read(data)


def test_the_limit_itself_is_allowed():
    assert inspect_image(png(8_000, 10_000)).height == 10_000
    assert inspect_image(tiff_chain(MAX_FRAMES)).frames == MAX_FRAMES


def test_the_limit_counts_bands_and_depth(monkeypatch):
    """What a decoder allocates, not what the image shows: a WebP of 34 bytes took 2.4 GB, a float TIFF 5.5."""
    grey = smooth(10, 20)
    glass = colour(10, 20)
    glass.putalpha(Image.fromarray(grey))
    for image, file_format, samples in (
        (Image.fromarray(grey), "PNG", 1),
        (Image.fromarray(grey.astype(np.uint16)), "TIFF", 1),
        (Image.fromarray(grey.astype(np.float32)), "TIFF", DEEP_SAMPLES),
        (Image.fromarray(grey.astype(np.int32)), "TIFF", DEEP_SAMPLES),
        (colour(10, 20), "JPEG", 3),
        (colour(10, 20).convert("CMYK"), "JPEG", 4),
        (glass, "WEBP", 4),
    ):
        data = encode(image, file_format)
        for read in (inspect_image, decode_image):
            monkeypatch.setattr(decode_errors, "MAX_SAMPLES", 200 * samples)
            read(data)
            monkeypatch.setattr(decode_errors, "MAX_SAMPLES", 200 * samples - 1)
            with pytest.raises(ImageTooLargeError):
                read(data)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.uint16, ">u2", np.int16, ">i2", np.uint32, np.int32, np.float32]
)
def test_levels_and_index_restore_the_image(dtype, monkeypatch):
    monkeypatch.setattr(grey_levels, "_COUNTED", 7)
    monkeypatch.setattr(grey_levels, "_LOOKED_UP", 5)
    lowest, highest = (-1e6, 1e6) if np.dtype(dtype).kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    image = np.random.default_rng(0).uniform(lowest, highest, (9, 11)).astype(dtype)
    image[0, :2] = lowest, highest
    levels, index = grey_levels.split_levels(image)
    assert np.array_equal(grey_levels.look_up(levels, index), image)
    assert (np.diff(levels) > 0).all()
    assert np.array_equal(grey_levels.robust_scale(image), nearest_rank_scale(image))


def test_a_jpeg_of_a_thousand_scans_is_refused():
    """Each scan of a progressive JPEG is a pass over all pixels, for a few bytes of file."""
    data = encode(Image.new("L", (64, 64)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageTooLargeError, match="scans"):
        decode_image(data[:-2] + 1000 * scan + data[-2:])


@QUICK
@given(
    st.sampled_from(["grey jpeg", "progressive jpeg", "cmyk jpeg", "png", "deep png", "tiff", "webp"]),
    st.floats(0.5, 0.97),
    st.sampled_from([None, 16]),
)
def test_a_file_cut_in_its_pixels_is_truncated(name, part, min_size):
    data = SAMPLES[name]
    with pytest.raises(TruncatedImageError):
        decode_image(data[: int(part * len(data))], min_size=min_size)


@pytest.mark.parametrize("min_size", [None, 16])
def test_a_jpeg_without_its_end_marker_is_truncated(min_size):
    for missing in (1, 2):
        with pytest.raises(TruncatedImageError):
            decode_image(SAMPLES["grey jpeg"][:-missing], min_size=min_size)


def test_damage_inside_is_corrupt():
    data = bytearray(SAMPLES["png"])
    start = data.index(b"IDAT") + 20
    data[start : start + 200] = bytes(200)
    with pytest.raises(CorruptImageError):
        decode_image(bytes(data))


@QUICK
@given(st.sampled_from(MAGIC), st.binary(max_size=400))
def test_random_bytes_raise_only_decode_errors(magic, tail):
    for read in (decode_image, inspect_image):
        with pytest.raises(DecodeError):
            read(magic + tail)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.booleans()), min_size=1, max_size=6),
    st.floats(0.01, 1.5),
)
def test_damaged_files_decode_or_raise_a_decode_error(name, changes, kept):
    data = bytearray(SAMPLES[name])
    for place, value, in_header in changes:
        data[int(place * min(len(data) - 1, 300 if in_header else len(data)))] = value
    data = bytes(data[: max(1, int(kept * len(data)))])
    for read in (inspect_image, decode_image, lambda data: decode_image(data, min_size=32)):
        try:
            result = read(data)
        except DecodeError:
            continue
        assert read is inspect_image or (result.ndim == 2 and result.dtype == np.uint8)


def test_real_radiographs_have_the_claimed_size():
    files = sorted(RADIOGRAPHS.glob("*/*"))[::16]
    if not files:
        pytest.skip(f"no radiographs in {RADIOGRAPHS}")
    for file in files:
        data = file.read_bytes()
        info, full, small = inspect_image(data), decode_image(data), decode_image(data, min_size=256)
        assert full.shape == (info.height, info.width)
        assert min(small.shape) >= min(256, *full.shape)
        averaged = cv2.resize(full, small.shape[::-1], interpolation=cv2.INTER_AREA)
        assert (
            np.abs(small.astype(int) - averaged).mean() < 3
        )  # noise: the scaled DCT is a little sharper than averaging
