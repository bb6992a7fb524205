"""DICOM to grey: expectations from the formulas of PS3.3 C.11 by hand, and from pydicom's own processing."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_builders import lut, radiograph, ramp, to_bytes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSNearLossless,
)

from pneumo_ray.images.decode import (
    CorruptImageError,
    DecodeError,
    ImageTooLargeError,
    NoPixelsError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedSyntaxError,
    WrongModalityError,
    decode_image,
    inspect_image,
)
from pneumo_ray.images.dicom import check_modality, frame_to_grey, read_dataset

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:pydicom")
NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
# Listed by path: pydicom.data.get_testdata_files asks the network for the files that are not in the package.
FILES = {path.name: path for path in sorted(Path(pydicom.__file__).parent.glob("data/test_files/*")) if path.is_file()}


# The grayscale pipeline


def test_linear_window_by_hand():
    """Centre 100, width 51: (x - 99.5) / 50 + 0.5, so 75 -> 0.01, 99 -> 0.49, 100 -> 0.51, 124 -> 0.99."""
    stored = np.array([[0, 74, 75, 99, 100, 124, 125, 4000]], np.uint16)
    grey = decode_image(to_bytes(radiograph(stored, WindowCenter=100, WindowWidth=51)))
    assert grey.tolist() == [[0, 0, 3, 125, 130, 252, 255, 255]]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_narrowest_linear_window_is_a_threshold():
    """Width 1: x <= centre - 0.5 is black, all else is white."""
    stored = np.array([[98, 99, 100, 101]], np.uint16)
    for center, expected in ((100, [0, 0, 255, 255]), (100.5, [0, 0, 0, 255])):
        grey = decode_image(to_bytes(radiograph(stored, WindowCenter=center, WindowWidth=1)))
        assert grey.tolist() == [expected]


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.int16, (6, 7), elements=st.integers(-2000, 2000)),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.integers(-1500, 1500),
    st.integers(2, 3000),
    st.sampled_from([(1.0, 0.0), (2.5, -100.0), (0.5, 7.0)]),
)
def test_windows_agree_with_pydicom(stored, function, center, width, rescale):
    """It maps a window onto the range that the stored bits can take after rescaling; that range is our 0 .. 255."""
    slope, intercept = rescale
    dataset = radiograph(
        stored,
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction=function,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    shown = apply_windowing(apply_modality_lut(stored, dataset), dataset)
    low, high = np.array([-32768, 32767]) * slope + intercept
    expected = 255 * (shown - low) / (high - low)
    assume(np.ptp(expected) > 1)  # a window that leaves one grey is left out
    assert np.abs(decode_image(to_bytes(dataset)) - expected).max() <= 0.5 + 1e-6


def test_the_window_is_in_rescaled_units():
    """Slope 2 and intercept -100: a window of 101 around 100.5 spans -50.. 150 stored as 25 .. 125."""
    stored = np.arange(200, dtype=np.uint16)[None]
    rescaled = radiograph(stored, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=50.5, WindowWidth=201)
    plain = radiograph(stored, WindowCenter=75.5, WindowWidth=101)
    difference = decode_image(to_bytes(rescaled)).astype(int) - decode_image(to_bytes(plain))
    assert np.abs(difference).max() <= 1


def test_a_negative_slope_turns_the_image_around():
    stored = ramp()
    falling = decode_image(to_bytes(radiograph(stored, RescaleSlope=-1, RescaleIntercept=4095)))
    rising = decode_image(to_bytes(radiograph(stored)))
    assert np.abs(falling.astype(int) - (255 - rising.astype(int))).max() <= 1


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2000, "WindowWidth": 1000}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_monochrome1_is_inverted_once(window, dtype):
    stored = ramp(np.uint16).astype(dtype)
    positive = decode_image(to_bytes(radiograph(stored, **window)))
    for elements in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ):
        assert np.array_equal(decode_image(to_bytes(radiograph(stored, **window, **elements))), 255 - positive)
    same = radiograph(stored, **window, PresentationLUTShape="IDENTITY")
    assert np.array_equal(decode_image(to_bytes(same)), positive)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32])
def test_without_a_window_percentiles_set_the_range(dtype):
    rng = np.random.default_rng(0)
    stored = rng.normal(1500, 300, (80, 90)).astype(dtype)
    stored[0, :5] = 30_000
    low, high = np.percentile(stored, [0.5, 99.5], method="inverted_cdf").astype(float)
    expected = np.rint(255 * np.clip((stored.astype(float) - low) / (high - low), 0, 1))
    assert np.array_equal(decode_image(to_bytes(radiograph(stored))), expected)


def test_a_constant_is_black_its_negative_white():
    stored = np.full((9, 9), 777, np.uint16)
    assert not decode_image(to_bytes(radiograph(stored))).any()
    assert (decode_image(to_bytes(radiograph(stored, PhotometricInterpretation="MONOCHROME1"))) == 255).all()


@pytest.mark.parametrize(
    ("slope", "intercept"), [("nan", "0"), ("inf", "0"), ("1", "-inf"), ("1e308", "0"), ("0", "7")]
)
def test_a_flattening_rescale_is_refused(slope, intercept):
    """It would be scored like an image."""
    with pytest.raises(CorruptImageError, match="rescale"):
        decode_image(to_bytes(radiograph(ramp(), RescaleSlope=slope, RescaleIntercept=intercept)))


@pytest.mark.parametrize("elements", [{}, {"RescaleSlope": 1, "RescaleIntercept": 0}])
def test_8_bit_without_a_window_is_unchanged(elements):
    stored = np.random.default_rng(0).integers(60, 90, (31, 33), dtype=np.uint8)
    assert np.array_equal(decode_image(to_bytes(radiograph(stored, **elements))), stored)


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 100},
        {"WindowCenter": 100, "WindowWidth": "inf"},
        {"WindowCenter": "nan", "WindowWidth": 50},
        {"WindowCenter": 100, "WindowWidth": 50, "VOILUTFunction": "CURVED"},
    ],
)
def test_a_window_that_means_nothing_is_ignored(window):
    assert np.array_equal(
        decode_image(to_bytes(radiograph(ramp(), **window))), decode_image(to_bytes(radiograph(ramp())))
    )


def test_the_first_of_several_windows_counts():
    several = radiograph(ramp(), WindowCenter=[1000, 3000], WindowWidth=[500, 100])
    single = radiograph(ramp(), WindowCenter=1000, WindowWidth=500)
    assert np.array_equal(decode_image(to_bytes(several)), decode_image(to_bytes(single)))


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_voi_lut_wins_over_the_window(syntax):
    """Table of 2000 entries of 12 bits from stored value 500; values outside take the first and last entry."""
    table = [int(4095 * (k / 1999) ** 2) for k in range(2000)]
    dataset = radiograph(ramp(), syntax, VOILUTSequence=Sequence([lut(table, 500, 12)]), WindowCenter=9, WindowWidth=9)
    expected = np.rint(np.array(table)[np.clip(ramp().astype(int) - 500, 0, 1999)] / 4095 * 255)
    grey = decode_image(to_bytes(dataset))
    assert np.array_equal(grey, expected)
    assert np.abs(apply_voi_lut(ramp(), dataset) / 4095 * 255 - grey).max() <= 0.5


def test_an_8_bit_lut_may_have_many_entries():
    table = [k // 16 for k in range(4096)]
    dataset = radiograph(ramp(), VOILUTSequence=Sequence([lut(table, 0, 8)]))
    assert np.array_equal(decode_image(to_bytes(dataset)), ramp() // 16)


@pytest.mark.parametrize("syntax", NATIVE)
def test_lut_words_follow_the_byte_order(syntax):
    item = lut([0], 0, 16)
    item.LUTDescriptor = [4096, 0, 16]
    words = (16 * np.arange(4096)).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    item.add_new("LUTData", "OW", words.tobytes())
    grey = decode_image(to_bytes(radiograph(ramp(), syntax, VOILUTSequence=Sequence([item]))))
    assert np.array_equal(grey, np.rint(16 * ramp().astype(float) / 65535 * 255))


def test_modality_lut_comes_before_the_window():
    table = [4095 - k for k in range(4096)]
    dataset = radiograph(ramp(), ModalityLUTSequence=Sequence([lut(table, 0, 12)]), WindowCenter=1000, WindowWidth=400)
    dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
    mirrored = radiograph(4095 - ramp(), WindowCenter=1000, WindowWidth=400)
    assert np.array_equal(decode_image(to_bytes(dataset)), decode_image(to_bytes(mirrored)))


# Frames, orientation, containers


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 4, 6)])
def test_each_frame_is_its_own_image(syntax, shape):
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = to_bytes(radiograph(frames, syntax))
    assert inspect_image(data).frames == 3
    for k, frame in enumerate(frames):
        assert np.array_equal(decode_image(data, frame=k), frame)
    for k in (-1, 3):
        with pytest.raises(NoPixelsError, match="frame"):
            decode_image(data, frame=k)


def test_encapsulated_frames_are_found():
    dataset = read_dataset(FILES["SC_rgb_rle_2frame.dcm"].read_bytes())
    first, second = pydicom.dcmread(FILES["SC_rgb_rle_2frame.dcm"]).pixel_array
    for k, frame in enumerate((first, second)):
        assert np.abs(frame_to_grey(dataset, k) - frame @ np.array([0.299, 0.587, 0.114])).max() <= 0.51


@pytest.mark.parametrize(
    ("orientation", "flip"),
    [
        (["L", "F"], lambda a: a),
        (["R", "F"], np.fliplr),
        (["L", "H"], np.flipud),
        (["R", "H"], lambda a: np.rot90(a, 2)),
        (["A", "F"], lambda a: a),
        (["F", "L"], lambda a: a),
        (["RA", "FR"], lambda a: a),
        ("RH", lambda a: a),
        ("R", lambda a: a),
        ("", lambda a: a),
    ],
)
def test_the_patients_left_comes_out_on_the_right(orientation, flip):
    stored = np.random.default_rng(0).integers(0, 256, (5, 8), dtype=np.uint8)
    grey = decode_image(to_bytes(radiograph(stored, PatientOrientation=orientation)))
    assert np.array_equal(grey, flip(stored))
    assert grey.flags.c_contiguous
    assert grey.flags.writeable


@pytest.mark.parametrize("syntax", NATIVE)
def test_every_native_syntax_with_and_without_preamble(syntax):
    stored = ramp()
    data = to_bytes(radiograph(stored, syntax, WindowCenter=2048, WindowWidth=4096))
    expected = np.rint(255 * np.clip((stored - 2047.5) / 4095 + 0.5, 0, 1))
    assert np.array_equal(decode_image(data), expected)
    assert np.array_equal(decode_image(data[132:]), expected)
    meta_length = 12 + int.from_bytes(data[140:144], "little")
    bare = data[132 + meta_length :]
    if syntax != DeflatedExplicitVRLittleEndian:
        assert np.array_equal(decode_image(bare), expected)
        assert inspect_image(bare).width == stored.shape[1]


def test_the_preamble_may_look_like_a_tiff():
    data = b"II*\x00" + to_bytes(radiograph(ramp()))[4:]
    assert inspect_image(data).format == "DICOM"
    assert decode_image(data).shape == ramp().shape


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_becomes_luma(photometric):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    dataset = radiograph(rgb[..., 0], SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation=photometric)
    dataset.PixelData = (rgb if photometric == "RGB" else np.asarray(Image.fromarray(rgb).convert("YCbCr"))).tobytes()
    expected = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode_image(to_bytes(dataset)) - expected).max() <= (0.51 if photometric == "RGB" else 1.6)


def test_a_colour_space_without_conversion_is_unsupported():
    dataset = radiograph(np.zeros((8, 8), np.uint8), SamplesPerPixel=3, PlanarConfiguration=0)
    dataset.PixelData = bytes(8 * 8 * 3)
    dataset.PhotometricInterpretation = "YBR_ICT"
    with pytest.raises(UnsupportedSyntaxError, match="photometric"):
        decode_image(to_bytes(dataset))


# pydicom's own files


def test_six_syntaxes_give_one_image():
    names = ["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_padded.dcm"]
    names += ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"]
    images = [frame_to_grey(read_dataset(FILES[name].read_bytes())) for name in names]
    dataset = pydicom.dcmread(FILES["MR_small.dcm"])
    shown = apply_windowing(dataset.pixel_array, dataset)
    assert np.abs(images[0] - 255 * (shown + 32768) / 65535).max() <= 0.5
    for image in images[1:]:
        assert np.array_equal(image, images[0])


@pytest.mark.parametrize("name", FILES)
def test_pydicom_files_decode_or_are_named(name):
    """What pydicom itself turns into pixels, we turn into grey."""
    data = FILES[name].read_bytes()
    for read in (inspect_image, decode_image):
        with contextlib.suppress(DecodeError):
            read(data)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.pixel_array  # noqa: B018
        int(dataset.get("NumberOfFrames") or 1)
    except Exception:
        is_near_lossless = JPEGLSNearLossless.encode() in data[:1024]  # for which pydicom alone has no decoder
        with contextlib.nullcontext() if is_near_lossless else pytest.raises(DecodeError):
            frame_to_grey(read_dataset(data))
    else:
        grey = frame_to_grey(read_dataset(data))
        assert grey.shape == (dataset.Rows, dataset.Columns)
        assert grey.min() < grey.max()


# Refusals


@pytest.mark.parametrize(
    ("modality", "sop_class", "is_accepted"),
    [
        ("CR", "1.2.840.10008.5.1.4.1.1.1", True),
        ("DX", "1.2.840.10008.5.1.4.1.1.1.1", True),
        ("RG", "1.2.840.10008.5.1.4.1.1.7", True),
        ("", "1.2.840.10008.5.1.4.1.1.1", True),
        (None, "1.2.840.10008.5.1.4.1.1.1", True),
        ("OT", "1.2.840.10008.5.1.4.1.1.7", True),
        ("SC", "1.2.840.10008.5.1.4.1.1.7.2", True),
        ("OT", "1.2.840.10008.5.1.4.1.1.77.1.4", False),
        ("CT", "1.2.840.10008.5.1.4.1.1.7", False),
        ("CT", "1.2.840.10008.5.1.4.1.1.2", False),
        ("SEG", "1.2.840.10008.5.1.4.1.1.66.4", False),
    ],
)
def test_only_radiographs_are_accepted(modality, sop_class, is_accepted):
    data = to_bytes(radiograph(ramp(), Modality=modality, SOPClassUID=sop_class))
    if is_accepted:
        assert (decode_image(data).shape == inspect_image(data).mode and False) or decode_image(data).shape == (64, 64)
        return
    for read in (decode_image, inspect_image, lambda data: check_modality(read_dataset(data))):
        with pytest.raises(WrongModalityError, match=f"modality {modality} is not a radiograph"):
            read(data)


def test_no_pixels_is_said():
    dataset = radiograph(ramp())
    del dataset.PixelData
    with pytest.raises(NoPixelsError):
        decode_image(to_bytes(dataset))
    del dataset.Rows
    for read in (decode_image, inspect_image):
        with pytest.raises(NoPixelsError):
            read(to_bytes(dataset))


@pytest.mark.parametrize("part", [0.5, 0.9, 0.999])
def test_a_file_cut_inside_its_pixels_is_truncated(part):
    jpeg = radiograph(np.zeros((64, 64), np.uint8), JPEGBaseline8Bit)
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "JPEG", quality=95)
    jpeg.PixelData = encapsulate([stream.getvalue()])
    jpeg["PixelData"].is_undefined_length = True
    whole = to_bytes(jpeg)
    assert decode_image(whole).std() > 10
    for data in (whole, *(to_bytes(radiograph(ramp(), syntax)) for syntax in NATIVE[:3])):
        for cut in (data[: int(part * len(data))], data[132 : int(part * len(data))]):
            with pytest.raises(TruncatedImageError):
                decode_image(cut)


@pytest.mark.parametrize("read", [decode_image, inspect_image])
def test_headers_that_claim_too_much_are_refused(read):
    for elements in (
        {"Rows": 60_000, "Columns": 60_000},
        {"Rows": 10_000, "Columns": 4_000, "SamplesPerPixel": 3},
        {"Rows": 10_000, "Columns": 4_000, "BitsAllocated": 32},
        {"NumberOfFrames": 2_000_000_000},
    ):
        with pytest.raises(ImageTooLargeError):
            read(to_bytes(radiograph(ramp(), **elements)))


@pytest.mark.parametrize("read", [decode_image, inspect_image])
def test_minus_one_frames_are_refused(read):
    """`range(-1)` would make no row of it."""
    with pytest.raises(CorruptImageError, match="frames"):
        read(to_bytes(radiograph(ramp(), NumberOfFrames="-1")))


@pytest.mark.parametrize(
    ("syntax", "file_format", "options"),
    [(JPEGBaseline8Bit, "JPEG", {}), (JPEG2000Lossless, "JPEG2000", {"no_jp2": True})],
)
def test_a_codestream_beyond_its_header_is_refused(syntax, file_format, options):
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, file_format, **options)
    code = bytearray(stream.getvalue())
    if file_format == "JPEG":
        start = code.index(b"\xff\xc0") + 5
        code[start : start + 4] = b"\xff\xdc\xff\xdc"
    else:
        code[8:16] = struct.pack(">II", 60_000, 60_000)
    dataset = radiograph(np.zeros((64, 64), np.uint8), syntax)
    dataset.PixelData = encapsulate([bytes(code)])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(ImageTooLargeError):
        decode_image(to_bytes(dataset))


def test_a_deflate_bomb_is_not_inflated():
    data = to_bytes(radiograph(ramp(), DeflatedExplicitVRLittleEndian))
    head = data[: 144 + int.from_bytes(data[140:144], "little")]
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = head + b"".join(deflater.compress(bytes(1 << 24)) for _ in range(13)) + deflater.flush()
    for data in (bomb, bomb[132:]):
        with pytest.raises(ImageTooLargeError, match="deflated"):
            inspect_image(data)


def test_text_like_dicom_is_not_an_image():
    for data in (b"\x08\x00\x05\x00CS\x04\x00abcd" + b"x" * 300, b"\x02\x00\x10\x00UI\x02\x001\x00", b"\x08\x00" * 40):
        with pytest.raises(NotAnImageError):
            decode_image(data)


# Privacy and damage


def test_inspect_returns_the_patient_key_unprinted():
    info = inspect_image(to_bytes(radiograph(ramp(), PhotometricInterpretation="MONOCHROME1")))
    assert (info.format, info.mode, info.patient_key) == ("DICOM", "MONOCHROME1", "SECRET7")
    assert "SECRET7" not in repr(info)
    for empty in ("", "  ", None):
        assert inspect_image(to_bytes(radiograph(ramp(), PatientID=empty))).patient_key is None


@pytest.mark.parametrize("photometric", ["WINTERBOTTOM", "DOE^JANE", "", None, ["MONOCHROME2", "DOE"]])
def test_modes_are_words_of_the_standard(photometric):
    assert inspect_image(to_bytes(radiograph(ramp(), PhotometricInterpretation=photometric))).mode == "unknown"
    assert inspect_image(to_bytes(radiograph(ramp(), PhotometricInterpretation="YBR_FULL_422"))).mode == "YBR_FULL_422"


def test_patients_never_reach_messages_or_logs(tmp_path):
    """Pydicom quotes bad values in its own errors and warnings, so a name is put wherever another value belongs."""
    dataset = radiograph(ramp(), WindowCenter="1111111", WindowWidth="2222222", NumberOfFrames="0000001")
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.StudyDate = "3333333", "4444444", "20010101"
    dataset.PresentationLUTShape = "IDENTITY"
    radiographic = to_bytes(dataset)
    other = to_bytes(radiograph(ramp(), Modality="MODALITY"))
    values = [b"1111111 ", b"2222222 ", b"0000001 ", b"3333333 ", b"4444444 ", b"20010101", b"IDENTITY", b"MONOCHRO"]
    places = [(radiographic, value) for value in [*values, b"20150101", b"1.2.840.10008.1.2\x00"]]
    for number, (data, value) in enumerate([*places, (other, b"MODALITY")]):
        assert value in data
        (tmp_path / f"{number}.dcm").write_bytes(data.replace(value, b"DOE^JANE" + value[8:]))
    script = """
