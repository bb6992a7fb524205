"""No patient is named in anything that a job says or writes, its logs and error rows among them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from pneumo_ray.data.prepare import PrepareConfig, prepare
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.job import explain_archive

IDENTIFIERS = {
    "PatientName": "WINTERBOTTOM^ZELDA",
    "PatientID": "MRN-5550173",
    "PatientBirthDate": "20190623",
    "AccessionNumber": "ACC-8642097",
    "ReferringPhysicianName": "PHYSICIAN^QUENTIN",
    "InstitutionName": "St Aldhelm Hospital",
    "PatientAddress": "17 Larkspur Row",
}
TRACES = [part.encode() for value in IDENTIFIERS.values() for part in value.split("^")]


def radiograph(number: int, **changes: object) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    for keyword, value in IDENTIFIERS.items():
        setattr(dataset, keyword, value)
    dataset.PatientID += str(number // 2)  # two images of each patient
    pixels = np.random.default_rng(number).integers(0, 256, (80, 70), dtype=np.uint8)
    dataset.Modality, dataset.PhotometricInterpretation = "CR", "MONOCHROME2"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 80, 70, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def write_archive(root: Path) -> None:
    """12 good radiographs, and one for each way of failing; some with a name where another value belongs."""
    for number in range(12):
        folder = root / ("NORMAL" if number % 4 < 2 else "PNEUMONIA")
        folder.mkdir(parents=True, exist_ok=True)
        dcmwrite(folder / f"{number}.dcm", radiograph(number), enforce_file_format=True)
    good = (root / "NORMAL" / "0.dcm").read_bytes()
    name = IDENTIFIERS["PatientName"].encode()
    bad = {
        "cut.dcm": good[: len(good) - 900],
        "cut-header.dcm": good[: good.index(name) + len(name) + 3],
        "named-photometric.dcm": good.replace(b"MONOCHROME2 ", name[:12]),
        "named-modality.dcm": good.replace(b"CS\x02\x00CR", b"CS\x02\x00WI"),
        "named-text.jpg": b"\xff\xd8\xff" + name * 40,
    }
    named = radiograph(90, WindowCenter="1234567", WindowWidth="7654321")
    dcmwrite(root / "NORMAL" / "named-window.dcm", named, enforce_file_format=True)
    path = root / "NORMAL" / "named-window.dcm"
    path.write_bytes(path.read_bytes().replace(b"1234567", name[:7]).replace(b"7654321", name[-7:]))
    dcmwrite(
        root / "NORMAL" / "ct.dcm",
        radiograph(91, Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"),
        enforce_file_format=True,
    )
    for file, data in bad.items():
        (root / "NORMAL" / file).write_bytes(data)


def test_prepare_and_explain_output_names_no_patient(ray_cluster, model, tmp_path, capfd):
    write_archive(tmp_path / "archive")
    prepare(PrepareConfig(archive=(str(tmp_path / "archive"),), out=str(tmp_path / "run"), cache=True))
    scores = ExplainConfig(
        model=str(model), out=str(tmp_path / "scores"), archive=(str(tmp_path / "archive"),), amp="off"
    )
    explain_archive(scores)
    said = capfd.readouterr()

    manifest = pq.read_table(tmp_path / "run" / "manifest.parquet").to_pylist()
    assert len(manifest) == 19
    assert sum(row["status"] == "failed" for row in manifest) >= 5
    patients = {row["patient_id"] for row in manifest if row["image_id"].split("/")[-1][:-4].isdigit()}
    assert len(patients) == 6, "two images of one patient belong together all the same"
    assert json.loads((tmp_path / "scores" / "_run.json").read_text())["rows"] == 19

    logs = Path(ray_cluster._private.worker._global_node.get_session_dir_path()) / "logs"
    written = [path for folder in (tmp_path / "run", tmp_path / "scores", logs) for path in folder.rglob("*")]
    texts = {str(path): path.read_bytes() for path in written if path.is_file()}
    texts |= {"stdout": said.out.encode(), "stderr": said.err.encode()}
    assert len(texts["stdout"]) > 100
    for place, text in texts.items():
        if place.endswith(".parquet"):  # compressed
            text = repr(pq.read_table(place).to_pylist()).encode()
        for trace in TRACES:
            assert trace not in text, f"{trace!r} in {place}"
