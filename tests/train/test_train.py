"""The training job on a real Ray: what it writes, that it continues exactly, and what it refuses."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import torch

from pneumo_ray.data.manifest import read_manifest, write_manifest
from pneumo_ray.errors import ClusterError, ConfigError, LeakageError, PneumoError
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, load_bundle, save_bundle
from pneumo_ray.run_folder import FolderInUseError, RunFolder
from pneumo_ray.train.config import DataConfig, OptimConfig, ScalingConfig, TrainConfig
from pneumo_ray.train.launch import fit
from pneumo_ray.train.monitor import Monitor
from pneumo_ray.train.state import load_state

EPOCHS = 4


def config(phantom_run: Path, out: Path, workers: int = 1, **changes) -> TrainConfig:
    base = TrainConfig(
        manifest=str(phantom_run / "manifest.parquet"),
        out=str(out),
        model=ModelConfig(arch="resnet18", weights="none"),
        data=DataConfig(image_size=32),
        optim=OptimConfig(lr=1e-3),
        scaling=ScalingConfig(num_workers=workers),
        batch_size=16,
        epochs=EPOCHS,
    )
    return replace(base, **changes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_state(str(out)).model


def history(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(ray_cluster, phantom_run, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    fit(config(phantom_run, out))
    return out


@pytest.fixture(scope="module")
def whole_of_two(ray_cluster, phantom_run, tmp_path_factory) -> Path:
    """The same with two workers."""
    out = tmp_path_factory.mktemp("whole2")
    fit(config(phantom_run, out, workers=2))
    return out


def test_a_run_leaves_bundle_history_and_curves(whole):
    bundle = load_bundle(whole / "model")
    state = load_state(str(whole))
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(tensor, state.best[name])
    assert bundle.preprocessing.image_size == 32
    assert 0 <= bundle.operating_point["threshold"] <= 1
    assert bundle.provenance["best_epoch"] == state.best_epoch
    assert [record["epoch"] for record in history(whole)] == list(range(1, EPOCHS + 1))
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((whole / "tensorboard").iterdir())


def test_validation_scores_the_saved_network(whole, phantom_run):
    from pneumo_ray.data.dataset import load_bases
    from pneumo_ray.data.prepare import load_training_rows
    from pneumo_ray.images.augment import center_crop
    from pneumo_ray.model.precision import amp_dtype, autocast

    _, _, val = load_training_rows(str(phantom_run / "manifest.parquet"))
    bundle, state = load_bundle(whole / "model"), load_state(str(whole))
    pixels = torch.stack([torch.from_numpy(center_crop(b, 32).copy()) for b in load_bases(val, 32)])
    device = torch.device("cpu")
    with torch.inference_mode(), autocast(amp_dtype("auto", device), device):
        logits = bundle.model(bundle.preprocessing.normalise(pixels))
    assert torch.equal(state.best_val["label"], torch.from_numpy(val["label"].to_numpy().copy()))
    assert torch.allclose(state.best_val["logit"].float(), logits.float(), atol=0.05)


def test_a_finished_run_continues_with_more_epochs(whole, phantom_run, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "copy")
    before = (tmp_path / "copy/model/weights.safetensors").stat().st_mtime_ns
    fit(config(phantom_run, tmp_path / "copy"))
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "copy/model/weights.safetensors").stat().st_mtime_ns == before
    fit(config(phantom_run, tmp_path / "copy", epochs=EPOCHS + 1))
    assert "continuing after epoch 4" in capsys.readouterr().out
    assert [record["epoch"] for record in history(tmp_path / "copy")] == list(range(1, EPOCHS + 2))


def kill_a_worker_after(out: Path, epochs: int) -> threading.Thread:
    """Start a thread that kills one training worker of this test's cluster once `epochs` are in the history."""

    def wait_and_kill() -> None:
        while not (out / "history.jsonl").exists() or len(history(out)) < epochs:
            time.sleep(0.02)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        killed.append(workers[0].pid)
        workers[0].kill()

    killed: list[int] = []
    thread = threading.Thread(target=wait_and_kill)
    thread.killed = killed
    thread.start()
    return thread


