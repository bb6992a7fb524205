"""The jobs where everything is on a real S3 server: archive, manifest, cache, checkpoints, model, study, scores, report."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from pneumo_ray import storage
from pneumo_ray.data.prepare import PrepareConfig, prepare
from pneumo_ray.errors import ArchiveError, ManifestError, ModelError, PneumoError, StorageError
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, load_bundle, save_bundle
from pneumo_ray.report.job import write_evaluation
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.job import explain_archive
from pneumo_ray.train.config import DataConfig, ScalingConfig, TrainConfig
from pneumo_ray.train.launch import fit
from pneumo_ray.train.state import latest_epoch
from pneumo_ray.tune.config import StudyConfig
from pneumo_ray.tune.job import run_study

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(arch="resnet18", weights="none")


def options(manifest: str, out: str) -> dict:
    return {
        "manifest": manifest,
        "out": out,
        "model": MODEL,
        "data": DataConfig(image_size=32),
        "scaling": ScalingConfig(threads_per_worker=1),
        "batch_size": 16,
        "epochs": 1,
    }


def all_files(uri: str) -> dict[str, pafs.FileInfo]:
    fs, path = storage.filesystem(uri)
    infos = fs.get_file_info(pafs.FileSelector(path, recursive=True))
    return {info.path.removeprefix(f"{path}/"): info for info in infos if info.type == pafs.FileType.File}


def scores(out: str) -> pa.Table:
    names = storage.list_files(out, lambda name: name.endswith(".parquet"))
    return pa.concat_tables([storage.read_table(storage.join(out, name)) for name in names]).sort_by("image_id")


def described(model: str) -> dict:
    """Return what model.json says, without what names the place."""
    facts = json.loads(storage.read_bytes(storage.join(model, "model.json")))
    del facts["hash"], facts["provenance"]["config"]["manifest"], facts["provenance"]["config"]["out"]
    return facts


@pytest.mark.faults
def test_jobs_on_s3_equal_local_files(s3_port, bucket, ray_cluster, phantom_archive, phantom_run, tmp_path, capsys):
    def at(*names: str) -> str:
        return storage.join(bucket, *names)

    fs, path = storage.filesystem(at("archive"))
    pafs.copy_files(str(phantom_archive), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
    manifest = prepare(PrepareConfig(archive=(at("archive"),), out=bucket, protocol="official", cache=True))
    local = storage.read_table(str(phantom_run / "manifest.parquet"))
    same = [name for name in local.column_names if name not in ("uri", "cache_file")]
    assert manifest.select(same).equals(local.select(same))
    assert manifest["cache_file"].null_count == 0

    config = TrainConfig(**options(at("manifest.parquet"), bucket))
    fit(config)
    beside = replace(config, manifest=str(phantom_run / "manifest.parquet"), out=str(tmp_path / "run"))
    fit(beside)
    assert described(at("model")) == described(str(tmp_path / "run/model"))
    assert latest_epoch(bucket) == 1
    capsys.readouterr()
    fit(config)
    assert "nothing to do" in capsys.readouterr().out

    study = StudyConfig(
        **options(at("manifest.parquet"), at("study")), study="balance", arms=("none", "copies"), seeds=1
    )
    trials = {record.arm: record for record in run_study(study)}
    assert {record.status for record in trials.values()} == {"finished"}
    assert described(trials["copies"].checkpoint)["weights_sha256"] == described(at("model"))["weights_sha256"]
    assert len(storage.read_table(at("study", "study.parquet"))) == 2

    scoring = ExplainConfig(model=at("model"), out=at("scores"), manifest=at("manifest.parquet"), amp="off")
    explain_archive(scoring)
    explain_archive(replace(scoring, manifest=beside.manifest, out=str(tmp_path / "scores")))
    whole = scores(at("scores"))
    assert whole.equals(scores(str(tmp_path / "scores")))
    assert set(whole["model_hash"].to_pylist()) == {load_bundle(at("model")).hash}

    # Interrupted: some shards and the summary are not there yet.
    before = all_files(at("scores"))
    for name in ("part-000001.parquet", "part-000003.parquet", "_run.json"):
        storage.remove(at("scores", name))
    explain_archive(scoring)
    assert scores(at("scores")).equals(whole)
    after = all_files(at("scores"))
    again = {name for name, info in after.items() if info.mtime_ns != before[name].mtime_ns}
    assert again == {"part-000001.parquet", "part-000003.parquet", "_run.json"}

    everything = ExplainConfig(
        model=at("model"), out=at("all"), archive=(at("archive"),), amp="off", render=True, top=1
    )
    explain_archive(everything)
    by_id = ["image_id", "prob_mean", "cam_mean"]
    numbers = scores(at("all")).select(by_id)
    assert numbers["image_id"].to_pylist() == whole["image_id"].to_pylist()
    assert storage.exists(at("all", "pictures", "uncertain-001.png"))

    write_evaluation(EvaluateConfig(manifest=at("manifest.parquet"), out=at("report"), scores=at("scores")))
    assert b"<html" in storage.read_bytes(at("report", "report.html"))
    left = [name for name in all_files(bucket) if ".tmp" in name or name.endswith(("lock.json", "write_test"))]
    assert not left


@pytest.mark.faults
def test_a_missing_bucket_is_one_sentence(s3_port, bucket, ray_cluster, phantom_archive, phantom_run, tmp_path):
    nowhere, out = bucket.replace("s3://", "s3://no-"), str(tmp_path / "out")
    images, manifest, model = str(phantom_archive), str(phantom_run / "manifest.parquet"), tmp_path / "model"
    save_bundle(model, PneumoniaNet(MODEL), preprocessing=Preprocessing(32, 37))
    for action, error in (
        (lambda: prepare(PrepareConfig(archive=(nowhere,), out=out)), ArchiveError),
        (lambda: prepare(PrepareConfig(archive=(images,), out=nowhere)), StorageError),
        (lambda: fit(TrainConfig(**options(storage.join(nowhere, "m.parquet"), out))), ManifestError),
        (lambda: fit(TrainConfig(**options(manifest, nowhere))), StorageError),
        (lambda: run_study(StudyConfig(**options(manifest, nowhere), study="balance")), StorageError),
        (lambda: explain_archive(ExplainConfig(archive=(images,), model=nowhere, out=out)), ModelError),
        (lambda: explain_archive(ExplainConfig(archive=(nowhere,), model=str(model), out=out)), ArchiveError),
        (lambda: explain_archive(ExplainConfig(archive=(images,), model=str(model), out=nowhere)), StorageError),
        (lambda: write_evaluation(EvaluateConfig(manifest=manifest, scores=nowhere, out=out)), PneumoError),
    ):
        with pytest.raises(error, match="no-bucket"):
            action()
    words = ["--archive", nowhere, "--out", out]
    result = subprocess.run(
        [sys.executable, "jobs/prepare.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "does not exist" in sentence
