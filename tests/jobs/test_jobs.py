"""The commands as a user runs them: exit codes, sentences, and `ray job submit` against a real head node."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pneumo_ray.config import load_config
from pneumo_ray.train.config import TrainConfig

ROOT = Path(__file__).parents[2]


def run(*words: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, **kwargs)


def says(result: subprocess.CompletedProcess, *parts: str) -> None:
    """Hold a user's mistake to one sentence, exit code 2 and no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for part in parts:
        assert part in errors[0]


def test_prepare_refuses_missing_and_empty_archives(tmp_path):
    says(run("jobs/prepare.py", "--archive", str(tmp_path / "none"), "--out", str(tmp_path / "out")), "does not exist")
    (tmp_path / "empty").mkdir()
    says(run("jobs/prepare.py", "--archive", str(tmp_path / "empty"), "--out", str(tmp_path / "out")), "has no images")
    assert not (tmp_path / "out").exists()


def test_an_unknown_protocol_ends_with_code_2(tmp_path):
    result = run("jobs/prepare.py", "--archive", str(tmp_path), "--out", str(tmp_path / "out"), "--protocol", "random")
    assert result.returncode == 2
    assert "protocol" in result.stdout + result.stderr


@pytest.mark.faults
def test_an_out_that_cannot_be_written_is_named(phantom_archive, tmp_path):
    (tmp_path / "file").write_text("in the way")
    says(
        run("jobs/prepare.py", "--archive", str(phantom_archive), "--out", str(tmp_path / "file")), "cannot be written"
    )


@pytest.mark.faults
def test_train_names_a_missing_manifest(tmp_path):
    says(
        run("jobs/train.py", "--manifest", str(tmp_path / "m.parquet"), "--out", str(tmp_path / "out")),
        "jobs/prepare.py",
    )


def test_training_without_a_network_says_what_to_do(phantom_run, tmp_path):
    environment = os.environ | {
        "TORCH_HOME": str(tmp_path),
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    words = ["jobs/train.py", "--manifest", str(phantom_run / "manifest.parquet"), "--out", str(tmp_path / "out")]
    says(run(*words, env=environment), "--model.weights")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def head():
    """A head node as `ray start` makes it; yields the address for jobs, and ends only what it started."""
    port, dashboard = free_port(), free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pr-", ignore_cleanup_errors=True) as temporary:
        options = [
            "--head",
            "--block",
            "--num-cpus=2",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        # Jobs run `python` as the head finds it, as after `source .venv/bin/activate`.
        path = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        node = subprocess.Popen(
            env=path,
            args=[*ray, "start", *options, f"--temp-dir={temporary}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        address = f"http://127.0.0.1:{dashboard}"
        # The dashboard answers before the node's agent takes jobs, so the sign of readiness is a job that ran.
        deadline = time.monotonic() + 120
        trial = [*ray, "job", "submit", "--address", address, "--", "true"]
        while subprocess.run(trial, capture_output=True, check=False).returncode:
            assert node.poll() is None, "ray start ended"
            assert time.monotonic() < deadline, "no job could be submitted for two minutes"
            time.sleep(1)
        yield address
        # Its processes would take half a minute to end by themselves.
        for process in [*psutil.Process(node.pid).children(recursive=True), node]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(timeout=60)


def submit(address: str, *words: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        ".",
        "--",
        "python",
        *words,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run_submitted(address: str, *words: str) -> str:
    """Submit a job that must end well; return what it said."""
    done = submit(address, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_job_runs_submitted(head, phantom_archive, tmp_path):
    run, scores, report = (str(tmp_path / name) for name in ("run", "scores", "report"))
    manifest, model = f"{run}/manifest.parquet", f"{run}/model"
    small = [
        "--model.arch",
        "resnet18",
        "--model.weights",
        "none",
        "--data.image-size",
        "32",
        "--batch-size",
        "16",
        "--epochs",
        "1",
    ]
    said = run_submitted(
        head, "jobs/prepare.py", "--archive", str(phantom_archive), "--out", run, "--protocol", "official", "--cache"
    )
    assert "wrote 80 rows" in said
    said = run_submitted(head, "jobs/train.py", "--manifest", manifest, "--out", run, *small)
    assert "epoch   1/1" in said
    assert json.loads(Path(model, "model.json").read_text())["operating_point"]["rule"] == "youden"
    study = ["--study", "balance", "--arms", "none", "--seeds", "1"]
    said = run_submitted(head, "jobs/tune.py", "--manifest", manifest, "--out", str(tmp_path / "study"), *study, *small)
    assert "trial none-seed0 done" in said
    assert load_config(TrainConfig, str(tmp_path / "study/best.json")).balance == "none"
    said = run_submitted(head, "jobs/explain.py", "--manifest", manifest, "--model", model, "--out", scores)
    assert "wrote 80 rows" in said
    said = run_submitted(head, "jobs/evaluate.py", "--manifest", manifest, "--scores", scores, "--out", report)
    assert "17 labelled of 17 images, split test" in said
    assert Path(report, "report.html").exists()


def test_a_submitted_mistake_fails_with_its_sentence(head, tmp_path):
    failed = submit(head, "jobs/train.py", "--manifest", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "run"))
    assert failed.returncode != 0
    assert "error: manifest" in failed.stdout + failed.stderr