@pytest.mark.faults
def test_a_killed_worker_changes_nothing_bitwise(whole, phantom_run, tmp_path):
    killer = kill_a_worker_after(tmp_path, 2)
    fit(config(phantom_run, tmp_path))
    killer.join()
    assert killer.killed
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())
    keys = ("epoch", "train_loss", "val_loss", "val_auc", "lr", "best")
    assert [{k: r[k] for k in keys} for r in history(tmp_path)] == [{k: r[k] for k in keys} for r in history(whole)]


@pytest.mark.faults
def test_two_killed_workers_keep_the_weights(whole_of_two, phantom_run, tmp_path):
    killer = kill_a_worker_after(tmp_path, 2)
    fit(config(phantom_run, tmp_path, workers=2))
    killer.join()
    assert killer.killed
    expected = weights(whole_of_two)
    for name, tensor in weights(tmp_path).items():
        assert torch.allclose(tensor.double(), expected[name].double(), rtol=0, atol=1e-6), name


@pytest.mark.faults
def test_two_workers_equal_one_without_batch_statistics(ray_cluster, phantom_run, tmp_path):
    """VGG-16 has no BatchNorm: data, augmentation and dropout are those of the slots, and sums are rounded.

    Its weights are large enough for logits of size 1, so that other masks would give another loss at once.
    """
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch="vgg16", weights="none"))
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    save_bundle(tmp_path / "start", net, preprocessing=Preprocessing())
    begun = ModelConfig(arch="vgg16", weights=str(tmp_path / "start/weights.safetensors"))
    plain = {"model": begun, "optim": OptimConfig(lr=1e-5), "amp": "off", "epochs": 1}
    for workers in (1, 2):
        fit(config(phantom_run, tmp_path / str(workers), workers=workers, **plain))
    one, two = (load_state(str(tmp_path / str(workers))) for workers in (1, 2))
    assert two.history[0].train_loss == pytest.approx(one.history[0].train_loss, rel=1e-4)
    assert torch.allclose(two.best_val["passes"], one.best_val["passes"], atol=0.01)


def test_scoring_decides_as_the_threshold_was_fitted(whole, phantom_run, tmp_path):
    """Validation images, scored as the defaults have it: confusion, Brier score and loss are those in the bundle."""
    from pneumo_ray.evaluate.metrics import classification_metrics
    from pneumo_ray.evaluate.scores import read_scores
    from pneumo_ray.score.config import ExplainConfig
    from pneumo_ray.score.job import explain_archive

    manifest = str(phantom_run / "manifest.parquet")
    explain_archive(ExplainConfig(model=str(whole / "model"), out=str(tmp_path / "scores"), manifest=manifest))
    scores = read_scores(str(tmp_path / "scores")).ok().joined(read_manifest(manifest)).of_split("val")
    bundle = load_bundle(whole / "model")
    assert (scores.temperature, scores.intercept) == (bundle.temperature, bundle.intercept)
    labels, prob = scores.table["label"].to_numpy(), scores.numbers("prob_mean")
    found, fitted = classification_metrics(labels, prob, scores.threshold), bundle.provenance["validation"]
    assert [found[name] for name in ("tn", "fp", "fn", "tp")] == [fitted[name] for name in ("tn", "fp", "fn", "tp")]
    assert found.brier == pytest.approx(fitted["brier"], abs=1e-3)
    assert found.log_loss == pytest.approx(history(whole)[-1]["loss_scaled"], abs=1e-3)
    assert bundle.provenance["fitted_on"]["passes"] == 200


@pytest.mark.faults
def test_two_workers_validate_every_image_once(whole_of_two, phantom_run):
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    val = manifest.filter(pa.compute.equal(manifest["split"], "val"))
    assert load_state(str(whole_of_two)).best_val["label"].tolist() == val["label"].to_pylist()


@pytest.mark.faults
def test_a_killed_driver_continues_bitwise(whole, phantom_run, tmp_path):
    command = [sys.executable, "jobs/train.py", "--config", str(whole / "train.json"), "--out", str(tmp_path)]
    root = Path(__file__).parents[2]
    driver = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    family = psutil.Process(driver.pid)
    while not (tmp_path / "history.jsonl").exists() or len(history(tmp_path)) < 2:
        assert driver.poll() is None, driver.stdout.read()
        time.sleep(0.02)
    children = family.children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    for process in alive:  # a driver killed outright can leave its own Ray behind
        process.kill()
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "continuing after epoch" in again.stdout
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())
    assert [record["epoch"] for record in history(tmp_path)] == list(range(1, EPOCHS + 1))


