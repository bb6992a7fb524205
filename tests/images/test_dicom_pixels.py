"""Stored values of DICOM frames: bits, codecs, fragments and headers, against dcmtk, independent encoders and PS3.5."""

import shutil
import subprocess

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_builders import (
    by_dcmtk,
    encapsulated,
    htj2k,
    items_of,
    jpeg,
    jpeg2000,
    jpeg_ls,
    radiograph,
    ramp,
    to_bytes,
    with_items,
)
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pneumo_ray.images.decode import (
    CorruptImageError,
    DecodeError,
    NoPixelsError,
    TruncatedImageError,
    UnsupportedSyntaxError,
    WrongModalityError,
    decode_image,
    inspect_image,
)
from pneumo_ray.images.dicom import read_dataset
from pneumo_ray.images.dicom_pixels import stored_frame

needs_dcmtk = pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="dcmtk is not installed")
NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


def stored(data: bytes, frame: int = 0) -> np.ndarray:
    return stored_frame(read_dataset(data), frame).pixels


def smooth(bits: int, dtype: type = np.uint16) -> np.ndarray:
    """Every second value of so many bits or more of them, without steep edges, [64, 48]."""
    y, x = np.mgrid[0:64, 0:48]
    return np.rint((2**bits - 1) * (x / 47 * 0.6 + y / 63 * 0.4)).astype(dtype)


# High bit


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(("bits", "high_bit"), [(12, 15), (10, 15), (12, 13), (8, 15), (14, 14)])
@pytest.mark.parametrize("is_signed", [False, True])
def test_samples_end_at_the_high_bit(syntax, bits, high_bit, is_signed):
    """PS3.5 8.1.1 of editions that allowed it: value = word >> (HighBit + 1 - BitsStored)."""
    values = smooth(bits).astype(int) - (2 ** (bits - 1) if is_signed else 0)
    words = (values << (high_bit + 1 - bits)).astype(np.int16 if is_signed else np.uint16)
    assert np.array_equal(stored(to_bytes(radiograph(words, syntax, BitsStored=bits, HighBit=high_bit))), values)


def test_rle_samples_end_at_the_high_bit():
    dataset = radiograph(smooth(12) << 4, ExplicitVRLittleEndian, BitsStored=12, HighBit=15)
    dataset.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(stored(to_bytes(dataset)), smooth(12))


def test_jpeg_ls_samples_end_at_the_high_bit():
    dataset = radiograph(smooth(12) << 4, ExplicitVRLittleEndian, BitsStored=12, HighBit=15)
    data = to_bytes(encapsulated(dataset, JPEGLSLossless, [jpeg_ls(smooth(12) << 4)]))
    assert np.array_equal(stored(data), smooth(12))


@pytest.mark.parametrize(("bits", "high_bit"), [(12, 15), (10, 13), (16, 11), (12, 7)])
def test_a_contradicted_high_bit_is_refused(bits, high_bit):
    with pytest.raises(CorruptImageError, match="High Bit"):
        decode_image(to_bytes(radiograph(smooth(bits), BitsStored=bits, HighBit=high_bit)))


@pytest.mark.parametrize(
    "elements", [{"HighBit": None}, {"HighBit": None, "BitsStored": None}, {"SamplesPerPixel": None}]
)
def test_unambiguous_elements_may_be_missing(elements):
    assert np.array_equal(stored(to_bytes(radiograph(smooth(12), **elements))), smooth(12))


@pytest.mark.parametrize(
    ("keyword", "name"),
    [
        ("PhotometricInterpretation", "Photometric Interpretation"),
        ("BitsAllocated", "Bits Allocated"),
        ("PixelRepresentation", "Pixel Representation"),
    ],
)
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_missing_element_is_named(keyword, name, is_empty):
    dataset = radiograph(smooth(12), ExplicitVRLittleEndian)
    if is_empty:
        dataset[keyword].value = None
    else:
        del dataset[keyword]
    with pytest.raises(CorruptImageError, match=f"lacks {name}"):
        decode_image(to_bytes(dataset))


