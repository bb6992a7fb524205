"""A decoder that does not come back: a JPEG 2000 of noise, which takes seconds where others take milliseconds."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom.uid import JPEG2000Lossless

from pneumo_ray.data.prepare import PrepareConfig, prepare
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.job import explain_archive

SECONDS = 1.0


@pytest.fixture(scope="module")
def archive(phantom_archive, dicom_file, tmp_path_factory):
    """40 phantoms and one file that takes too long, in the middle."""
    folder = tmp_path_factory.mktemp("hanging")
    for number, path in enumerate(sorted(phantom_archive.rglob("*.jpeg"))[:40]):
        (folder / f"{number:02d}.jpeg").symlink_to(path)
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000)).astype(np.uint8)
    (folder / "20-slow.dcm").write_bytes(dicom_file(noise, syntax=JPEG2000Lossless))
    return folder


@pytest.mark.parametrize("job", ["prepare", "explain"])
@pytest.mark.faults
def test_an_image_that_hangs_its_decoder_fails_alone(job, ray_cluster, archive, model, tmp_path):
    if job == "prepare":
        prepare(PrepareConfig(archive=(str(archive),), out=str(tmp_path), cache=True, decode_seconds=SECONDS))
        table = pq.read_table(tmp_path / "manifest.parquet")
    else:
        explain_archive(
            ExplainConfig(
                model=str(model), out=str(tmp_path), archive=(str(archive),), amp="off", decode_seconds=SECONDS
            )
        )
        parts = [pq.read_table(path) for path in tmp_path.glob("part-*.parquet")]
        table = pa.concat_tables(parts).select(["image_id", "status", "error"])
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert len(rows) == len(table) == 41
    slow = rows.pop("20-slow.dcm")
    assert (slow["status"], slow["error"].split(":")[0]) == ("failed", "timeout")
    assert "--decode-seconds" in slow["error"]
    assert {row["status"] for row in rows.values()} == {"ok"}
