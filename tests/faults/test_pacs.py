"""Scoring from a PACS whose driver is killed: what is scored stays, and the rows are those of one go."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from dicom_builders import radiograph, to_bytes

from pneumo_ray.records import Row

N = 96


def radiographs() -> list[bytes]:
    files = []
    for number in range(N):
        pixels = (np.kron(np.random.default_rng(number).random((9, 8)), np.ones((12, 12))) * 4000).astype(np.uint16)
        uids = {
            f"{level}InstanceUID": f"1.2.826.0.{place}.{number + 1}"
            for place, level in enumerate(("Study", "Series", "SOP"), 1)
        }
        dataset = radiograph(pixels, BitsStored=12, **uids)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        files.append(to_bytes(dataset))
    return files


def rows_of(out: Path) -> dict[str, Row]:
    rows = [row for path in out.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    found = {row["image_id"]: row for row in rows}
    assert len(found) == len(rows), "an image is scored twice"
    return found


def test_killed_scoring_from_a_pacs_continues(nodes, orthanc, model, tmp_path):
    """Killed at three moments: with the list written, and with some and more of the parts."""
    orthanc.store(radiographs())
    nodes.start_head(2)

    def job(out: Path):
        words = (
            "--archive",
            f"{orthanc.address}?Modality=CR",
            "--model",
            str(model),
            "--out",
            str(out),
            "--amp",
            "off",
        )
        return nodes.job("jobs/explain.py", *words)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    job(whole).ends(seconds=500)
    killed.mkdir()
    shutil.copy(whole / ".salt", killed / ".salt")  # images are called alike
    seen = []
    for enough in (0, 1, 3):
        running = job(killed)
        running.until(
            lambda least=enough: (killed / "_job" / "pictures.parquet").exists() and len(list(killed.glob("part-*.parquet"))) >= least
        )  # fmt: skip
        running.kill()
        seen.append(len(rows_of(killed)))
        assert not (killed / "_run.json").exists()
    job(killed).ends(seconds=500)
    print(f"killed with {seen} of {N} rows written")
    assert seen == sorted(seen)
    assert len(rows_of(whole)) == N
    assert rows_of(killed) == rows_of(whole)