def test_photometric_interpretation_may_be_in_small_letters():
    plain = to_bytes(radiograph(smooth(12), ExplicitVRLittleEndian))
    assert np.array_equal(decode_image(plain.replace(b"MONOCHROME2", b"monochrome2")), decode_image(plain))
    with pytest.raises(UnsupportedSyntaxError, match="photometric"):
        decode_image(plain.replace(b"MONOCHROME2", b"MONOCHROME "))


# Codecs


@needs_dcmtk
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(
    ("bits", "is_signed"), [(8, False), (10, False), (12, False), (12, True), (16, False), (16, True)]
)
def test_lossless_jpeg_of_dcmtk_is_exact(predictor, bits, is_signed):
    values = smooth(bits).astype(int) - (2 ** (bits - 1) if is_signed else 0)
    pixels = values.astype(np.int16 if is_signed else np.uint16 if bits > 8 else np.uint8)
    dataset = radiograph(pixels, ExplicitVRLittleEndian, BitsStored=bits)
    options = ["+e1"] if predictor == 1 else ["+el", "+sv", str(predictor)]
    data = by_dcmtk(dataset, "dcmcjpeg", *options)
    assert (JPEGLosslessSV1 if predictor == 1 else JPEGLossless).encode() in data
    assert np.array_equal(stored(data), values)


@needs_dcmtk
@pytest.mark.parametrize("bits", [8, 12])
def test_extended_jpeg_is_decoded_as_by_dcmtk(bits, tmp_path):
    dataset = radiograph(smooth(bits, np.uint16 if bits > 8 else np.uint8), ExplicitVRLittleEndian, BitsStored=bits)
    data = by_dcmtk(dataset, "dcmcjpeg", "+ee")
    (tmp_path / "a.dcm").write_bytes(data)
    subprocess.run(["dcmdjpeg", tmp_path / "a.dcm", tmp_path / "b.dcm"], check=True)
    expected = pydicom.dcmread(tmp_path / "b.dcm").pixel_array
    assert np.abs(stored(data).astype(int) - expected).max() <= 1
    start = data.index(b"\xff\xda")  # old encoders end the spectral selection at 0 in place of 63
    end = start + 6 + 2 * data[start + 4]
    assert data[end] == 63
    assert np.abs(stored(data[:end] + b"\0" + data[end + 1 :]).astype(int) - expected).max() <= 1


@needs_dcmtk
@pytest.mark.parametrize(
    ("bits", "is_signed", "deviation"),
    [
        *((bits, False, deviation) for bits in (8, 10, 12, 16) for deviation in (0, 2)),
        *((12, True, 0), (16, True, 0)),  # dcmtk does not encode signed samples with loss
    ],
)
def test_dcmtk_jpeg_ls_is_within_its_deviation(bits, is_signed, deviation):
    values = smooth(bits).astype(int) - (2 ** (bits - 1) if is_signed else 0)
    pixels = values.astype(np.int16 if is_signed else np.uint16 if bits > 8 else np.uint8)
    dataset = radiograph(pixels, ExplicitVRLittleEndian, BitsStored=bits)
    options = ["+en", "+md", str(deviation)] if deviation else ["+el"]
    data = by_dcmtk(dataset, "dcmcjpls", *options)
    assert np.abs(stored(data).astype(int) - values).max() <= deviation


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless])
@pytest.mark.parametrize(("bits", "is_signed"), [(8, False), (12, False), (16, False), (16, True)])
def test_jpeg_2000_and_htj2k_are_exact(syntax, bits, is_signed):
    values = smooth(bits).astype(int) - (2 ** (bits - 1) if is_signed else 0)
    pixels = values.astype(np.int16 if is_signed else np.uint16 if bits > 8 else np.uint8)
    stream = jpeg2000(pixels) if syntax == JPEG2000Lossless else htj2k(pixels)
    dataset = encapsulated(radiograph(pixels, ExplicitVRLittleEndian, BitsStored=bits), syntax, [stream])
    assert np.array_equal(stored(to_bytes(dataset)), values)


