"""The scoring job on a real Ray: one row per image whatever the image is, the same numbers however it is run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.data.manifest import read_manifest, write_manifest
from pneumo_ray.errors import ArchiveError, ConfigError, ManifestError, ModelError, StorageError
from pneumo_ray.explain import ZONES, BayesGradCAM
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, load_bundle, save_bundle
from pneumo_ray.run_folder import FolderInUseError, folder_lock
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.decode import load_image
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.gallery import render_top
from pneumo_ray.score.image_list import open_source
from pneumo_ray.score.job import explain_archive

ROOT = Path(__file__).parents[2]


def scores(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))]).sort_by("image_id")


def numbers(table: pa.Table) -> np.ndarray:
    """All float columns side by side, NaN where null."""
    columns = []
    for field in table.schema:
        values = table[field.name].combine_chunks()
        if pa.types.is_fixed_size_list(field.type):
            rows = [row or [np.nan] * field.type.list_size for row in values.to_pylist()]
            columns.append(np.array(rows, float))
        elif pa.types.is_floating(field.type):
            columns.append(values.to_numpy(zero_copy_only=False).astype(float)[:, None])
    return np.hstack(columns)


@pytest.fixture(scope="module")
def nasty_scores(ray_cluster, nasty, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("nasty-scores")
    explain_archive(ExplainConfig(model=str(model), out=str(out), archive=(str(nasty[0]),), amp="off"))
    return out


@pytest.fixture(scope="module")
def phantom_scores(ray_cluster, phantom_run, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom-scores")
    explain_archive(phantom_config(phantom_run, model, out))
    return out


def phantom_config(phantom_run: Path, model: Path, out: Path, **changes) -> ExplainConfig:
    manifest = str(phantom_run / "manifest.parquet")
    config = ExplainConfig(model=str(model), out=str(out), manifest=manifest, amp="off", zones="image")
    return replace(config, **changes)


def test_images_are_single_rows_and_failures_are_explained(nasty_scores, nasty):
    table = scores(nasty_scores)
    found = {
        row["image_id"]: "ok" if row["status"] == "ok" else f"{row['error_stage']}: {row['error'].split(':')[0]}"
        for row in table.select(["image_id", "status", "error_stage", "error"]).to_pylist()
    }
    assert len(found) == len(table)
    assert set(found) == set(nasty[1])
    wrong = {name: (found[name], status) for name, status in nasty[1].items() if status not in (found[name], "any")}
    assert not wrong
    failed = table.filter(pa.compute.equal(table["status"], "failed"))
    assert failed["prob_mean"].null_count == failed["cam_mean"].null_count == len(failed) > 0
    assert table.filter(pa.compute.equal(table["status"], "ok"))["cam_mean"].null_count == 0


def test_no_file_or_patient_name_leaves_the_archive(nasty_scores, nasty):
    assert not (nasty[0].parent.parent / "evil.jpg").exists()
    assert not (nasty[0].parent / "evil.jpg").exists()
    for path in nasty_scores.rglob("*"):
        if path.is_file():
            assert b"SECRET7" not in path.read_bytes()
            assert b"DOE^JANE" not in path.read_bytes()


def test_the_run_file_counts_what_happened(nasty_scores, nasty):
    facts = json.loads((nasty_scores / "_run.json").read_text())
    table = scores(nasty_scores)
    assert facts["rows"] == len(table)
    assert facts["failed"] == sum(facts["failures"].values()) == table["status"].to_pylist().count("failed")
    assert facts["model"]["hash"] == table["model_hash"][0].as_py()
    assert facts["passed_over"] == {"hidden": 1, "other_type": 1}


def test_rows_equal_the_results_of_the_engine(phantom_scores, phantom_run, model):
    bundle, table = load_bundle(model), scores(phantom_scores)
    manifest = {row["image_id"]: row for row in read_manifest(str(phantom_run / "manifest.parquet")).to_pylist()}
    engine = BayesGradCAM(bundle.model, passes=200, seed=0, temperature=bundle.temperature, intercept=bundle.intercept)
    for row in table.to_pylist()[::17]:
        image = load_image(manifest[row["image_id"]]["uri"], None, None, bundle.preprocessing)
        e = engine(bundle.preprocessing.normalise(torch.from_numpy(image.copy())[None]))
        assert row["prob_mean"] == pytest.approx(float(e.prob_mean), abs=1e-5)
        assert row["mutual_information"] == pytest.approx(float(e.mutual_information), abs=1e-5)
        assert np.allclose(row["cam_mean"], e.cam_mean.flatten(), atol=1e-4)
        assert np.allclose(row["cam_std"], e.cam_std.flatten(), atol=1e-4)
        assert np.allclose([row[f"zone_mean_{zone}"] for zone in ZONES], e.zone_mean[0], atol=1e-4)
        assert row["predicted"] == int(row["prob_mean"] >= 0.5)
        # Probability 0.5 is the raw logit where logit / 1.5 + 0.4 is 0.
        assert row["refer"] == (abs(row["logit_mean"] + 0.6) <= 1.96 * row["logit_std"])
        assert np.allclose(row["zone_groups"], e.zone_groups[0].flatten(), atol=1e-4)


def test_batches_actors_and_order_change_nothing_but_rounding(phantom_scores, phantom_run, model, tmp_path):
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    shuffled = manifest.take(np.random.default_rng(0).permutation(len(manifest)))
    write_manifest(shuffled, str(tmp_path / "shuffled.parquet"))
    config = phantom_config(
        phantom_run,
        model,
        tmp_path / "out",
        manifest=str(tmp_path / "shuffled.parquet"),
        scale=ScoringScale(num_actors=2, batch_size=7),
    )
    explain_archive(config)
    first, other = scores(phantom_scores), scores(tmp_path / "out")
    assert first["image_id"].to_pylist() == other["image_id"].to_pylist()
    assert np.allclose(numbers(first), numbers(other), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_finished_job_says_so_and_does_nothing(phantom_scores, phantom_run, model, capsys):
    before = {path: path.stat().st_mtime_ns for path in phantom_scores.glob("*.parquet")}
    explain_archive(phantom_config(phantom_run, model, phantom_scores))
    assert "nothing to score" in capsys.readouterr().out
    assert json.loads((phantom_scores / "_job" / "job.json").read_text())["compiled"] is False
    assert {path: path.stat().st_mtime_ns for path in phantom_scores.glob("*.parquet")} == before


def test_a_folder_refuses_another_model_config_or_archive(phantom_scores, phantom_run, model, nasty, tmp_path):
    config = phantom_config(phantom_run, model, phantom_scores)
    with pytest.raises(ConfigError, match="passes 200 and not 21"):
        explain_archive(replace(config, passes=21))
    with pytest.raises(ConfigError, match="another archive"):
        explain_archive(replace(config, manifest=None, archive=(str(nasty[0]),)))
    save_bundle(tmp_path / "other", load_bundle(model).model, preprocessing=Preprocessing(32, 37))
    with pytest.raises(ConfigError, match="another model"):
        explain_archive(replace(config, model=str(tmp_path / "other")))
    with folder_lock(str(phantom_scores / "_job" / "lock.json")), pytest.raises(FolderInUseError):
        explain_archive(config)


def test_what_cannot_work_is_one_sentence(ray_cluster, phantom_run, model, tmp_path):
    with pytest.raises(ModelError):
        explain_archive(phantom_config(phantom_run, tmp_path / "none", tmp_path / "out"))
    with pytest.raises(ArchiveError, match="does not exist"):
        explain_archive(ExplainConfig(model=str(model), out=str(tmp_path / "a"), archive=(str(tmp_path / "none"),)))
    with pytest.raises(ManifestError, match="lung_x0"):
        explain_archive(phantom_config(phantom_run, model, tmp_path / "b", zones="box"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="Parquet files"):
        explain_archive(phantom_config(phantom_run, model, tmp_path / "c"))
    twice = read_manifest(str(phantom_run / "manifest.parquet"))
    pq.write_table(pa.concat_tables([twice, twice.slice(0, 1)]), tmp_path / "twice.parquet")
    with pytest.raises(ManifestError, match="more than once"):
        explain_archive(phantom_config(phantom_run, model, tmp_path / "d", manifest=str(tmp_path / "twice.parquet")))


@pytest.mark.faults
def test_unwritable_folders_end_jobs_with_a_sentence(ray_cluster, phantom_run, model, tmp_path):
    """A disk that fills up while the job runs: here the name of a shard is taken by a folder."""
    (tmp_path / "out" / "part-000001.parquet" / "x").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot write"):
        explain_archive(phantom_config(phantom_run, model, tmp_path / "out"))


def test_rows_have_zones_only_with_lung_boxes(ray_cluster, phantom_run, model, tmp_path):
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    width, height = manifest["width"].to_numpy(), manifest["height"].to_numpy()
    for name, values in zip(
        ("lung_x0", "lung_y0", "lung_x1", "lung_y1"), (0 * width, 0 * height, width, height), strict=True
    ):
        manifest = manifest.append_column(name, pa.array([None, *values[1:].tolist()], pa.int32()))
    write_manifest(manifest, str(tmp_path / "boxes.parquet"))
    changes = {"manifest": str(tmp_path / "boxes.parquet"), "zones": "box"}
    explain_archive(phantom_config(phantom_run, model, tmp_path / "out", **changes))
    table = scores(tmp_path / "out")
    first = manifest["image_id"][0].as_py()
    for row in table.to_pylist():
        if row["image_id"] == first:
            assert row["zone_mean_left_lower"] is row["outside_share"] is None
            assert row["prob_mean"] is not None
        else:  # the box is the whole image
            assert row["outside_share"] == pytest.approx(0, abs=1e-6)


def test_images_are_those_of_the_highest_rows(phantom_scores, phantom_run, model, capsys):
    explain_archive(phantom_config(phantom_run, model, phantom_scores, render=True, top=3))
    index = [line.split(",") for line in (phantom_scores / "pictures" / "index.csv").read_text().splitlines()[1:]]
    table = scores(phantom_scores)
    for name, column in (("uncertain", "mutual_information"), ("suspicious", "prob_mean")):
        best = table.take(pa.compute.sort_indices(table, [(column, "descending")]))["image_id"].to_pylist()[:3]
        assert [line[1] for line in index if line[0].startswith(name)] == best
        for number in (1, 2, 3):
            assert (phantom_scores / "pictures" / f"{name}-{number:03d}.png").read_bytes().startswith(b"\x89PNG")
        assert (phantom_scores / "pictures" / f"{name}.png").exists()
    facts = json.loads((phantom_scores / "_run.json").read_text())
    assert facts["scored_in_this_run"] == len(table)  # still that of the run that scored


def test_scores_in_float16_are_drawn_on_a_cpu(phantom_scores, phantom_run, model, tmp_path):
    """The images are drawn by the driver, and no CPU computes in the float16 of the GPUs that scored."""
    shutil.copytree(phantom_scores, tmp_path / "out")
    config = phantom_config(phantom_run, model, tmp_path / "out", amp="fp16", top=1).resolved("head")
    payload = ModelPayload.from_bundle(load_bundle(model), config)
    source = open_source(config.out + "/_job/pictures.parquet", payload.preprocessing.image_size)
    assert [Path(sheet).name for sheet in render_top(config.out, source, payload, config)] == [
        "uncertain.png",
        "suspicious.png",
    ]


@pytest.mark.parametrize("lost", ["_job/job.json", "_run.json", "part-000001.parquet", "_job/pictures.parquet"])
def test_an_interrupted_job_continues_or_says_why_not(lost, phantom_scores, phantom_run, model, tmp_path):
    """Before job.json is written nothing is scored; the other states are those between the last shard and the end."""
    shutil.copytree(phantom_scores, tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    config = phantom_config(phantom_run, model, tmp_path / "out")
    if lost.startswith("_job"):
        with pytest.raises((ConfigError, StorageError), match="choose another --out"):
            explain_archive(config)
    else:
        explain_archive(config)
        assert scores(tmp_path / "out").equals(scores(phantom_scores))
        assert (tmp_path / "out" / "_run.json").exists()


@pytest.mark.faults
def test_an_incomplete_listing_is_made_again(phantom_run, model, phantom_scores, tmp_path):
    (tmp_path / "_job").mkdir()
    shutil.copy(phantom_scores / "_job" / "pictures.parquet", tmp_path / "_job")
    explain_archive(phantom_config(phantom_run, model, tmp_path))
    assert len(scores(tmp_path)) == len(scores(phantom_scores))


def test_a_part_of_another_job_does_not_count(phantom_run, model, phantom_scores, tmp_path):
    shutil.copytree(phantom_scores, tmp_path / "out")
    part = tmp_path / "out" / "part-000000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"model_hash": b"x"}), part)
    (tmp_path / "out" / "_run.json").unlink()
    with pytest.raises(StorageError, match="belongs to another job"):
        explain_archive(phantom_config(phantom_run, model, tmp_path / "out"))


def test_a_model_without_dropout_is_refused_before_writing(phantom_run, tmp_path):
    net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none", dropout=0.0))
    save_bundle(tmp_path / "model", net, preprocessing=Preprocessing(64, 73))
    with pytest.raises(ModelError, match="no dropout"):
        explain_archive(phantom_config(phantom_run, tmp_path / "model", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_compiled_and_uncompilable_trunks_give_equal_scores(model, monkeypatch):
    bundle = load_bundle(model)
    config = ExplainConfig(model="", out="", archive=("x",), amp="off").resolved("head")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64)).astype(np.uint8)
    taken = ModelPayload.from_bundle(bundle, config)
    eager = Explainer(taken, config, torch.device("cpu")).columns(pixels, [None] * 5)

    def compiled() -> Explainer:
        explainer = Explainer(taken, config, torch.device("cpu"))
        explainer.compile()
        return explainer

    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: function(x).clone())
    padded = compiled().columns(pixels, [None] * 5)

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    fallen_back = compiled().columns(pixels, [None] * 5)
    for name, values in eager.items():
        assert np.allclose(values, padded[name], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert np.allclose(values, fallen_back[name], rtol=1e-4, atol=1e-5, equal_nan=True)


READERS = {
    "pandas": "import pandas; t = pandas.read_parquet(sorted(glob.glob(folder + '/*.parquet'))[0]); n = len(t); cells = len(t.cam_mean[0])",
    "polars": "import polars; t = polars.read_parquet(folder + '/*.parquet'); n = len(t); cells = len(t['cam_mean'][0])",
    "duckdb": "import duckdb; [(n, cells)] = duckdb.sql(f\"select count(*), max(len(cam_mean)) from '{folder}/*.parquet'\").fetchall()",
}


@pytest.mark.parametrize("reader", READERS)
def test_the_scores_are_read_without_ray(reader, phantom_scores):
    code = "import glob, sys\nsys.modules['ray'] = None\nfolder = sys.argv[1]\n" + READERS[reader] + "\nprint(n, cells)"
    result = subprocess.run(
        [sys.executable, "-c", code, str(phantom_scores)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    first = sorted(phantom_scores.glob("*.parquet"))[0]
    expected = len(pq.read_table(first) if reader == "pandas" else scores(phantom_scores))
    assert result.stdout.split() == [str(expected), "4"]


def test_rows_take_under_a_kilobyte_without_footer(phantom_scores):
    """A footer is as large for 64 rows as for 4,096."""
    paths = list(phantom_scores.glob("*.parquet"))
    size = sum(path.stat().st_size - pq.read_metadata(path).serialized_size for path in paths)
    assert size < 1000 * len(scores(phantom_scores))


@pytest.mark.parametrize(
    "shards_before_the_kill",
    [(1,), pytest.param((0, 1, 2, 3, 4), marks=pytest.mark.faults)],
    ids=["once", "five-times"],
)
@pytest.mark.faults
def test_a_repeatedly_killed_driver_loses_and_rescores_nothing(
    phantom_archive, model, tmp_path, shards_before_the_kill
):
    """Killed before anything is written, and after some shards; 320 images are 20 shards."""
    archive = tmp_path / "archive"
    for number in range(4):
        (archive / str(number)).mkdir(parents=True)
        for path in phantom_archive.rglob("*.jpeg"):
            (archive / str(number) / path.name).symlink_to(path)

    def command(out: Path) -> list[str]:
        words = ["--archive", str(archive), "--model", str(model), "--out", str(out), "--amp", "off"]
        return [sys.executable, "jobs/explain.py", *words]

    unfinished = 0
    for parts in shards_before_the_kill:
        driver = subprocess.Popen(
            command(tmp_path / "killed"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while len(list((tmp_path / "killed").glob("part-*.parquet"))) < parts or not (tmp_path / "killed").exists():
            if driver.poll() is not None:
                break
            time.sleep(0.01)
        unfinished += len(list((tmp_path / "killed").glob("part-*.parquet"))) < 20
        children = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        for process in children:  # a driver killed outright can leave its own Ray behind
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    assert unfinished >= min(2, len(shards_before_the_kill))
    for out in ("killed", "whole"):
        result = subprocess.run(command(tmp_path / out), cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    killed, whole = scores(tmp_path / "killed"), scores(tmp_path / "whole")
    assert len(set(killed["image_id"].to_pylist())) == len(killed) == 320
    assert killed.equals(whole)


def test_the_core_of_scoring_needs_no_ray():
    code = textwrap.dedent("""
        import sys
        sys.modules["ray"] = None
        import pneumo_ray.score.explainer, pneumo_ray.score.decode, pneumo_ray.score.schema
    """)
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
