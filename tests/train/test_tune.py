"""Studies on a real Ray: what they leave, that nothing is run twice, and what becomes of trials that go wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest

from pneumo_ray.cli import load_config
from pneumo_ray.errors import ConfigError, PneumoError
from pneumo_ray.model import ModelConfig, load_bundle
from pneumo_ray.train.config import ImageConfig, OptimConfig, ScalingConfig, TrainConfig
from pneumo_ray.train.study_config import StudyConfig
from pneumo_ray.train.tune import Halving, run_study

ROOT = Path(__file__).parents[2]


def study(phantom_run: Path, out: Path, **changes) -> StudyConfig:
    base = StudyConfig(
        manifest=str(phantom_run / "manifest.parquet"),
        out=str(out),
        model=ModelConfig(arch="resnet18", weights="none"),
        data=ImageConfig(image_size=32),
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


def test_a_study_leaves_a_row_a_trial_the_tables_and_the_best_config(whole):
    rows = pq.read_table(whole / "study.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["none-seed0", "paper-seed0", "none-seed1", "paper-seed1"]
    for row in rows:
        assert (row["status"], row["epochs"]) == ("finished", 2)
        assert row["overhead_seconds"] > 0
        history = [
            json.loads(line) for line in (whole / "trials" / row["name"] / "history.jsonl").read_text().splitlines()
        ]
        assert row["val_loss"] == pytest.approx(min(epoch["val_loss"] for epoch in history), rel=1e-6)
        assert load_bundle(row["checkpoint"]).provenance["config"]["balance"] == row["balance"]
        assert not list((whole / "trials" / row["name"] / "state").glob("*")), "a finished trial keeps its state"
    assert (whole / "study.csv").read_text().count("\n") == 5
    assert "| paper | 2 |" in (whole / "ablation.md").read_text()
    means = {arm: sum(row["val_loss"] for row in rows if row["arm"] == arm) for arm in ("none", "paper")}
    assert load_config(TrainConfig, str(whole / "best.json")).balance == min(means, key=means.get)


def test_a_trial_is_the_run_of_train_with_the_same_options(whole, phantom_run, tmp_path):
    """Bitwise the same weights, though one was a nested group of processes and the other shared one with other trials."""
    from pneumo_ray.train.launch import fit

    options = load_config(TrainConfig, str(whole / "trials/paper-seed1/train.json"))
    fit(replace(options, out=str(tmp_path)))
    described = [json.loads((run / "model/model.json").read_text()) for run in (tmp_path, whole / "trials/paper-seed1")]
    assert described[0]["weights_sha256"] == described[1]["weights_sha256"]


def test_the_same_command_runs_only_what_has_no_record(whole, phantom_run, capsys):
    def stamps() -> dict[str, int]:
        return {path.parts[-2]: path.stat().st_mtime_ns for path in whole.glob("trials/*/history.jsonl")}

    before, lost = stamps(), trial_json(whole, "none-seed1")
    run_study(study(phantom_run, whole))
    assert "4 of them done before" in capsys.readouterr().out
    assert stamps() == before
    (whole / "trials/none-seed1/trial.json").unlink()
    run_study(study(phantom_run, whole))
    assert [name for name, stamp in stamps().items() if stamp != before[name]] == ["none-seed1"]
    assert trial_json(whole, "none-seed1")["metrics"] == lost["metrics"]


def test_a_folder_that_belongs_to_another_study_is_refused(whole, phantom_run):
    for changes, message in (
        ({"study": "finetune", "arms": ()}, r"another study \(balance\)"),
        ({"optim": OptimConfig(lr=1e-2)}, r"begun with optim\.lr 0\.001 and not 0\.01"),
        ({"epochs": 3}, "begun with epochs 2 and not 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_study(study(phantom_run, whole, **changes))


def test_a_trial_that_diverges_is_recorded_and_the_others_go_on(ray_cluster, phantom_run, tmp_path):
    arms = file_study(tmp_path, {"wild": {"optim.lr": 1e30}, "calm": {}})
    run_study(study(phantom_run, tmp_path / "out", epochs=1, **arms))
    wild = trial_json(tmp_path / "out", "wild-seed0")
    assert wild["status"] == "diverged"
    assert "not finite" in wild["reason"] or "training loss is" in wild["reason"]
    assert trial_json(tmp_path / "out", "calm-seed0")["status"] == "finished"
    assert "1 diverged" in (tmp_path / "out/ablation.md").read_text()
    assert load_config(TrainConfig, str(tmp_path / "out/best.json")).optim.lr == 1e-3


def kill_when(condition, kills: int) -> threading.Thread:
    """Start a thread that kills the process of the trial that runs in this test's cluster, each time it has begun."""

    def wait_and_kill() -> None:
        for number in range(kills):
            while not condition(number):
                time.sleep(0.02)
            for process in psutil.Process().children(recursive=True):
                if "ResourceTrainable" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)

    killed: list[int] = []
    thread = threading.Thread(target=wait_and_kill)
    thread.killed = killed
    thread.start()
    return thread