def test_lossy_htj2k_is_near_its_source():
    """Transfer syntax .203, encoded by OpenJPH with the irreversible wavelet."""
    stream = bytes(imagecodecs.htj2k_encode(smooth(12), reversible=False))
    dataset = encapsulated(radiograph(smooth(12), ExplicitVRLittleEndian, BitsStored=12), HTJ2K, [stream])
    assert np.abs(stored(to_bytes(dataset)).astype(int) - smooth(12)).max() <= 40


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_big_endian_of_dcmtk_is_exact(dtype, tmp_path):
    """Words are swapped, those of two 8-bit samples too (PS3.5 A.3)."""
    pixels = smooth(8 * dtype().itemsize, dtype)
    (tmp_path / "a.dcm").write_bytes(to_bytes(radiograph(pixels, ExplicitVRLittleEndian)))
    if shutil.which("dcmconv") is None:
        pytest.skip("dcmtk is not installed")
    subprocess.run(["dcmconv", "+tb", tmp_path / "a.dcm", tmp_path / "b.dcm"], check=True)
    assert np.array_equal(stored((tmp_path / "b.dcm").read_bytes()), pixels)


def test_a_lossy_overshoot_is_clipped_and_not_wrapped():
    """12-bit JPEG of 10 stored bits: samples above 1023 are white, not near black."""
    values = np.random.default_rng(0).choice(np.array([0, 1023], np.uint16), (64, 64))
    stream = imagecodecs.jpeg8_encode(values, bitspersample=12, level=30)
    assert imagecodecs.jpeg8_decode(stream).max() > 1023
    dataset = encapsulated(radiograph(values, ExplicitVRLittleEndian, BitsStored=10), JPEGExtended12Bit, [stream])
    assert np.array_equal(stored(to_bytes(dataset)), np.minimum(imagecodecs.jpeg8_decode(stream), 1023))


def test_a_trailing_comment_is_passed_over():
    stream = jpeg2000(smooth(12))
    assert stream.endswith(b"\xff\xd9")
    commented = stream[:-2] + b"\xff\x64\x00\x0b\x00\x01PADDING" + b"\xff\xd9"
    dataset = radiograph(smooth(12), ExplicitVRLittleEndian, BitsStored=12)
    assert np.array_equal(stored(to_bytes(encapsulated(dataset, JPEG2000Lossless, [commented]))), smooth(12))


@pytest.mark.parametrize("encode", [jpeg, jpeg_ls, jpeg2000, htj2k], ids=lambda encode: encode.__name__)
@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless]
)
def test_a_codestream_wins_over_its_syntax(encode, syntax):
    pixels = smooth(8, np.uint8)
    dataset = encapsulated(radiograph(pixels, ExplicitVRLittleEndian), syntax, [encode(pixels)])
    assert np.abs(stored(to_bytes(dataset)).astype(int) - pixels).max() <= (4 if encode is jpeg else 0)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless, RLELossless])
def test_native_pixels_named_compressed_are_read(syntax):
    dataset = radiograph(smooth(12), ExplicitVRLittleEndian)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = to_bytes(dataset)
    native = ExplicitVRLittleEndian.encode().ljust(len(ExplicitVRLittleEndian) + len(ExplicitVRLittleEndian) % 2, b"\0")
    renamed = syntax.encode() + b"\0" * (len(syntax) % 2)
    start = data.index(native)
    head = data[: start - 2] + len(renamed).to_bytes(2, "little") + renamed
    length = int.from_bytes(data[140:144], "little") + len(renamed) - len(native)
    data = head[:140] + length.to_bytes(4, "little") + head[144:] + data[start + len(native) :]
    assert np.array_equal(stored(data), smooth(12))


