"""The real files of ../shared/data/dicom: all decode, with the stored values and the grey of dcmtk."""

import csv
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_builders import rendered_by_dcmtk, to_bytes
from pydicom.uid import ExplicitVRLittleEndian

from pneumo_ray.data.decode import decode_with_note, inspect_image
from pneumo_ray.data.dicom import read_dataset
from pneumo_ray.data.dicom_pixels import StoredFrame, stored_frame

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "dicom"
NAMES = sorted(path.name for path in FOLDER.glob("*.dcm"))
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
pytestmark = pytest.mark.skipif(not NAMES, reason="the real DICOM files are not here")


def frame(name: str) -> tuple[pydicom.Dataset, StoredFrame]:
    dataset = read_dataset((FOLDER / name).read_bytes())
    return dataset, stored_frame(dataset, 0)


def test_every_file_of_the_index_decodes():
    with (FOLDER / "index.csv").open() as lines:
        listed = {row["file"]: row for row in csv.DictReader(lines)}
    assert sorted(listed) == NAMES
    for name, row in listed.items():
        data = (FOLDER / name).read_bytes()
        decoded, info = decode_with_note(data), inspect_image(data)
        assert decoded.pixels.shape == (info.height, info.width) == (int(row["rows"]), int(row["cols"]))
        assert decoded.pixels.std() > 10
        assert decoded.note is None


@pytest.mark.parametrize("name", NAMES)
def test_stored_values_are_those_of_dcmtk(name, tmp_path):
    """Dcmtk keeps the samples by which a lossy codec overshoots the stored bits; here they are white."""
    dataset, stored = frame(name)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in JPEG_2000:
        pytest.skip("dcmtk has no JPEG 2000")
    tools = {"5": "dcmdrle", "80": "dcmdjpls", "81": "dcmdjpls"}
    source, target = FOLDER / name, tmp_path / "native.dcm"
    if syntax.is_compressed:
        subprocess.run([tools.get(syntax.rsplit(".", 1)[-1], "dcmdjpeg"), source, target], check=True)
        source = target
    native = pydicom.dcmread(source)
    words = np.frombuffer(native.PixelData, f"<u{native.BitsAllocated // 8}")[: native.Rows * native.Columns]
    expected = np.minimum(words, (1 << native.BitsStored) - 1).reshape(native.Rows, native.Columns)
    assert np.array_equal(stored.pixels, expected)


@pytest.mark.parametrize("name", NAMES)
def test_grey_is_that_of_dcmtk(name):
    """From the stored values, because dcmtk has no JPEG 2000; the window of the file, or all values without one."""
    dataset, stored = frame(name)
    dataset = pydicom.dcmread(FOLDER / name)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = stored.pixels.astype(f"<u{dataset.BitsAllocated // 8}").tobytes()
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OW", False
    has_window = "WindowCenter" in dataset
    expected = rendered_by_dcmtk(
        to_bytes(dataset), *(["+Wi", "1"] if has_window else ["+Wm"] if stored.bits > 8 else [])
    )
    if expected is None:
        pytest.skip("dcmtk is not installed")
    if list(dataset.get("PatientOrientation") or []) == ["R", "F"]:
        expected = expected[:, ::-1]
    # Without a window the percentiles stand where dcmtk has the extremes.
    assert np.abs(decode_with_note((FOLDER / name).read_bytes()).pixels - expected).max() <= (
        1 if has_window or stored.bits == 8 else 4
    )
