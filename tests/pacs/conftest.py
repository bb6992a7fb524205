"""Scores of a few DICOM images as files, drawn at random: nothing is trained, scored or started."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dicom_builders import radiograph, to_bytes

from pneumo_ray.explain import ZONES
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, load_bundle, save_bundle
from pneumo_ray.score.image_list import SCHEMA, write_tables
from pneumo_ray.score.schema import NUMBERS, ScoreFacts

MAP = (7, 7)
PLANTED = {
    "PatientName": "WINTERBOTTOM^ZELDA",
    "PatientID": "MRN-5550173",
    "PatientBirthDate": "20190623",
    "AccessionNumber": "ACC-8642097",
}


def _image(number: int, rows: int = 90, columns: int = 70, **elements: object) -> bytes:
    """A CR file; two images are of one study."""
    pixels = np.random.default_rng(number).integers(0, 4096, (rows, columns), np.uint16)
    uid = f"1.2.826.0.1.{number + 1}"
    values = {
        "BitsStored": 12, "SOPInstanceUID": uid, "StudyInstanceUID": f"1.2.826.0.2.{number // 2 + 1}",
        "SeriesInstanceUID": f"1.2.826.0.3.{number // 2 + 1}", "InstanceNumber": number % 2 + 1, "StudyDate": "20260105",
        "StudyTime": "101112", "PatientSex": "F", "StudyID": "S1", "Manufacturer": "ACME", "ViewPosition": "AP",
    }  # fmt: skip
    dataset = radiograph(pixels, **(values | PLANTED | elements))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID or uid
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
    return columns | {
        f"zone_{kind}_{zone}": rng.random(n).astype(np.float32) for kind in ("mean", "std") for zone in ZONES
    }


@pytest.fixture(scope="session")
def cr_file() -> Callable[..., bytes]:
    """What makes a CR file: (number, rows=90, columns=70, **elements); two images are of one study."""
    return _image


Scored = Callable[..., Path]


@pytest.fixture
def scored(tmp_path: Path, model: Path) -> Scored:
    """Write scores of DICOM files, and of one file that failed: (files, name, **columns) -> folder of the scores."""

    def write(
        files: dict[str, bytes],
        name: str = "scores",
        config_hash: str = "c" * 64,
        frames: bool = False,
        **changes: object,
    ) -> Path:
        folder, archive = tmp_path / name, tmp_path / "archive"
        archive.mkdir(exist_ok=True)
        for file, content in files.items():
            (archive / file.partition("#")[0]).write_bytes(content)
        names = [*files, "bad.dcm"]
        rows = [{"image_id": file, "uri": str(archive / file.partition("#")[0])} for file in names]
        for row, file in zip(rows, names, strict=True):
            row["frame"] = int(file.partition("#")[2]) if frames and "#" in file else None
        listed = pa.Table.from_pylist(rows, schema=SCHEMA)
        source = write_tables([listed], str(folder / "_job" / "pictures.parquet"), 64)
        digest = load_bundle(model).hash
        facts = ScoreFacts(MAP, digest, config_hash, 0.4, 2.0, {"target": "predicted", "zones": "image"}, intercept=0.1)
        table = facts.table(names, [None] * len(files) + [("read", "empty: x")], drawn_columns(len(files)) | changes)
        start = 0
        for shard in range(source.num_shards):
            pq.write_table(table.slice(start, source.length(shard)), folder / f"part-{shard:06d}.parquet")
            start += source.length(shard)
        run = {
            "config": {"passes": 20, "posterior": "dropout", "target": "predicted"},
            "model": {"hash": digest, "architecture": "resnet18"},
            "versions": {"pneumo_ray": "0.1.0"},
            "site_hash": None,
        }
        (folder / "_run.json").write_text(json.dumps(run))
        return folder

    return write


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with other weights than `model`."""
    torch.manual_seed(1)
    net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none"))
    folder = tmp_path_factory.mktemp("other") / "model"
    save_bundle(folder, net, preprocessing=Preprocessing(64, 73))
    return folder