def test_a_syntax_without_a_decoder_is_named():
    dataset = encapsulated(radiograph(smooth(8, np.uint8)), "1.2.840.10008.1.2.4.100", [b"\0\0\1\xb3" * 40])
    with pytest.raises(UnsupportedSyntaxError, match="MPEG2"):
        decode_image(to_bytes(dataset))


@pytest.mark.parametrize("encode", [jpeg, jpeg_ls, jpeg2000, htj2k], ids=lambda encode: encode.__name__)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_codestream_that_ends_early_is_refused(encode, part):
    """CharLS looks for the end marker of a cut JPEG-LS without end."""
    stream = encode(smooth(8, np.uint8))
    stream = stream[: int(part * len(stream))]
    dataset = encapsulated(radiograph(smooth(8, np.uint8), ExplicitVRLittleEndian), JPEGBaseline8Bit, [stream])
    with pytest.raises(DecodeError) as raised:
        decode_image(to_bytes(dataset))
    assert raised.value.kind in ("truncated", "corrupt")


def test_a_codestream_of_another_size_is_refused():
    dataset = encapsulated(radiograph(ramp(), ExplicitVRLittleEndian), JPEGLSLossless, [jpeg_ls(smooth(12))])
    with pytest.raises(CorruptImageError):
        decode_image(to_bytes(dataset))


# Fragments