def test_other_settings_or_manifests_are_refused(whole, phantom_run, tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.lr 0\.001 and not 0\.01"):
        fit(config(phantom_run, whole, optim=OptimConfig(lr=0.01)))
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    write_manifest(manifest.slice(1), str(tmp_path / "other.parquet"))
    with pytest.raises(ConfigError, match="another manifest"):
        fit(config(phantom_run, whole, manifest=str(tmp_path / "other.parquet")))


def test_a_second_training_into_one_folder_is_refused(ray_cluster, phantom_run, tmp_path):
    run = RunFolder(str(tmp_path), "train.json")
    with run.held(), pytest.raises(FolderInUseError):
        fit(config(phantom_run, tmp_path))


def test_leakage_is_refused_unless_asked_for(ray_cluster, phantom_run, tmp_path):
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    position = manifest.column_names.index("patient_id")
    leaky = manifest.set_column(position, "patient_id", pa.array(["p"] * len(manifest)))
    write_manifest(leaky, str(tmp_path / "leaky.parquet"))
    leaking = config(phantom_run, tmp_path / "out", manifest=str(tmp_path / "leaky.parquet"))
    with pytest.raises(LeakageError, match="--allow-leakage"):
        fit(leaking)
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_too_small_is_said(ray_cluster, phantom_run, tmp_path):
    scaling = ScalingConfig(num_workers=16, cpus_per_worker=1, wait_seconds=0.1)
    with pytest.raises(ClusterError, match="2 CPUs where the job needs 17"):
        fit(config(phantom_run, tmp_path, scaling=scaling))
    with pytest.raises(ClusterError, match="0 GPUs"):
        fit(config(phantom_run, tmp_path, scaling=ScalingConfig(use_gpu=True, wait_seconds=0.1)))


def test_restarts_without_progress_are_counted():
    monitor = Monitor()
    begun = [(0, 2), (0, 2), (0, 2), (0, 1), (0, 2), (1, 2), (1, 2)]
    assert [monitor.begin(*group) for group in begun] == [0, 1, 2, 0, 0, 0, 1]


def test_a_state_without_its_config_is_not_continued(whole, phantom_run, tmp_path):
    shutil.copytree(whole / "state", tmp_path / "state")
    with pytest.raises(ConfigError, match=r"train\.json"):
        fit(config(phantom_run, tmp_path))


@pytest.mark.faults
def test_a_run_that_continues_needs_no_initial_weights(whole, phantom_run, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    settings = json.loads((whole / "train.json").read_text())
    settings["model"]["weights"] = str(tmp_path / "gone.pth")
    (tmp_path / "run/train.json").write_text(json.dumps(settings))
    gone = ModelConfig(arch="resnet18", weights=settings["model"]["weights"])
    fit(config(phantom_run, tmp_path / "run", model=gone, epochs=EPOCHS + 1))
    assert len(history(tmp_path / "run")) == EPOCHS + 1


@pytest.mark.faults
def test_a_run_that_diverges_says_so_once(ray_cluster, phantom_run, tmp_path):
    with pytest.raises(PneumoError, match=r"lower --optim\.lr"):
        fit(config(phantom_run, tmp_path, optim=OptimConfig(lr=1e30), augment=AugmentConfig.none()))


@pytest.mark.faults
def test_an_image_that_vanished_is_one_sentence(ray_cluster, phantom_run, tmp_path):
    manifest = read_manifest(str(phantom_run / "manifest.parquet")).drop_columns(["cache_file", "cache_row"])
    position = manifest.column_names.index("uri")
    gone = manifest.set_column(position, "uri", pa.array(["/nowhere/x.jpg"] * len(manifest)))
    write_manifest(gone, str(tmp_path / "gone.parquet"))
    with pytest.raises(PneumoError, match=r"run jobs/prepare\.py again"):
        fit(config(phantom_run, tmp_path / "out", manifest=str(tmp_path / "gone.parquet")))
