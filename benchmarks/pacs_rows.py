"""What the measurements and the demonstration of a PACS are made with: phantoms as CR files, and drawn scores of them."""

import io
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from pneumo_ray.explain.case import WHOLE
from pneumo_ray.explain.zones import ZONES
from pneumo_ray.pacs.objects import OF_KIND
from pneumo_ray.pacs.result import Algorithm, Part
from pneumo_ray.pacs.rows import Facts
from pneumo_ray.pacs.uids import derived_uid
from pneumo_ray.phantom.synthetic import draw_radiograph
from pneumo_ray.records import Row

CR = "1.2.840.10008.5.1.4.1.1.1"
PARTS: tuple[Part, ...] = tuple(part for parts in OF_KIND.values() for part in parts)
FACTS = Facts((7, 7), 0.4, 2.0, 0.1, "image", "m" * 64, "c" * 64, WHOLE)
ALGORITHM = Algorithm("resnet18", "0", "m" * 64, "c" * 64, (), PARTS[1:], datetime(2026, 1, 1))
_NUMBERS = (
    "prob_mean", "prob_std", "logit_mean", "logit_std", "entropy", "expected_entropy", "mutual_information",
    *(f"zone_{kind}_{zone}" for kind in ("mean", "std") for zone in ZONES),
)  # fmt: skip


def phantom(index: int, *, pneumonia: bool) -> np.ndarray:
    """Return the pixels of a phantom patient, uint8 [H, W] of 320 pixels on the shorter side."""
    pixels, _ = draw_radiograph(0, index, pneumonia=pneumonia, image_size=320, difficulty=0.0)
    return pixels


def cr_file(index: int, pixels: np.ndarray, bits_stored: int = 8) -> bytes:
    """Return a CR file of a phantom patient, with a study of its own.

    Args:
        index: of the patient.
        pixels: uint8 or uint16 [H, W].
        bits_stored: bits of a pixel that count.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CR
    dataset.SOPInstanceUID = derived_uid("phantom", str(index))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID = derived_uid("study", str(index))
    dataset.SeriesInstanceUID = derived_uid("series", str(index))
    dataset.PatientName, dataset.PatientID = f"PHANTOM^{index:03d}", f"P{index:03d}"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyID = "20200101", "O", str(index)
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260105", "101112", f"A{index:03d}"
    dataset.ReferringPhysicianName, dataset.Manufacturer, dataset.Modality = "", "phantom", "CR"
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.PatientOrientation = "CHEST", "AP", ["L", "F"]
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored = 8 * pixels.itemsize, bits_stored
    dataset.HighBit, dataset.PixelRepresentation = bits_stored - 1, 0
    dataset.WindowCenter, dataset.WindowWidth = 1 << bits_stored - 1, 1 << bits_stored
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def drawn_row(number: int) -> Row:
    """Return a row of scores, drawn at random; its map is of a window that leaves the image on two sides."""
    rng = np.random.default_rng(number)
    row: Row = {name: float(rng.random(dtype=np.float32)) for name in _NUMBERS}
    row |= {"image_id": f"i{number}", "status": "ok", "predicted": int(rng.integers(2)), "target": int(rng.integers(2))}
    row |= {"refer": bool(rng.integers(2)), "view": "frontal", "outside_support": None, "outside_share": None}
    row |= {"lung_share": float(rng.random(dtype=np.float32)), "peak_in_lungs": 1.0}
    row |= {name: rng.random(49, np.float32).tolist() for name in ("cam_mean", "cam_std")}
    return row | dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), (-0.1, 0.0, 1.1, 1.0), strict=True))


def write_scores(folder: Path, count: int) -> tuple[Path, Path]:
    """Write drawn scores of one CR file under many names, and the model that they claim; return model and scores."""
    import torch

    from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, load_bundle, save_bundle
    from pneumo_ray.score.image_list import SCHEMA, write_tables
    from pneumo_ray.score.schema import NUMBERS, ScoreFacts

    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none"))
    save_bundle(folder / "model", net, preprocessing=Preprocessing(224, 256))
    (folder / "one.dcm").write_bytes(cr_file(0, phantom(0, pneumonia=True)))
    names = [f"i{number}" for number in range(count)]
    listed = [{"image_id": name, "uri": str(folder / "one.dcm")} for name in names]
    tables = (pa.Table.from_pylist(listed[start : start + 1024], schema=SCHEMA) for start in range(0, count, 1024))
    source = write_tables(tables, str(folder / "scores" / "_job" / "pictures.parquet"), 224)
    digest = load_bundle(folder / "model").hash
    facts = ScoreFacts((7, 7), digest, "c" * 64, 0.4, 2.0, {"target": "predicted", "zones": "image"})
    start = 0
    for shard in range(source.num_shards):
        rows = [drawn_row(0)] * source.length(shard)
        columns = {name: _column([row[name] for row in rows]) for name in rows[0] if name not in ("image_id", "status")}
        columns |= {name: columns.get(name, np.zeros(len(rows), np.float32)) for name in NUMBERS}
        columns["outside_share"] = np.full(len(rows), np.nan, np.float32)
        table = facts.table(names[start : start + len(rows)], [None] * len(rows), columns)
        pq.write_table(table, folder / "scores" / f"part-{shard:06d}.parquet")
        start += len(rows)
    run = {"config": {"passes": 20}, "model": {"hash": digest, "architecture": "resnet18"}}
    (folder / "scores" / "_run.json").write_text(json.dumps(run | {"versions": {"pneumo_ray": "0"}, "site_hash": None}))
    return folder / "model", folder / "scores"


def _column(values: list[object]) -> np.ndarray:
    column = np.array(values)
    return column.astype({"f": np.float32, "i": np.int8, "b": np.bool_}.get(column.dtype.kind, object))


def rows_by_instance(scores: Path) -> dict[str, Row]:
    """Return the rows of scores of `cr_file`s without the names of the images, by SOP Instance UID.

    Args:
        scores: of a PACS, whose index has the UIDs, or of a folder, whose files are named by a number.
    """
    uids: dict[str, str] = {}
    for path in (scores / "_pacs").glob("*.pacs"):
        index = pa.ipc.open_file(path).read_all()
        uids |= dict(zip(index["image"].to_pylist(), index["instance"].to_pylist(), strict=True))
    for listed in pq.read_table(scores / "_job" / "pictures.parquet", columns=["image_id", "uri"]).to_pylist():
        uids.setdefault(listed["image_id"], derived_uid("phantom", Path(listed["uri"]).stem))
    rows = [row for path in scores.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    return {uids[row.pop("image_id")]: row for row in rows}


def difference(one: Row, two: Row) -> float:
    """Return the largest difference of two numbers of two rows; infinity where something else differs."""
    largest = 0.0
    for name, value in one.items():
        other = two[name]
        if repr(value) == repr(other):
            continue
        try:
            largest = max(largest, float(np.abs(np.subtract(value, other)).max()))
        except TypeError:
            return float("inf")
    return largest
