"""An archive of everything that can be wrong with a file."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from dicom_builders import encapsulated, jpeg2000
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, save_bundle


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def dicom(
    pixels: np.ndarray, photometric: str = "MONOCHROME2", modality: str = "CR", syntax: str | None = None
) -> bytes:
    """A minimal file around uint8 pixels [H, W], [frames, H, W], or [H, W, 3] for RGB."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    storage = "1.2.840.10008.5.1.4.1.1.2" if modality == "CT" else "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = storage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "DOE^JANE", "SECRET7", modality
    colour = photometric == "RGB"
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    if syntax == JPEG2000Lossless:
        encapsulated(dataset, syntax, [jpeg2000(pixels)])
    elif syntax is not None:
        dataset.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture(scope="session")
def dicom_file():
    """What makes a minimal DICOM file."""
    return dicom


@pytest.fixture(scope="session")
def nasty(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """An archive, and for each image in it `ok` or the stage and kind of its failure."""
    root = tmp_path_factory.mktemp("nasty") / "archive"
    root.mkdir()
    rng = np.random.default_rng(0)
    grey = (np.kron(rng.random((10, 10)), np.ones((12, 12))) * 255).astype(np.uint8)
    jpeg = encoded(grey, "JPEG")
    files = {
        "good.jpg": (jpeg, "ok"),
        "with space.jpg": (jpeg, "ok"),
        "ümläut 肺.jpg": (jpeg, "ok"),
        "new\nline.jpg": (jpeg, "ok"),
        "empty.jpg": (b"", "read: empty"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "decode: truncated"),
        "text.jpg": (b"this is a text file", "decode: not_an_image"),
        "sixteen.png": (encoded(grey.astype(np.uint16) * 257, "PNG"), "ok"),
        "cmyk.jpg": (encoded(np.dstack([grey] * 3), "JPEG", "CMYK"), "ok"),
        "mono1.dcm": (dicom(grey, "MONOCHROME1"), "ok"),
        "mono2": (dicom(grey, "MONOCHROME2"), "ok"),
        "rgb.dcm": (dicom(np.dstack([grey] * 3), "RGB"), "ok"),
        "rle.dcm": (dicom(grey, syntax=RLELossless), "ok"),
        "jpeg2000.dcm": (dicom(grey, syntax=JPEG2000Lossless), "ok"),
        "ct.dcm": (dicom(grey, modality="CT"), "decode: wrong_modality"),
        "disguised.jpg": (dicom(np.stack([grey, grey])), "decode: many_frames"),
    }
    expected = {}
    for name, (data, status) in files.items():
        (root / name).write_bytes(data)
        expected[name] = status
    (root / "many.dcm").write_bytes(dicom(np.stack([grey, 255 - grey, grey // 2])))
    expected |= {f"many.dcm#{frame}": "ok" for frame in range(3)}
    samples = Path(pydicom.__file__).parent / "data" / "test_files"
    for name in ("MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_jpeg_no_color_transform.dcm"):
        if (samples / name).exists():
            (root / name).write_bytes((samples / name).read_bytes())
            expected[name] = "any"
    with tarfile.open(root / "pack.tar", "w") as tar:
        for name in ("../../evil.jpg", "in/side.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg)
            tar.addfile(info, io.BytesIO(jpeg))
            expected[f"pack.tar/{name}"] = "ok"
    with zipfile.ZipFile(root / "pack.zip", "w") as pack:
        pack.writestr("../../evil.jpg", jpeg)
    expected["pack.zip/../../evil.jpg"] = "ok"
    (root / "broken.tar").write_bytes(b"no tar file")
    expected["broken.tar"] = "list: archive"
    (root / ".hidden.jpg").write_bytes(jpeg)
    (root / "notes.txt").write_bytes(b"this is a text file")
    os.symlink("loop.jpg", root / "loop.jpg")
    expected["loop.jpg"] = "read: unreadable"
    os.symlink(root, root / "itself")
    (root / "secret.jpg").write_bytes(jpeg)
    (root / "secret.jpg").chmod(0)
    expected["secret.jpg"] = "ok" if os.geteuid() == 0 else "read: unreadable"  # root reads everything
    return root, expected


def member(folder: Path, seed: int, size: int = 64, members: int = 3, **provenance) -> Path:
    torch.manual_seed(seed)
    net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none"))
    torch.nn.init.normal_(net.classifier.weight, std=0.1)
    point = {"threshold": 0.3 + 0.1 * seed, "rule": "youden"}
    provenance = {"config": {"members": members, "seed": seed}} | provenance
    save_bundle(
        folder,
        net,
        preprocessing=Preprocessing(size, size + 9),
        temperature=1 + 0.2 * seed,
        operating_point=point,
        provenance=provenance,
    )
    return folder


@pytest.fixture(scope="session")
def save_member() -> Callable[..., Path]:
    """Save a member of an ensemble with random weights: (folder, seed, size=64, members=3, **provenance)."""
    return member


@pytest.fixture(scope="session")
def members(tmp_path_factory) -> list[str]:
    """Three members of an ensemble that differ in weights, temperature and threshold."""
    folder = tmp_path_factory.mktemp("members")
    return [str(member(folder / str(seed), seed)) for seed in range(3)]