@pytest.mark.parametrize("retries", [0, 1])
def test_a_trial_whose_process_dies_is_tried_again_and_then_recorded(ray_cluster, phantom_run, tmp_path, retries):
    history = tmp_path / "out/trials/first-seed0/history.jsonl"
    killer = kill_when(lambda _: history.exists() and history.read_text().count("\n") >= 1, 1)
    options = file_study(tmp_path, {"first": {}, "second": {"balance": "none"}})
    scaling = ScalingConfig(max_failures=retries)
    run_study(study(phantom_run, tmp_path / "out", scaling=scaling, max_concurrent=1, **options))
    killer.join()
    assert killer.killed
    first = trial_json(tmp_path / "out", "first-seed0")
    assert first["status"] == ("finished" if retries else "failed")
    assert retries or first["reason"]
    assert trial_json(tmp_path / "out", "second-seed0")["status"] == "finished"


def test_halving_stops_a_bad_trial_and_knows_the_trials_of_an_earlier_command():
    def trial(name: str) -> SimpleNamespace:
        return SimpleNamespace(trial_id=name, config={"name": name})

    def record(name: str, loss: float) -> dict:
        return {"name": name, "history": [{"epoch": epoch, "val_loss": loss} for epoch in (1, 2, 3)]}

    scheduler = Halving(epochs=9)
    for number in range(6):
        scheduler.recall(record(f"past{number}", 0.1 + 0.01 * number))
    bad, good = trial("bad"), trial("good")
    for one in (bad, good):
        scheduler.on_trial_add(None, one)
    assert scheduler.on_trial_result(None, good, {"epoch": 3, "val_loss": 0.05}) == "CONTINUE"
    assert scheduler.on_trial_result(None, bad, {"epoch": 3, "val_loss": 0.9}) == "STOP"
    assert scheduler.stopped == {"bad"}
    # A trial is never ended at its last report: it has its model to write.
    assert scheduler.on_trial_result(None, good, {"epoch": 9, "val_loss": 0.05}) == "CONTINUE"


def test_a_search_draws_and_runs_its_trials(ray_cluster, phantom_run, tmp_path):
    found = run_study(study(phantom_run, tmp_path, study="lr-wd", arms=(), seeds=None, trials=2, epochs=1))
    assert [record["status"] for record in found] == ["finished", "finished"]
    best = min(found, key=lambda record: record["metrics"]["val_loss"])
    assert load_config(TrainConfig, str(tmp_path / "best.json")).optim.lr == best["settings"]["optim.lr"]


def test_a_killed_driver_continues_with_the_same_command(whole, phantom_run, tmp_path):
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
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    for process in alive:  # a driver killed outright can leave its own Ray behind
        process.kill()
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


def test_a_time_budget_ends_the_study_and_leaves_the_rest_for_later(ray_cluster, phantom_run, tmp_path):
    with pytest.raises(PneumoError, match="the same command continues"):
        run_study(study(phantom_run, tmp_path, time_budget=0.5))
    assert not list(tmp_path.glob("trials/*/trial.json"))