import logging, pathlib, pickle, sys
logging.basicConfig(level=logging.DEBUG)
from pneumo_ray.images.decode import DecodeError, decode_image, inspect_image
for path in pathlib.Path(sys.argv[1]).iterdir():
    for read in (decode_image, inspect_image):
        try:
            read(path.read_bytes())
        except DecodeError as error:
            assert str(pickle.loads(pickle.dumps(error))) == str(error)
            logging.exception("%s", error)
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stderr.count("ERROR:root:") >= 4
    assert "DOE" not in run.stderr + run.stdout
    assert "SECRET7" not in run.stderr + run.stdout


FUZZED = ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle_2frame.dcm", "image_dfl.dcm", "SC_rgb_small_odd_big_endian.dcm"]
FUZZED += ["GDCMJ2K_TextGBR.dcm", "MR_small.dcm", "examples_palette.dcm"]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(FUZZED),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.booleans()), min_size=1, max_size=6),
    st.floats(0.01, 2.0),
    st.booleans(),
)
def test_damaged_files_decode_or_raise_a_decode_error(name, changes, kept, has_preamble):
    data = bytearray(FILES[name].read_bytes())
    for place, value, in_header in changes:
        data[int(place * min(len(data) - 1, 1200 if in_header else len(data)))] = value
    data = bytes(data[0 if has_preamble else 132 : max(1, int(kept * len(data)))])
    for read in (inspect_image, decode_image, lambda data: frame_to_grey(read_dataset(data))):
        try:
            result = read(data)
        except DecodeError:
            continue
        assert read is inspect_image or (result.ndim == 2 and result.dtype == np.uint8)
