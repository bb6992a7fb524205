"""Studies on a real Ray: what they leave, that nothing is run twice, and what becomes of trials that go wrong."""

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from pneumo_ray.config import load_config
from pneumo_ray.data.prepare import PrepareConfig, prepare
from pneumo_ray.errors import ConfigError, PneumoError
from pneumo_ray.job import run_job
from pneumo_ray.model import ModelConfig, load_bundle
from pneumo_ray.train.config import DataConfig, OptimConfig, ScalingConfig, TrainConfig
from pneumo_ray.tune.config import StudyConfig
from pneumo_ray.tune.job import Halving, run_study
from pneumo_ray.tune.records import TrialRecord

ROOT = Path(__file__).parents[2]


def study(phantom_run: Path, out: Path, **changes) -> StudyConfig:
    base = StudyConfig(
        manifest=str(phantom_run / "manifest.parquet"),
        out=str(out),
        model=ModelConfig(arch="resnet18", weights="none"),
        data=DataConfig(image_size=32),
        optim=OptimConfig(lr=1e-3),
        batch_size=16,
        epochs=2,
        study="balance",
        arms=("none", "paper"),
        seeds=2,
    )
    return replace(base, **changes)


def file_study(folder: Path, arms: dict) -> dict:
    """Return the options for a study of one seed with these arms."""
    path = folder / "arms.json"
    path.write_text(json.dumps({"arms": arms}))
    return {"study": None, "space": str(path), "arms": (), "seeds": None}


def trial_json(out: Path, name: str) -> dict:
    return json.loads((out / "trials" / name / "trial.json").read_text())


@pytest.fixture(scope="module")
def whole(ray_cluster, phantom_run, tmp_path_factory) -> Path:
    """A study of four trials that nothing interrupted."""
    out = tmp_path_factory.mktemp("study")
    run_study(study(phantom_run, out))
    return out


