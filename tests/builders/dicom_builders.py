"""DICOM objects for tests and for the fuzzer, built by pydicom and encoded by dcmtk or imagecodecs, never by the product."""

import io
import subprocess
import tempfile
import warnings
from collections.abc import Sequence as Many
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

CR = "1.2.840.10008.5.1.4.1.1.1"
PATIENT = {"PatientName": "DOE^JANE", "PatientID": "SECRET7", "PatientBirthDate": "20150101"}


def ramp(dtype: type = np.uint16, size: int = 4096) -> np.ndarray:
    """Values 0 .. size - 1 in rows of size / 64."""
    return np.arange(size, dtype=dtype).reshape(64, -1)


def radiograph(pixels: np.ndarray, syntax: str = ImplicitVRLittleEndian, **elements: object) -> Dataset:
    """A CR object around native `pixels` [H, W] or [frames, H, W]; `elements` set or, with None, remove."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CR
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    for keyword, value in PATIENT.items():
        setattr(dataset, keyword, value)
    dataset.Modality = "CR"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    if "BitsStored" in elements and "HighBit" not in elements:
        dataset.HighBit = dataset.BitsStored - 1
    is_little = syntax != ExplicitVRBigEndian
    raw = pixels.astype(pixels.dtype.newbyteorder("<" if is_little else ">")).tobytes()
    dataset.PixelData = raw + b"\x00" * (len(raw) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return dataset


def encapsulated(dataset: Dataset, syntax: str, frames: Many[bytes]) -> Dataset:
    """Put codestreams, one a frame, in place of the pixels."""
    return with_items(dataset, syntax, encapsulate(list(frames), has_bot=len(frames) > 1))


def with_items(dataset: Dataset, syntax: str, items: bytes) -> Dataset:
    """Put encapsulated pixel data as it stands in place of the pixels."""
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = items
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def items_of(table: bytes | None, fragments: Many[bytes]) -> bytes:
    """Encapsulated pixel data with an offset table of any content, or none, and any fragments."""
    parts = [*([] if table is None else [table]), *(fragment + b"\0" * (len(fragment) % 2) for fragment in fragments)]
    return b"".join(b"\xfe\xff\x00\xe0" + len(part).to_bytes(4, "little") + part for part in parts)


def to_bytes(dataset: Dataset) -> bytes:
    """The file."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def lut(table: Many[int], first: int, bits: int, vr: str = "US") -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(table) % 65536, first, bits])
    item.add_new("LUTData", "US", list(table))
    return item


def words_lut(words: np.ndarray, descriptor: Many[int], vr: str = "US") -> Dataset:
    """The same with entries as the bytes of words."""
    item = Dataset()
    item.add_new("LUTDescriptor", vr, list(descriptor))
    item.add_new("LUTData", "OW", words.tobytes())
    return item


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    """A baseline JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 95, **options})
    return stream.getvalue()


def jpeg2000(pixels: np.ndarray) -> bytes:
    """A lossless JPEG 2000 codestream."""
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0, reversible=True))


def htj2k(pixels: np.ndarray) -> bytes:
    """A lossless High-Throughput JPEG 2000 codestream, by OpenJPH."""
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=True))


def jpeg_ls(pixels: np.ndarray, near: int = 0) -> bytes:
    """A JPEG-LS codestream."""
    return bytes(imagecodecs.jpegls_encode(pixels, level=near))


def by_dcmtk(dataset: Dataset, tool: str, *options: str) -> bytes:
    """The file as a tool of dcmtk (`dcmcjpeg`, `dcmcjpls`, `dcmcrle`) encodes it; `dataset` is of explicit VR."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.dcm", Path(folder) / "target.dcm"
        source.write_bytes(to_bytes(dataset))
        subprocess.run([tool, *options, source, target], check=True, capture_output=True)
        return target.read_bytes()


def rendered_by_dcmtk(data: bytes, *options: str, tool: str = "dcmj2pnm") -> np.ndarray | None:
    """Dcmtk's 8-bit rendering, int [H, W]; None where it has none."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.dcm", Path(folder) / "target.pgm"
        source.write_bytes(data)
        subprocess.run([tool, "+opb", *options, source, target], check=False, capture_output=True)
        if not target.exists() or not target.stat().st_size:
            return None
        return np.array(Image.open(target).convert("L")).astype(int)
