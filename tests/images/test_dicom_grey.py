"""What real archives do to the grayscale pipeline: expectations by the formulas of PS3.3, and by dcmtk."""

import numpy as np
import pytest
from dicom_builders import lut, radiograph, ramp, rendered_by_dcmtk, to_bytes, words_lut
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pneumo_ray.images.decode import CorruptImageError, decode_image, decode_with_note

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
WINDOW = {"WindowCenter": "2048", "WindowWidth": "4096"}


def windowed(values: np.ndarray, center: float = 2048, width: float = 4096) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, LINEAR."""
    return np.rint(255 * np.clip((values.astype(float) - (center - 0.5)) / (width - 1) + 0.5, 0, 1))


def stretched(values: np.ndarray) -> np.ndarray:
    """Between the percentiles, nearest rank."""
    low, high = np.percentile(values, [0.5, 99.5], method="inverted_cdf").astype(float)
    return np.rint(255 * np.clip((values.astype(float) - low) / (high - low), 0, 1))


# Padding


def padded(value: int, dtype: type = np.uint16) -> np.ndarray:
    pixels = np.full((64, 96), value, dtype)
    pixels[:, 16:80] = 300 + np.arange(4096).reshape(64, 64) % 1200
    return pixels


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("value", "dtype", "bits", "vr"),
    [
        (65535, np.uint16, 16, "US"),
        (4095, np.uint16, 12, "US"),
        (0, np.uint16, 12, "US"),
        (-32768, np.int16, 16, "SS"),
        (-2000, np.int16, 16, "SS"),
        (-2000, np.int16, 12, "SS"),
    ],
)
def test_padding_leaves_the_contrast_alone_and_is_black(syntax, photometric, value, dtype, bits, vr):
    pixels = padded(value, dtype)
    dataset = radiograph(pixels, syntax, BitsStored=bits, PhotometricInterpretation=photometric)
    dataset.add_new("PixelPaddingValue", vr, value)
    grey = decode_image(to_bytes(dataset))
    inner = stretched(pixels[:, 16:80])
    assert np.array_equal(grey[:, 16:80], 255 - inner if photometric == "MONOCHROME1" else inner)
    assert not grey[:, :16].any()
    assert not grey[:, 80:].any()


@pytest.mark.parametrize(("written", "vr"), [(63536, "US"), (-2000, "SS")])
def test_padding_has_the_sign_of_the_pixels(written, vr):
    dataset = radiograph(padded(-2000, np.int16), ExplicitVRLittleEndian)
    dataset.add_new("PixelPaddingValue", vr, written)
    assert np.array_equal(decode_image(to_bytes(dataset))[:, 16:80], stretched(padded(0)[:, 16:80]))


def test_padding_is_cut_to_the_stored_bits():
    """Words of 65535 in 12 stored bits are samples of 4095."""
    dataset = radiograph(padded(65535), ExplicitVRLittleEndian, BitsStored=12)
    dataset.add_new("PixelPaddingValue", "US", 65535)
    assert np.array_equal(decode_image(to_bytes(dataset))[:, 16:80], stretched(padded(0)[:, 16:80]))


@pytest.mark.parametrize(("value", "limit"), [(0, 100), (100, 0)])
def test_a_range_of_values_may_be_padding(value, limit):
    pixels = padded(0)
    pixels[:, :8] = 100
    pixels[:, 8:12] = 57
    dataset = radiograph(pixels, ExplicitVRLittleEndian, BitsStored=12)
    dataset.add_new("PixelPaddingValue", "US", value)
    dataset.add_new("PixelPaddingRangeLimit", "US", limit)
    grey = decode_image(to_bytes(dataset))
    assert np.array_equal(grey[:, 16:80], stretched(pixels[:, 16:80]))
    assert not grey[:, :16].any()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_under_a_window(photometric):
    """PS3.3 C.7.5.1.1.2 takes it out of the pipeline; the anatomy is as dcmtk renders it."""
    dataset = radiograph(
        padded(4095), ExplicitVRLittleEndian, BitsStored=12, PhotometricInterpretation=photometric, **WINDOW
    )
    dataset.add_new("PixelPaddingValue", "US", 4095)
    grey, reference = decode_image(to_bytes(dataset)), rendered_by_dcmtk(to_bytes(dataset), "+Wi", "1")
    assert not grey[:, :16].any()
    assert reference is None or np.abs(grey - reference)[:, 16:80].max() <= 1


@pytest.mark.parametrize("value", [777, 5000, None])
def test_all_or_no_padding_is_none(value):
    pixels = np.full((8, 8), 777, np.uint16) if value == 777 else ramp()
    dataset = radiograph(pixels, ExplicitVRLittleEndian)
    plain = decode_image(to_bytes(dataset))
    dataset.add_new("PixelPaddingValue", "US", value)
    assert np.array_equal(decode_image(to_bytes(dataset)), plain)


# Look-up tables

CURVE = np.rint(4095 * (np.arange(4096) / 4095) ** 0.5).astype(np.uint16)
SIGNED = (ramp().astype(int) - 2048).astype(np.int16)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("first", "vr"), [(63488, "US"), (-2048, "SS")])
@pytest.mark.parametrize(
    ("pixels", "elements"),
    [
        (ramp(), {"BitsStored": 12, "RescaleSlope": "1", "RescaleIntercept": "-2048"}),
        (SIGNED, {}),
        (SIGNED, {"BitsStored": 12}),
    ],
)
def test_voi_lut_first_value_can_be_negative(syntax, first, vr, pixels, elements):
    item = words_lut(CURVE.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2"), [4096, first, 12], vr)
    data = to_bytes(radiograph(pixels, syntax, VOILUTSequence=Sequence([item]), **elements))
    assert np.array_equal(decode_image(data), np.rint(255 * CURVE[ramp()].astype(float) / 4095))


@pytest.mark.parametrize(("first", "vr"), [(40000, "US"), (-25536, "SS")])
def test_voi_lut_first_value_can_be_positive(first, vr):
    item = words_lut(CURVE.astype("<u2"), [4096, first, 12], vr)
    data = to_bytes(radiograph(ramp() + np.uint16(40000), ExplicitVRLittleEndian, VOILUTSequence=Sequence([item])))
    assert np.array_equal(decode_image(data), np.rint(255 * CURVE[ramp()].astype(float) / 4095))


@pytest.mark.parametrize(("first", "vr"), [(63488, "US"), (-2048, "SS")])
def test_modality_lut_first_value_follows_the_pixels(first, vr):
    item = words_lut(CURVE.astype("<u2"), [4096, first, 12], vr)
    data = to_bytes(radiograph(SIGNED, ExplicitVRLittleEndian, ModalityLUTSequence=Sequence([item]), **WINDOW))
    assert np.array_equal(decode_image(data), windowed(CURVE[ramp()]))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("declared", [0, 8, 10, 12, 14, 16])
def test_entries_say_how_deep_a_voi_lut_is(syntax, depth, declared):
    """A table that ends at white of one depth, under a descriptor of another two bits away or more."""
    if 0 < abs(declared - depth) < 2:
        pytest.skip("one bit says nothing")
    table = np.rint((2**depth - 1) * np.arange(4096) / 4095)
    item = words_lut(table.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2"), [4096, 0, declared])
    grey = decode_image(to_bytes(radiograph(ramp(), syntax, BitsStored=12, VOILUTSequence=Sequence([item]))))
    assert np.array_equal(grey, np.rint(255 * table[ramp()] / (2**depth - 1)))


def test_a_voi_lut_may_stop_before_white():
    table = np.rint(3000 * np.arange(4096) / 4095)
    item = words_lut(table.astype("<u2"), [4096, 0, 12])
    grey = decode_image(to_bytes(radiograph(ramp(), BitsStored=12, VOILUTSequence=Sequence([item]))))
    assert np.array_equal(grey, np.rint(255 * table[ramp()] / 4095))


@pytest.mark.parametrize("declared", [8, 12, 16])
def test_modality_lut_depth_does_not_matter(declared):
    item = words_lut(CURVE.astype("<u2"), [4096, 0, declared])
    data = to_bytes(radiograph(ramp(), ExplicitVRLittleEndian, ModalityLUTSequence=Sequence([item]), **WINDOW))
    assert np.array_equal(decode_image(data), windowed(CURVE[ramp()]))


def test_two_8_bit_entries_share_a_word():
    table = (255 - np.arange(4096) // 16).astype(np.uint8)
    item = words_lut(table, [4096, 0, 8])
    grey = decode_image(to_bytes(radiograph(ramp(), BitsStored=12, VOILUTSequence=Sequence([item]))))
    assert np.array_equal(grey, table[ramp()])


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize(
    ("descriptor", "data", "is_noted"),
    [
        (False, False, False),
        ([4096, 0, 12], b"", True),
        (None, b"", True),
        (None, CURVE.tobytes(), True),
        ([4096, 0], CURVE.tobytes(), True),
        ([4096, 0, 12], False, True),
    ],
)
def test_an_empty_lut_gives_way_to_the_window(keyword, descriptor, data, is_noted):
    item = Dataset()
    if descriptor is not False:
        item.add_new("LUTDescriptor", "US", descriptor)
    if data is not False:
        item.add_new("LUTData", "OW", data)
    dataset = radiograph(ramp(), ExplicitVRLittleEndian, BitsStored=12, **WINDOW)
    setattr(dataset, keyword, [item])
    decoded = decode_with_note(to_bytes(dataset))
    assert np.array_equal(decoded.pixels, windowed(ramp()))
    assert (decoded.note is not None) == is_noted


def test_a_modality_lut_of_one_value_is_refused():
    data = to_bytes(radiograph(ramp(), ModalityLUTSequence=Sequence([lut([7] * 4096, 0, 12)])))
    with pytest.raises(CorruptImageError, match="modality LUT"):
        decode_image(data)


# Numbers


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": "", "RescaleIntercept": "0"},
        {"RescaleSlope": "1", "RescaleIntercept": ""},
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"RescaleSlope": ["1", "1"], "RescaleIntercept": ["0", "0"]},
        {"RescaleSlope": "2"},
        {"RescaleIntercept": "-1000"},
    ],
)
def test_an_empty_rescale_is_none(syntax, elements):
    data = to_bytes(radiograph(ramp(), syntax, BitsStored=12, **WINDOW, **elements))
    assert np.array_equal(decode_image(data), windowed(ramp()))


def replaced(dataset: Dataset, **texts: str) -> bytes:
    """The file with other text in decimal strings, which pydicom would not write."""
    for number, keyword in enumerate(texts, 1):
        setattr(dataset, keyword, str(number) * 7)
    data = to_bytes(dataset)
    for number, text in enumerate(texts.values(), 1):
        data = data.replace(str(number).encode() * 7 + b" ", text.encode().ljust(8))
    return data


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_decimal_comma_is_a_point(syntax):
    texts = {"WindowCenter": "1000,5", "WindowWidth": "500,0", "RescaleSlope": "0,50000", "RescaleIntercept": "10,5"}
    data = replaced(radiograph(ramp(), syntax, BitsStored=12), **texts)
    assert np.array_equal(decode_image(data), windowed(ramp() * 0.5 + 10.5, 1000.5, 500))


@pytest.mark.parametrize(
    ("center", "width"),
    [("abc", "4096"), ("2048", "4096 px"), ("[2048]", "[4096]"), ("1.#QNAN", "1.#QNAN"), ("--", "--")],
)
def test_a_window_of_words_is_noted(center, width):
    data = replaced(radiograph(ramp(), BitsStored=12), WindowCenter=center, WindowWidth=width)
    decoded = decode_with_note(data)
    assert np.array_equal(decoded.pixels, stretched(ramp()))
    assert decoded.note == "window_unreadable"


def test_a_rescale_of_words_is_noted():
    data = replaced(radiograph(ramp(), BitsStored=12, **WINDOW), RescaleSlope="one", RescaleIntercept="0")
    decoded = decode_with_note(data)
    assert np.array_equal(decoded.pixels, windowed(ramp()))
    assert decoded.note == "rescale_unreadable"


# Windows that leave one grey


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("center", [-5000, 40000])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_beside_the_data_is_noted(photometric, center, function):
    elements = {"BitsStored": 12, "WindowCenter": center, "WindowWidth": 100, "VOILUTFunction": function}
    decoded = decode_with_note(to_bytes(radiograph(ramp(), PhotometricInterpretation=photometric, **elements)))
    expected = stretched(ramp())
    assert np.array_equal(decoded.pixels, 255 - expected if photometric == "MONOCHROME1" else expected)
    assert decoded.note == "window_left_one_grey"


def test_a_window_of_padding_is_left_out():
    dataset = radiograph(padded(4095), ExplicitVRLittleEndian, BitsStored=12, WindowCenter=3000, WindowWidth=100)
    dataset.add_new("PixelPaddingValue", "US", 4095)
    decoded = decode_with_note(to_bytes(dataset))
    assert np.array_equal(decoded.pixels[:, 16:80], stretched(padded(0)[:, 16:80]))
    assert decoded.note == "window_left_one_grey"


def test_a_flat_voi_lut_is_left_out():
    decoded = decode_with_note(to_bytes(radiograph(ramp(), VOILUTSequence=Sequence([lut([4095] * 4096, 0, 12)]))))
    assert np.array_equal(decoded.pixels, stretched(ramp()))
    assert decoded.note == "window_left_one_grey"


def test_flat_voi_luts_give_way_to_windows():
    item = lut([4095] * 4096, 0, 12)
    decoded = decode_with_note(to_bytes(radiograph(ramp(), BitsStored=12, VOILUTSequence=Sequence([item]), **WINDOW)))
    assert np.array_equal(decoded.pixels, windowed(ramp()))
    assert decoded.note == "window_left_one_grey"


def test_a_flat_frame_window_gives_way():
    dataset = radiograph(ramp(), ExplicitVRLittleEndian, BitsStored=12, **WINDOW)
    dataset.PerFrameFunctionalGroupsSequence = [group(WindowCenter="-5000", WindowWidth="100")]
    decoded = decode_with_note(to_bytes(dataset))
    assert np.array_equal(decoded.pixels, windowed(ramp()))
    assert decoded.note == "window_left_one_grey"


def test_a_lut_with_equal_ends_is_not_flat():
    table = [min(k, 4095 - k) * 2 for k in range(4096)]
    decoded = decode_with_note(to_bytes(radiograph(ramp(), VOILUTSequence=Sequence([lut(table, 0, 12)]))))
    assert np.array_equal(decoded.pixels, np.rint(255 * np.array(table)[ramp()] / 4095))
    assert decoded.note is None


def test_a_constant_image_keeps_its_window():
    data = to_bytes(radiograph(np.full((8, 8), 1000, np.uint16), WindowCenter=500, WindowWidth=2000))
    decoded = decode_with_note(data)
    assert (decoded.pixels == windowed(np.array([1000]), 500, 2000)).all()
    assert decoded.note is None


# Eight bits in sixteen


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_8_stored_bits_are_left_as_they_are(syntax):
    pixels = (60 + ramp() % 60).astype(np.uint16)
    data = to_bytes(radiograph(pixels, syntax, BitsStored=8))
    assert np.array_equal(decode_image(data), pixels)


# Functional groups


def group(**elements: str) -> Dataset:
    item = Dataset()
    transformation, voi = Dataset(), Dataset()
    for keyword, value in elements.items():
        setattr(transformation if keyword.startswith("Rescale") else voi, keyword, value)
    if len(transformation):
        item.PixelValueTransformationSequence = [transformation]
    if len(voi):
        item.FrameVOILUTSequence = [voi]
    return item


def test_functional_groups_count_and_the_frames_own_win():
    frames = np.stack([ramp(), ramp()])
    shared = group(RescaleSlope="-1", RescaleIntercept="4095", WindowCenter="1000", WindowWidth="1000")
    own = [group(), group(WindowCenter="3000", WindowWidth="700")]
    dataset = radiograph(frames, ExplicitVRLittleEndian, BitsStored=12, WindowCenter="7", WindowWidth="7")
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], own
    for frame, (center, width) in enumerate(((1000, 1000), (3000, 700))):
        expected = windowed(4095 - ramp().astype(int), center, width)
        assert np.array_equal(decode_image(to_bytes(dataset), frame=frame), expected)


def test_without_functional_groups_the_top_level_counts():
    dataset = radiograph(ramp(), ExplicitVRLittleEndian, BitsStored=12, **WINDOW)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [group()], []
    assert np.array_equal(decode_image(to_bytes(dataset)), windowed(ramp()))


# Palettes


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("bits", "entries"),
    [
        (16, lambda grey: grey.astype(int) * 257),
        (16, lambda grey: grey.astype(int)),
        (8, lambda grey: grey.astype(int)),
        (8, lambda grey: grey.astype(int) * 257),
        (8, None),
    ],
)
def test_palettes_of_every_packing_give_their_colours(syntax, bits, entries):
    """None: two entries of 8 bits a word, the first of them the less significant byte."""
    colours = np.ascontiguousarray(np.linspace(0, 255, 256).astype(np.uint8)[::-1])
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    words = colours.view("<u2").astype(order) if entries is None else entries(colours).astype(order)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    dataset = radiograph(pixels, syntax, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", words.tobytes())
    assert np.array_equal(decode_image(to_bytes(dataset)), colours[pixels])


def test_a_palette_without_blue_is_refused():
    dataset = radiograph(np.zeros((8, 8), np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green"):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 8])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", bytes(256))
    with pytest.raises(CorruptImageError, match="palette"):
        decode_image(to_bytes(dataset))
