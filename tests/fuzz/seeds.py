"""Small well-formed files of every format that is read: what the mutations start from.

All are drawn from fixed numbers, 48 to 96 pixels wide, so that a mutated file is decoded in about a millisecond.
pydicom's own test files come along where the package has them.
"""

import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from math import isqrt
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pneumo_ray.images.decode_errors import DEEP_SAMPLES, MAX_SAMPLES

sys.path.insert(0, str(Path(__file__).parents[1] / "builders"))
from dicom_builders import encapsulated, htj2k, jpeg2000, jpeg_ls, lut, radiograph, to_bytes

_LARGEST_SAMPLE = 150_000
"""Bytes of a pydicom test file above which it is left out, because mutations would rarely meet its header."""


def image_seeds() -> dict[str, list[bytes]]:
    """Return files by format, the names of the rows in the table."""
    return {
        "JPEG baseline": [
            _encode(_grey(), "JPEG"),
            _encode(_colour(), "JPEG", exif=_turned()),
            _encode(_colour(), "JPEG", subsampling=0),
        ],
        "JPEG progressive": [_encode(_colour(), "JPEG", progressive=True), _encode(_grey(), "JPEG", progressive=True)],
        "JPEG CMYK": [_encode(_colour().convert("CMYK"), "JPEG")],
        "PNG 8 bit": [_encode(_grey(), "PNG"), _encode(_colour(), "PNG"), _encode(_grey().convert("1"), "PNG")],
        "PNG 16 bit": [_encode(_deep(), "PNG")],
        "PNG 16 bit colour": [_deep_colour(".png"), _deep_colour(".png", with_alpha=True)],
        "PNG palette": [_encode(_colour().quantize(32), "PNG"), _encode(_colour().quantize(9), "PNG", transparency=3)],
        "PNG alpha": [_encode(_colour().convert("RGBA"), "PNG"), _encode(_grey().convert("LA"), "PNG")],
        "TIFF 8 bit": [
            _encode(_grey(), "TIFF"),
            _encode(_colour(), "TIFF", compression="packbits"),
            _encode(_grey().convert("1"), "TIFF", compression="group4"),
            _encode(_colour(), "TIFF", compression="jpeg"),
            _encode(_colour().quantize(32), "TIFF"),
        ],
        "TIFF 16 and 32 bit": [
            _encode(_deep(), "TIFF"),
            _encode(_deep(), "TIFF", big_tiff=True),
            _encode(Image.fromarray(_pixels().astype(np.float32)), "TIFF"),
            _encode(Image.fromarray(_pixels().astype(np.int32) * 70_000), "TIFF"),
        ],
        "TIFF 16 bit colour": [_deep_colour(".tiff"), _deep_colour(".tiff", with_alpha=True), *_deep_pages()],
        "TIFF LZW": [
            _encode(_colour(), "TIFF", compression="tiff_lzw"),
            _encode(_deep(), "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
        ],
        "TIFF deflate": [
            _encode(_grey(), "TIFF", compression="tiff_adobe_deflate"),
            _encode(_deep(), "TIFF", compression="tiff_deflate"),
        ],
        "TIFF pages": [
            _encode(_grey(), "TIFF", save_all=True, append_images=[_colour(), _deep()]),
            _encode(_grey(), "TIFF", save_all=True, append_images=[_grey()] * 3, compression="tiff_lzw"),
        ],
        "WebP": [
            _encode(_colour(), "WEBP"),
            _encode(_colour().convert("RGBA"), "WEBP"),
            _encode(_colour().convert("RGBA"), "WEBP", lossless=True),
            _encode(_colour(), "WEBP", save_all=True, append_images=[_colour().transpose(Image.Transpose.ROTATE_180)]),
        ],
        "DICOM explicit VR": [_dicom(_pixels()), _dicom(_stored()), _dicom(_stored().astype(np.int16))],
        "DICOM implicit VR": [_dicom(_stored(), ImplicitVRLittleEndian)],
        "DICOM big endian": [_dicom(_stored(), ExplicitVRBigEndian)],
        "DICOM deflated": [_dicom(_stored(), DeflatedExplicitVRLittleEndian)],
        "DICOM no preamble": [
            _dicom(_stored(), ImplicitVRLittleEndian)[132:],
            _dicom(_pixels())[132:],
            _without_meta(),
        ],
        "DICOM windows and LUTs": [
            _dicom(_stored(), **_windows()),
            _dicom(_stored(), change=_add_luts),
            _dicom(_pixels(), ImplicitVRLittleEndian, change=_add_luts),
        ],
        "DICOM padding and groups": [
            _dicom(_stored(), change=_add_padding),
            _dicom(np.stack([_stored(), _stored()]), change=_add_groups),
            _dicom(_stored() * 16, ImplicitVRLittleEndian, BitsStored=12, HighBit=15),
        ],
        "DICOM blank VR": [_blanked(_dicom(_stored(), **_windows())), _blanked(_dicom(_stored(), change=_add_groups))],
        "DICOM colour": [_dicom_colour("RGB"), _dicom_colour("YBR_FULL"), _dicom(_pixels() // 8, change=_add_palette)],
        "DICOM frames": [
            _dicom(np.stack([_pixels(), 255 - _pixels(), _pixels() // 2])),
            _compressed(RLELossless, frames=3),
        ],
        "DICOM RLE": [_compressed(RLELossless), _compressed(RLELossless, _stored())],
        "DICOM JPEG": [_encapsulated(_encode(_grey(), "JPEG")), _encapsulated(_encode(_colour(), "JPEG"), colour=True)],
        "DICOM JPEG lossless": [
            _coded(JPEGLosslessSV1, _lossless_jpeg, _stored()),
            _coded(JPEGLossless, _lossless_jpeg, _stored(), frames=2),
        ],
        "DICOM JPEG 12 bit": [_coded(JPEGExtended12Bit, _deep_jpeg, _stored())],
        "DICOM JPEG-LS": [
            _coded(JPEGLSLossless, jpeg_ls, _stored()),
            _coded(JPEGLSNearLossless, lambda pixels: jpeg_ls(pixels, 2), _stored()),
            _coded(JPEGLSLossless, jpeg_ls, _stored(), frames=2),
        ],
        "DICOM JPEG 2000": [
            _coded(JPEG2000Lossless, jpeg2000, _pixels()),
            _coded(JPEG2000Lossless, jpeg2000, _stored(), frames=2),
        ],
        "DICOM HTJ2K": [_coded(HTJ2KLossless, htj2k, _pixels()), _coded(HTJ2KLossless, htj2k, _stored())],
        "DICOM of pydicom": _samples(),
    }


def archive_seeds() -> dict[str, list[bytes]]:
    """Return archives by format; each holds images, a link or a folder, and a name that climbs."""
    return {
        "tar": [_tar("w"), _tar("w", tarfile.PAX_FORMAT), _tar("w", tarfile.USTAR_FORMAT)],
        "tar.gz": [_tar("w:gz")],
        "tar.xz": [_tar("w:xz")],
        "zip": [_zip(zipfile.ZIP_DEFLATED), _zip(zipfile.ZIP_STORED), _zip(zipfile.ZIP_LZMA), _zip(zipfile.ZIP_BZIP2)],
    }


def limit_image(number: int) -> bytes:
    """Return a whole image as large as is allowed; most of them are small files.

    Args:
        number: below `NUM_LIMIT_IMAGES`.
    """
    return _LIMIT_IMAGES[number]()


def bundle_seed(folder: Path) -> None:
    """Write the smallest bundle, 16 MB with random weights."""
    import torch

    from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, save_bundle

    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch="efficientnet_b0", weights="none"))
    save_bundle(folder, net, preprocessing=Preprocessing(64, 73), provenance=json.loads('{"epochs": 3, "data": ["a"]}'))


def _pixels() -> np.ndarray:
    """Slow gradients without symmetry, uint8 [64, 48]."""
    y, x = np.mgrid[0:64, 0:48]
    return (127 + 60 * np.sin(x / 7) + 60 * np.cos(y / 5 + x / 20)).astype(np.uint8)


def _stored() -> np.ndarray:
    return _pixels().astype(np.uint16) * 16


def _grey() -> Image.Image:
    return Image.fromarray(_pixels())


def _deep() -> Image.Image:
    return Image.fromarray(_pixels().astype(np.uint16) * 250)


def _colour() -> Image.Image:
    return Image.fromarray(np.dstack([_pixels(), _pixels()[::-1], 255 - _pixels()]))


def _deep_colour(extension: str, *, with_alpha: bool = False) -> bytes:
    """16 bits in each of three or four channels, as OpenCV writes them; small enough for one IDAT chunk."""
    grey = _pixels()[::2, ::2]
    channels = [grey, grey[::-1], 255 - grey, grey[:, ::-1]][: 4 if with_alpha else 3]
    is_written, data = cv2.imencode(extension, np.dstack(channels).astype(np.uint16) * 250)
    assert is_written
    return data.tobytes()


def _deep_pages() -> list[bytes]:
    pages = [np.dstack([pixels] * 3).astype(np.uint16) * 250 for pixels in (_pixels(), 255 - _pixels())]
    is_written, data = cv2.imencodemulti(".tiff", pages)
    return [data.tobytes()] if is_written else []


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def _dicom(
    pixels: np.ndarray,
    syntax: str = ExplicitVRLittleEndian,
    change: Callable[[Dataset], None] | None = None,
    **elements: object,
) -> bytes:
    dataset = radiograph(pixels, syntax, **elements)
    if change is not None:
        change(dataset)
    return to_bytes(dataset)


def _without_meta() -> bytes:
    """A dataset alone, as old archives keep them."""
    stream = io.BytesIO()
    dataset = radiograph(_stored(), ImplicitVRLittleEndian)
    del dataset.file_meta
    dataset.save_as(stream, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return stream.getvalue()


def _windows() -> dict[str, object]:
    return {
        "WindowCenter": ["2000.5", "900"],
        "WindowWidth": ["1500.0", "70"],
        "VOILUTFunction": "SIGMOID",
        "RescaleSlope": "2.5000",
        "RescaleIntercept": "-100.0",
        "PatientOrientation": ["R", "H"],
        "PresentationLUTShape": "INVERSE",
    }


def _add_luts(dataset: Dataset) -> None:
    dataset.ModalityLUTSequence = [lut([i * i // 16 for i in range(256)], 10, 12)]
    dataset.VOILUTSequence = [lut([4095 - 16 * i for i in range(256)], 0, 12)]


def _add_padding(dataset: Dataset) -> None:
    dataset.add_new("PixelPaddingValue", "US", int(_stored().min()))
    dataset.add_new("PixelPaddingRangeLimit", "US", int(_stored().min()) + 100)


def _add_groups(dataset: Dataset) -> None:
    transformation, voi, shared, own = Dataset(), Dataset(), Dataset(), Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept = "-1", "4095"
    voi.WindowCenter, voi.WindowWidth = "1000", "700"
    shared.PixelValueTransformationSequence, own.FrameVOILUTSequence = [transformation], [voi]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], [own, Dataset()]


def _blanked(data: bytes) -> bytes:
    """Blank the VR of Rows and of Modality."""
    for tag, vr in ((b"\x28\x00\x10\x00", b"US"), (b"\x08\x00\x60\x00", b"CS")):
        data = data.replace(tag + vr, tag + b"  ", 1)
    return data


def _add_palette(dataset: Dataset) -> None:
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for name, sign in (("Red", 1), ("Green", -1), ("Blue", 1)):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [32, 0, 16])
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(dataset, f"{name}PaletteColorLookupTableData", np.arange(32, dtype="<u2")[::sign].tobytes())


def _dicom_colour(photometric: str) -> bytes:
    pixels = np.asarray(_colour())
    dataset = radiograph(pixels[:, :, 0], ExplicitVRLittleEndian)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, photometric
    dataset.PixelData = pixels.tobytes()
    return to_bytes(dataset)


def _compressed(syntax: str, pixels: np.ndarray | None = None, frames: int = 1) -> bytes:
    pixels = _pixels() if pixels is None else pixels
    dataset = radiograph(np.stack([pixels] * frames) if frames > 1 else pixels, ExplicitVRLittleEndian)
    dataset.compress(syntax, generate_instance_uid=False)
    return to_bytes(dataset)


def _coded(syntax: str, encode: Callable[[np.ndarray], bytes], pixels: np.ndarray, frames: int = 1) -> bytes:
    """Frames as one of the builders encodes them, 12 bits of a word."""
    dataset = radiograph(np.stack([pixels] * frames) if frames > 1 else pixels, BitsStored=8 * pixels.itemsize * 3 // 4)
    return to_bytes(encapsulated(dataset, syntax, [encode(pixels)] * frames))


def _lossless_jpeg(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=12 if pixels.itemsize == 2 else 8))


def _deep_jpeg(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, bitspersample=12, level=95))


def _encapsulated(stream: bytes, dataset: Dataset | None = None, *, colour: bool = False) -> bytes:
    dataset = dataset or radiograph(_pixels(), ExplicitVRLittleEndian)
    if colour:
        dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, "YBR_FULL_422"
    syntax = JPEGBaseline8Bit if stream.startswith(b"\xff\xd8") else JPEG2000Lossless
    return to_bytes(encapsulated(dataset, syntax, [stream]))


def _samples() -> list[bytes]:
    """Pydicom's packaged files, with the SOP class and modality that let their pixels be decoded."""
    samples = []
    for path in sorted(Path(pydicom.__file__).parent.glob("data/test_files/*.dcm")):
        if path.stat().st_size <= _LARGEST_SAMPLE:
            data = _STORAGE_CLASS.sub(lambda match: _CR.ljust(len(match[0]), b"\0"), path.read_bytes())
            samples += [data.replace(tag + modality, tag + b"CR") for tag, modality in _modalities(data)] or [data]
    return samples


_CR = b"1.2.840.10008.5.1.4.1.1.1"
_STORAGE_CLASS = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.[0-9.]+")


def _modalities(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return how the file writes its modality: the bytes in front of it, and itself."""
    for tag in (b"\x08\x00\x60\x00CS\x02\x00", b"\x08\x00\x60\x00\x02\x00\x00\x00", b"\x00\x08\x00\x60CS\x00\x02"):
        start = data.find(tag)
        if start >= 0:
            return [(tag, data[start + len(tag) : start + len(tag) + 2])]
    return []


def _tar(mode: str, tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=tar_format) as tar:  # type: ignore[call-overload]
        for name, data in (("NORMAL/1.jpg", _encode(_grey(), "JPEG")), ("../../climbs.png", _encode(_grey(), "PNG"))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind, target in ((tarfile.SYMTYPE, "1.jpg"), (tarfile.LNKTYPE, "NORMAL/1.jpg")):
            info = tarfile.TarInfo(f"NORMAL/link{kind.decode()}.jpg")
            info.type, info.linkname = kind, target
            tar.addfile(info)
        info = tarfile.TarInfo(f"{'long' * 20}/{'ü' * 40}.dcm")
        info.size = 600
        tar.addfile(info, io.BytesIO(_dicom(_pixels())[:600]))
    return stream.getvalue()


def _zip(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("NORMAL/1.jpg", _encode(_grey(), "JPEG"))
        archive.writestr("../../climbs.png", _encode(_grey(), "PNG"))
        archive.writestr("folder/", b"")
        archive.writestr("ü.dcm", _dicom(_pixels())[:600])
    return stream.getvalue()


def _side(samples: int) -> int:
    return isqrt(MAX_SAMPLES // samples)


def _blank(samples: int, dtype: type = np.uint8, bands: int = 0) -> np.ndarray:
    side = _side(samples)
    return np.zeros((side, side, bands) if bands else (side, side), dtype)


def _noise(dtype: type) -> np.ndarray:
    side = _side(DEEP_SAMPLES)
    return np.random.default_rng(0).integers(0, 1 << 30, (side, side)).astype(dtype)


def _enlarged(jpeg: bytes, samples: int) -> bytes:
    """Return a JPEG whose header claims the limit; libjpeg fills what is not there with grey."""
    start = next(match.start() for match in re.finditer(rb"\xff[\xc0\xc2]\x00", jpeg))
    return jpeg[: start + 5] + _side(samples).to_bytes(2, "big") * 2 + jpeg[start + 9 :]


def _limit_jpeg2000() -> bytes:
    stream = _encode(Image.fromarray(_blank(1, np.uint16)), "JPEG2000", no_jp2=True)
    return _encapsulated(stream, radiograph(_blank(1, np.uint16), ExplicitVRLittleEndian))


_LIMIT_IMAGES: tuple[Callable[[], bytes], ...] = (
    lambda: _encode(Image.fromarray(_blank(4, bands=4)), "WEBP", lossless=True, method=0),
    lambda: _encode(Image.fromarray(_blank(1, np.uint16)), "TIFF", compression="tiff_lzw"),
    lambda: _encode(Image.fromarray(_noise(np.float32)), "TIFF"),
    lambda: _encode(Image.fromarray(_blank(1, np.uint16)), "PNG", compress_level=1),
    lambda: _encode(Image.fromarray(_blank(4, bands=4)), "PNG", compress_level=1),
    lambda: _enlarged(_encode(_colour().convert("CMYK"), "JPEG", progressive=True), 4),
    lambda: _enlarged(_encode(_grey(), "JPEG"), 1),
    lambda: _dicom(_noise(np.uint32)),
    lambda: _dicom(_blank(1, np.uint16), DeflatedExplicitVRLittleEndian),
    lambda: _compressed(RLELossless, _blank(1, np.uint16)),
    _limit_jpeg2000,
)
NUM_LIMIT_IMAGES = len(_LIMIT_IMAGES)