FRAMES = [smooth(8, np.uint8), 255 - smooth(8, np.uint8), smooth(8, np.uint8) // 2]


def cut(stream: bytes, parts: int) -> list[bytes]:
    """Fragments of even length."""
    step = len(stream) // parts // 2 * 2
    return [stream[k * step : (k + 1) * step if k < parts - 1 else None] for k in range(parts)]


def offsets(lengths: list[int]) -> bytes:
    places, place = [], 0
    for length in lengths:
        places.append(place.to_bytes(4, "little"))
        place += 8 + length + length % 2
    return b"".join(places)


@pytest.mark.parametrize("table", ["right", "empty", "none", "counts fragments", "wrong", "short", "zeros"])
@pytest.mark.parametrize("parts", [[1, 1, 1], [3, 1, 2], [2, 2, 2]])
@pytest.mark.parametrize(("encode", "syntax"), [(jpeg_ls, JPEGLSLossless), (jpeg2000, JPEG2000Lossless)])
def test_frames_are_found_whatever_the_offset_table_says(table, parts, encode, syntax):
    cuts = [cut(encode(frame), number) for frame, number in zip(FRAMES, parts, strict=True)]
    fragments = [fragment for parts_of_frame in cuts for fragment in parts_of_frame]
    per_frame = [sum(len(part) + len(part) % 2 + 8 for part in parts_of_frame) - 8 for parts_of_frame in cuts]
    tables = {
        "right": offsets(per_frame),
        "empty": b"",
        "none": None,
        "counts fragments": offsets([len(fragment) for fragment in fragments]),
        "wrong": offsets([length + 6 for length in per_frame]),
        "short": offsets(per_frame[:1]),
        "zeros": bytes(12),
    }
    dataset = radiograph(np.stack(FRAMES), ExplicitVRLittleEndian)
    data = to_bytes(with_items(dataset, syntax, items_of(tables[table], fragments)))
    for number, frame in enumerate(FRAMES):
        assert np.array_equal(stored(data, number), frame)


@pytest.mark.parametrize("table", [None, b"", bytes(4), offsets([10, 10, 10])])
def test_a_single_frame_may_lie_in_several_fragments(table):
    items = items_of(table, cut(jpeg_ls(FRAMES[0]), 4))
    data = to_bytes(with_items(radiograph(FRAMES[0], ExplicitVRLittleEndian), JPEGLSLossless, items))
    assert np.array_equal(stored(data), FRAMES[0])


@pytest.mark.parametrize("table", [b"", bytes(12)])
def test_rle_frames_are_found_without_a_table(table):
    dataset = radiograph(np.stack(FRAMES), ExplicitVRLittleEndian)
    dataset.compress(RLELossless, generate_instance_uid=False)
    items = items_of(table, list(generate_frames(dataset.PixelData, number_of_frames=3)))
    data = to_bytes(with_items(radiograph(np.stack(FRAMES), ExplicitVRLittleEndian), RLELossless, items))
    for number, frame in enumerate(FRAMES):
        assert np.array_equal(stored(data, number), frame)


def test_fewer_frames_than_the_header_says_are_named():
    dataset = with_items(
        radiograph(np.stack(FRAMES), ExplicitVRLittleEndian), JPEGLSLossless, items_of(b"", [jpeg_ls(FRAMES[0])])
    )
    with pytest.raises(NoPixelsError, match=r"1 frame\(s\) and its header says 3"):
        decode_image(to_bytes(dataset))


def test_a_fragment_that_is_cut_is_truncated():
    dataset = radiograph(FRAMES[0], ExplicitVRLittleEndian)
    dataset = with_items(dataset, JPEGLSLossless, items_of(b"", [jpeg_ls(FRAMES[0])]))
    dataset = read_dataset(to_bytes(dataset))
    dataset.PixelData = dataset.PixelData[:-100]
    with pytest.raises(TruncatedImageError):
        stored_frame(dataset, 0)


# What a radiograph is

CR, DX, CAPTURE = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7"
CT, MAMMOGRAM = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.2"


@pytest.mark.parametrize("sop_class", [CR, DX, DX + ".1", CAPTURE, CAPTURE + ".3", "1.2.3.4.5"])
@pytest.mark.parametrize("modality", ["CR", "DX", "DR", "XR", "CXR", "dx", ["CR", "DX"], ""])
def test_radiographs_are_accepted_however_their_modality_is_spelt(sop_class, modality):
    assert inspect_image(to_bytes(radiograph(smooth(12), SOPClassUID=sop_class, Modality=modality))).frames == 1


@pytest.mark.parametrize("sop_class", [CT, MAMMOGRAM, "1.2.840.10008.5.1.4.1.1.12.1"])
@pytest.mark.parametrize("modality", ["CR", "DX", "CT"])
def test_other_sop_classes_are_refused_whatever_their_modality(sop_class, modality):
    with pytest.raises(WrongModalityError, match=f"modality {modality} is not a radiograph .*Image Storage"):
        decode_image(to_bytes(radiograph(smooth(12), SOPClassUID=sop_class, Modality=modality)))


# Elements without a VR


def blanked(data: bytes, tag: bytes, vr: bytes) -> bytes:
    place = next(k for k in range(140, len(data)) if data[k : k + 4] == tag and data[k + 4 : k + 6].isalpha())
    return data[: place + 4] + vr + data[place + 6 :]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("vr", [b"  ", b"\0\0"])
@pytest.mark.parametrize(
    "tag", [0x00080016, 0x00080060, 0x00100020, 0x00280002, 0x00280010, 0x00280101, 0x00281050, 0x00281051]
)
def test_a_blank_vr_is_read(syntax, vr, tag):
    dataset = radiograph(smooth(12), syntax, BitsStored=12, WindowCenter="1000.0", WindowWidth="500.00")
    item = Dataset()
    item.CodeValue = "1"
    dataset.AnatomicRegionSequence = [item]
    dataset["AnatomicRegionSequence"].is_undefined_length = item.is_undefined_length_sequence_item = True
    data = to_bytes(dataset)
    order = "big" if syntax == ExplicitVRBigEndian else "little"
    name = (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)
    damaged = blanked(data, name, vr)
    assert np.array_equal(decode_image(damaged), decode_image(data))
    assert inspect_image(damaged) == inspect_image(data)


def test_pixel_data_with_a_blank_vr_is_read():
    data = to_bytes(radiograph(smooth(12), ExplicitVRLittleEndian))
    assert np.array_equal(decode_image(blanked(data, b"\xe0\x7f\x10\x00", b"  ")), decode_image(data))