def test_a_study_leaves_rows_tables_and_best(whole):
    rows = pq.read_table(whole / "study.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["none-seed0", "paper-seed0", "none-seed1", "paper-seed1"]
    for row in rows:
        assert (row["status"], row["epochs"]) == ("finished", 2)
        assert row["overhead_seconds"] > 0
        history = [
            json.loads(line) for line in (whole / "trials" / row["name"] / "history.jsonl").read_text().splitlines()
        ]
        assert row["val_loss"] == pytest.approx(min(epoch["val_loss"] for epoch in history), rel=1e-6)
        # The number that chose among trials is the one that halving and a search saw last.
        assert row["loss_scaled"] == pytest.approx(history[-1]["loss_scaled"], rel=1e-6)
        assert load_bundle(row["checkpoint"]).provenance["config"]["balance"] == row["balance"]
        assert not list((whole / "trials" / row["name"] / "state").glob("*")), "a finished trial keeps its state"
    assert (whole / "study.csv").read_text().count("\n") == 5
    table = (whole / "ablation.md").read_text()
    assert "| paper | 2 |" in table
    assert "(figures/differences.png)" in table
    assert {path.stem for path in (whole / "figures").iterdir()} == {"differences", "learning-curves"}
    means = {arm: sum(row["loss_scaled"] for row in rows if row["arm"] == arm) for arm in ("none", "paper")}
    assert load_config(TrainConfig, str(whole / "best.json")).balance == min(means, key=means.get)


def test_a_trial_equals_its_training_run(whole, phantom_run, tmp_path):
    """Bitwise the same weights, though one was a nested group of processes and the other shared one with other trials."""
    from pneumo_ray.train.launch import fit

    options = load_config(TrainConfig, str(whole / "trials/paper-seed1/train.json"))
    fit(replace(options, out=str(tmp_path)))
    described = [json.loads((run / "model/model.json").read_text()) for run in (tmp_path, whole / "trials/paper-seed1")]
    assert described[0]["weights_sha256"] == described[1]["weights_sha256"]


def test_only_trials_without_record_run_again(whole, phantom_run, capsys):
    def stamps() -> dict[str, int]:
        return {path.parts[-2]: path.stat().st_mtime_ns for path in whole.glob("trials/*/history.jsonl")}

    before, lost = stamps(), trial_json(whole, "none-seed1")
    run_study(study(phantom_run, whole))
    assert "4 of them done before" in capsys.readouterr().out
    assert stamps() == before
    (whole / "trials/none-seed1/trial.json").unlink()
    with pytest.raises(PneumoError, match=r"1 of 4 trials are left after 0\.2 s of --time-budget; the same command"):
        run_study(study(phantom_run, whole, time_budget=0.2))
    run_study(study(phantom_run, whole))
    assert [name for name, stamp in stamps().items() if stamp != before[name]] == ["none-seed1"]
    assert trial_json(whole, "none-seed1")["metrics"] == lost["metrics"]


def test_another_studys_folder_is_refused(whole, phantom_run):
    for changes, message in (
        ({"study": "finetune", "arms": ()}, r"another study \(balance\)"),
        ({"optim": OptimConfig(lr=1e-2)}, r"begun with optim\.lr 0\.001 and not 0\.01"),
        ({"epochs": 3}, "begun with epochs 2 and not 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_study(study(phantom_run, whole, **changes))


@pytest.mark.faults
def test_a_diverging_draw_is_recorded(ray_cluster, phantom_run, tmp_path):
    space = tmp_path / "space.json"
    choices = {"optim.lr": [1e30, 1e-3], "optim.weight_decay": [1e-4]}
    space.write_text(json.dumps({"space": choices, "trials": 2, "uncertainty": True}))
    options = {"study": None, "space": str(space), "arms": (), "seeds": None, "epochs": 1, "seed": 1}
    wild, calm = run_study(study(phantom_run, tmp_path / "out", **options))
    assert [record.settings["optim.lr"] for record in (wild, calm)] == [1e30, 1e-3], "as drawn with seed 1"
    assert wild.status == "diverged"
    assert "not finite" in wild.reason or "training loss is" in wild.reason
    assert calm.status == "finished"
    assert load_config(TrainConfig, str(tmp_path / "out/best.json")).optim.lr == 1e-3
    assert (tmp_path / "out/figures/lr-weight-decay.png").exists()
    # What was explained after the training are the same images, with the same weights, as were validated in it.
    known = pq.read_table(tmp_path / f"out/trials/{calm.name}/validation.parquet").to_pydict()
    logit, label = np.array(known["logit"]), np.array(known["label"])
    wrong = (logit >= 0) != (label == 1)
    assert 0 < wrong.sum() < len(wrong), "this training says nothing about errors"
    assert calm.metrics["error_auroc_plain"] == pytest.approx(roc_auc_score(wrong, -np.abs(logit)))
    assert 0 <= calm.metrics["error_auroc_mi"] <= 1


@pytest.mark.faults
def test_a_study_without_results_ends_with_1(ray_cluster, phantom_run, tmp_path, capsys):
    arms = {"a": {"optim.lr": 1e30}, "b": {"optim.lr": 1e31}}
    asked = study(phantom_run, tmp_path / "out", epochs=1, **file_study(tmp_path, arms))
    for attempt in range(2):  # the same command finds it done, and it is no success then either
        with pytest.raises(SystemExit) as ended:
            run_job(StudyConfig, lambda _: run_study(asked), ["--manifest", "x", "--out", "x", "--study", "balance"])
        assert ended.value.code == 1
        said = capsys.readouterr()
        assert "error: none of 2 trials finished (2 diverged)" in said.err
        assert "a-seed0 diverged: " in said.out
        assert ("trial a-seed0 diverged" in said.out) == (attempt == 0)
        assert " done " not in said.out.replace("done before", "")
    assert not (tmp_path / "out/best.json").exists()
    assert {row["status"] for row in pq.read_table(tmp_path / "out/study.parquet").to_pylist()} == {"diverged"}
    mixed = file_study(tmp_path, {**arms, "c": {}})
    records = run_study(replace(asked, **mixed))
    assert [record.status for record in records] == ["diverged", "diverged", "finished"]


@pytest.mark.faults
def test_a_dead_trial_is_recorded(ray_cluster, phantom_run, tmp_path):
    history = tmp_path / "out/trials/first-seed0/history.jsonl"
    killed = []

    def kill_once() -> None:
        while not history.exists() or not history.read_text():
            time.sleep(0.02)
        while not killed:  # a process that is between two calls can show another title
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "ResourceTrainable" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    options = file_study(tmp_path, {"first": {}, "second": {"balance": "none"}})
    run_study(study(phantom_run, tmp_path / "out", scaling=ScalingConfig(max_failures=0), max_concurrent=1, **options))
    killer.join(timeout=10)
    assert killed
    first = trial_json(tmp_path / "out", "first-seed0")
    assert first["status"] == "failed"
    assert first["reason"]
    assert trial_json(tmp_path / "out", "second-seed0")["status"] == "finished"


@pytest.mark.faults
def test_optuna_continues_and_images_decode_once(ray_cluster, phantom_archive, tmp_path, capsys):
    prepare(PrepareConfig(archive=(str(phantom_archive),), out=str(tmp_path / "run"), protocol="official"))
    space = tmp_path / "space.json"
    ranges = {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "balance": ["none", "sampler"]}
    space.write_text(json.dumps({"space": ranges, "trials": 2}))
    options = {"study": None, "space": str(space), "arms": (), "seeds": None, "epochs": 1, "search": "optuna"}
    asked = study(tmp_path / "run", tmp_path / "out", max_concurrent=1, **options)
    first = run_study(asked)
    assert "images once for all trials" in capsys.readouterr().out
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/cache-256").iterdir()}
    cached = pq.read_table(tmp_path / "out/manifest.parquet")
    assert cached["cache_file"].null_count == 0
    assert {json.loads((tmp_path / f"out/trials/{r.name}/train.json").read_text())["manifest"] for r in first} == {
        str(tmp_path / "out/manifest.parquet")
    }
    assert load_config(TrainConfig, str(tmp_path / "out/best.json")).manifest == str(tmp_path / "run/manifest.parquet")
    more = run_study(replace(asked, trials=3))
    assert "images once" not in capsys.readouterr().out
    assert more[:2] == first
    assert [record.status for record in more] == ["finished"] * 3
    assert len({record.settings["optim.lr"] for record in more}) == 3
    for record in more:
        kept = json.loads((tmp_path / f"out/trials/{record.name}/draw.json").read_text())
        assert kept == record.settings
        bundle = load_bundle(record.checkpoint)
        assert bundle.provenance["config"]["optim"]["lr"] == kept["optim.lr"]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/cache-256").iterdir()} == shards


def test_halving_knows_earlier_trials():
    def trial(name: str) -> SimpleNamespace:
        return SimpleNamespace(trial_id=name, config={"name": name})

    def record(name: str, loss: float) -> TrialRecord:
        history = [{"epoch": epoch, "loss_scaled": loss, "val_loss": 0.0} for epoch in (1, 2, 3)]
        return TrialRecord(name, name, 0, {}, "finished", history=history)

    scheduler = Halving(epochs=9)
    for number in range(6):
        scheduler.recall(record(f"past{number}", 0.1 + 0.01 * number))
    bad, good = trial("bad"), trial("good")
    for one in (bad, good):
        scheduler.on_trial_add(None, one)
    assert scheduler.on_trial_result(None, good, {"epoch": 3, "loss_scaled": 0.05, "val_loss": 9.0}) == "CONTINUE"
    assert scheduler.on_trial_result(None, bad, {"epoch": 3, "loss_scaled": 0.9, "val_loss": 0.0}) == "STOP"
    assert scheduler.stopped == {"bad"}
    # A trial is never ended at its last report: it has its model to write.
    assert scheduler.on_trial_result(None, good, {"epoch": 9, "loss_scaled": 0.05, "val_loss": 9.0}) == "CONTINUE"
    for epochs in (1, 3):  # the last epoch is one at which trials are judged
        scheduler = Halving(epochs)
        for one, loss in ((good, 0.1), (bad, 0.9)):
            scheduler.on_trial_add(None, one)
            assert (
                scheduler.on_trial_result(None, one, {"epoch": epochs, "loss_scaled": loss, "val_loss": 0.0})
                == "CONTINUE"
            )
        assert not scheduler.stopped


@pytest.mark.faults
def test_a_terminated_driver_continues(whole, phantom_run, tmp_path):
    words = ["--study", "balance", "--arms", "none", "paper", "--seeds", "2"]
    command = [sys.executable, "jobs/tune.py", "--config", str(whole / "best.json"), "--balance", "copies", *words]
    command += ["--seed", "0", "--out", str(tmp_path / "out")]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    family = psutil.Process(driver.pid)
    first = tmp_path / "out/trials"
    while not list(first.glob("*/trial.json")):
        assert driver.poll() is None, driver.stdout.read()
        time.sleep(0.02)
    children = family.children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 143, said
    assert "terminated; finished work is kept, and the same command continues" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "the job left processes behind"
    done = {path.parts[-2]: path.stat().st_mtime_ns for path in first.glob("*/trial.json")}
    assert 1 <= len(done) < 4
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} of them done before" in again.stdout
    for name, stamp in done.items():
        assert (first / name / "trial.json").stat().st_mtime_ns == stamp
    expected = {row["name"]: row["val_loss"] for row in pq.read_table(whole / "study.parquet").to_pylist()}
    assert {
        row["name"]: row["val_loss"] for row in pq.read_table(tmp_path / "out/study.parquet").to_pylist()
    } == expected


@pytest.mark.faults
def test_an_interrupted_search_stops_the_same_trials(ray_cluster, phantom_run, tmp_path):
    """Rates of 1 and 10 ruin the network in their first epoch; one at a time, so that the order is always the same."""
    space = tmp_path / "space.json"
    rates = [1e-3, 1.0, 10.0]  # seed 14 draws the first, the first, the second, the second, the first
    space.write_text(json.dumps({"space": {"optim.lr": rates, "optim.weight_decay": [1e-4]}, "trials": 5}))
    options = {"study": None, "space": str(space), "arms": (), "seeds": None, "epochs": 4, "max_concurrent": 1}
    # Batches of 4: after one epoch of larger ones the calibrated loss, by which trials are judged, is that of a ruined network.
    options |= {"seed": 14, "scaling": ScalingConfig(threads_per_worker=1), "batch_size": 4}
    whole = run_study(study(phantom_run, tmp_path / "whole", **options))
    said = [(record.settings["optim.lr"], record.status, record.epochs) for record in whole]
    good, bad = (1e-3, "finished", 4), (1.0, "stopped", 1)
    assert said == [good, good, bad, bad, good]
    stopped = [record for record in whole if record.status == "stopped"]
    for record in stopped:
        assert record.reason == "stopped early by successive halving"
        # It trained not a step more than what it was judged by, and left no model.
        assert (record.epochs, len(record.history), record.checkpoint) == (1, 1, None)
        assert record.history[0]["val_loss"] > 2 * max(r.history[0]["val_loss"] for r in whole if r not in stopped)
    table = pq.read_table(tmp_path / "whole/study.parquet")
    assert table["status"].to_pylist() == [record.status for record in whole]
    assert load_config(TrainConfig, str(tmp_path / "whole/best.json")).optim.lr == 1e-3

    asked = study(phantom_run, tmp_path / "parts", **options)
    with pytest.raises(PneumoError, match="trials are left"):
        run_study(replace(asked, time_budget=8.0))
    parts = run_study(asked)
    again = pq.read_table(tmp_path / "parts/study.parquet")
    same = [name for name in table.column_names if "seconds" not in name and name != "checkpoint"]
    assert again.select(same).equals(table.select(same))
    assert [record.metrics for record in parts] == [record.metrics for record in whole]


@pytest.mark.faults
def test_trials_of_two_workers_equal_their_training(ray_cluster, phantom_run, tmp_path):
    """Nested runs of Ray Train beside the process of the trial, within the 2 CPUs that there are."""
    from pneumo_ray.train.launch import fit

    space = tmp_path / "space.json"
    rates = [1e-3, 1.0]  # seed 1 draws the first, then the second
    space.write_text(json.dumps({"space": {"optim.lr": rates, "optim.weight_decay": [1e-4]}, "trials": 2}))
    options = {"study": None, "space": str(space), "arms": (), "seeds": None, "epochs": 4, "seed": 1}
    options |= {"scaling": ScalingConfig(num_workers=2, threads_per_worker=1)}
    good, bad = run_study(study(phantom_run, tmp_path / "out", **options))
    assert [record.settings["optim.lr"] for record in (good, bad)] == rates
    assert (good.status, good.epochs) == ("finished", 4)
    assert bad.status == "stopped"
    assert 1 <= bad.epochs < 4
    assert bad.checkpoint is None
    settings = load_config(TrainConfig, str(tmp_path / "out/trials/000/train.json"))
    assert settings.scaling.num_workers == 2
    alone = fit(replace(settings, out=str(tmp_path / "alone")))
    assert [epoch["val_loss"] for epoch in good.history] == pytest.approx(
        [epoch.val_loss for epoch in alone.history], rel=1e-4
    )
