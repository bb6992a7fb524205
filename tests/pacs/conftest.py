"""Scores of a few DICOM images as files, drawn at random: nothing is trained, scored or started."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dicom_builders import radiograph, to_bytes

from pneumo_ray.explain import ZONES
from pneumo_ray.model import load_bundle
from pneumo_ray.score.image_list import SCHEMA, write_tables
from pneumo_ray.score.schema import NUMBERS, ScoreFacts

MAP = (7, 7)
PLANTED = {
    "PatientName": "WINTERBOTTOM^ZELDA",
    "PatientID": "MRN-5550173",
    "PatientBirthDate": "20190623",
    "AccessionNumber": "ACC-8642097",
}


def image(number: int, rows: int = 90, columns: int = 70, **elements: object) -> bytes:
    """A CR file; two images are of one study."""
    pixels = np.random.default_rng(number).integers(0, 4096, (rows, columns), np.uint16)
    uid = f"1.2.826.0.1.{number + 1}"
    values = {
        "BitsStored": 12, "SOPInstanceUID": uid, "StudyInstanceUID": f"1.2.826.0.2.{number // 2 + 1}",
        "SeriesInstanceUID": f"1.2.826.0.3.{number // 2 + 1}", "InstanceNumber": number % 2 + 1, "StudyDate": "20260105",
        "StudyTime": "101112", "PatientSex": "F", "StudyID": "S1", "Manufacturer": "ACME", "ViewPosition": "AP",
    }  # fmt: skip
    dataset = radiograph(pixels, **(values | PLANTED | elements))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return to_bytes(dataset)


def drawn_columns(n: int, seed: int = 1, cells: int = 49) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {name: rng.random(n).astype(np.float32) for name in NUMBERS}
    columns |= {
        "predicted": rng.integers(0, 2, n).astype(np.int8),
        "refer": rng.random(n) < 0.5,
        "target": rng.integers(0, 2, n).astype(np.int8),
        "cam_mean": rng.random((n, cells)).astype(np.float32),
        "cam_std": rng.random((n, cells)).astype(np.float32),
        "outside_share": np.full(n, np.nan, np.float32),
        "lung_share": rng.random(n).astype(np.float32),
        "peak_in_lungs": np.ones(n, np.float32),
        "view": np.array(["frontal"] * n, object),
        "outside_support": np.array([None] * n, object),
        **{name: np.full(n, value, np.float32) for name, value in zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), (0, 0, 1, 1), strict=True)},
    }  # fmt: skip
    return columns | {f"zone_{kind}_{zone}": rng.random(n).astype(np.float32) for kind in ("mean", "std") for zone in ZONES}


Scored = Callable[..., Path]


@pytest.fixture
def scored(tmp_path: Path, model: Path) -> Scored:
    """Write scores of DICOM files, and of one file that failed: (files, name, **columns) -> folder of the scores."""

    def write(files: dict[str, bytes], name: str = "scores", config_hash: str = "c" * 64, **changes: object) -> Path:
        folder, archive = tmp_path / name, tmp_path / "archive"
        archive.mkdir(exist_ok=True)
        for file, content in files.items():
            (archive / file).write_bytes(content)
        names = [*files, "bad.dcm"]
        rows = [{"image_id": file, "uri": str(archive / file)} for file in names]
        write_tables([pa.Table.from_pylist(rows, schema=SCHEMA)], str(folder / "_job" / "pictures.parquet"), 64)
        digest = load_bundle(model).hash
        facts = ScoreFacts(MAP, digest, config_hash, 0.4, 2.0, {"target": "predicted", "zones": "image"}, intercept=0.1)
        table = facts.table(names, [None] * len(files) + [("read", "empty: x")], drawn_columns(len(files)) | changes)
        pq.write_table(table, folder / "part-000000.parquet")
        run = {
            "config": {"passes": 20, "posterior": "dropout", "target": "predicted"},
            "model": {"hash": digest, "architecture": "resnet18"},
            "versions": {"pneumo_ray": "0.1.0"},
            "site_hash": None,
        }
        (folder / "_run.json").write_text(json.dumps(run))
        return folder

    return write


