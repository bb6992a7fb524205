"""SIGTERM (a preemption, `ray job stop`) and Ctrl-C: what is finished stays, a sentence says so, the same command continues."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SIGNALS = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


def ended(
    words: list[str], when: Callable[[], bool], end: Callable[[subprocess.Popen, list[psutil.Process]], None]
) -> tuple[int, str]:
    """End a job once something is so; return its code and its sentence, and hold it to leaving nothing behind.

    Args:
        words: of the job.
        when: what is waited for.
        end: takes the job and all its processes.
    """
    job = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not when():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, "the job did not come so far"
        time.sleep(0.02)
    family = psutil.Process(job.pid).children(recursive=True)
    end(job, family)
    said, errors = job.communicate(timeout=120)
    sentences = [line for line in errors.splitlines() if "the same command continues" in line]
    assert len(sentences) == 1, said + errors
    assert "Traceback" not in errors, errors
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, alive
    return job.returncode, sentences[0]


def interrupted(words: list[str], sign: signal.Signals, when: Callable[[], bool]) -> None:
    """Send a signal to a job once something is so, and hold it to its code and its sentence."""
    code, sentence = ended(words, when, lambda job, family: job.send_signal(sign))
    assert code == SIGNALS[sign][0], sentence
    assert sentence.startswith(SIGNALS[sign][1])


def training(manifest: Path, out: Path) -> list[str]:
    words = [
        "jobs/train.py",
        "--manifest",
        str(manifest),
        "--out",
        str(out),
        "--model.arch",
        "resnet18",
        "--epochs",
        "4",
    ]
    return [*words, "--model.weights", "none", "--data.image-size", "32", "--batch-size", "16"]


@pytest.mark.parametrize("title", ["ray::TrainController", "ray::Monitor"])
def test_training_without_its_leader_ends_and_continues(title, phantom_run, tmp_path):
    """Workers are restarted by Ray Train; nobody restarts those that lead them."""
    words = training(phantom_run / "manifest.parquet", tmp_path)
    history = tmp_path / "history.jsonl"

    def kill(job: subprocess.Popen, family: list[psutil.Process]) -> None:
        leaders = [process for process in family if " ".join(process.cmdline()).startswith(title)]
        assert len(leaders) == 1
        leaders[0].kill()

    code, sentence = ended(words, lambda: history.exists() and bool(history.read_text()), kill)
    assert code == 2
    assert sentence.startswith("error: a process that leads this job has died; finished work is kept")
    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert [json.loads(line)["epoch"] for line in history.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("sign", SIGNALS, ids=lambda sign: sign.name)
def test_training_ends_in_order_and_continues(sign, phantom_run, tmp_path):
    words = training(phantom_run / "manifest.parquet", tmp_path)
    history = tmp_path / "history.jsonl"

    def epochs() -> list[int]:
        return [json.loads(line)["epoch"] for line in history.read_text().splitlines()] if history.exists() else []

    interrupted(words, sign, lambda: len(epochs()) >= 1)
    done = len(epochs())
    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert done == 4 or f"continuing after epoch {done}" in again.stdout
    assert epochs() == [1, 2, 3, 4]


@pytest.mark.parametrize("sign", SIGNALS, ids=lambda sign: sign.name)
def test_scoring_ends_in_order_and_continues(sign, under_many_names, model, tmp_path):
    archive = under_many_names(tmp_path / "archive", 8)
    out = tmp_path / "out"
    words = ["jobs/explain.py", "--archive", str(archive), "--model", str(model), "--out", str(out), "--amp", "off"]
    interrupted(words, sign, lambda: len(list(out.glob("part-*.parquet"))) >= 2)
    assert not list(out.glob("*.tmp"))
    assert not (out / "_job" / "lock.json").exists(), "the next job would wait for this one"
    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "wrote 640 rows" in again.stdout, again.stderr


@pytest.mark.parametrize("sign", SIGNALS, ids=lambda sign: sign.name)
def test_preparing_ends_in_order_and_continues(sign, under_many_names, tmp_path):
    archive = under_many_names(tmp_path / "archive", 40)
    out = tmp_path / "out"
    words = ["jobs/prepare.py", "--archive", str(archive), "--out", str(out), "--cache"]
    interrupted(words, sign, lambda: len(list((out / "cache-256").glob("*.arrow"))) >= 1)
    assert not (out / "manifest.parquet").exists()
    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "wrote 3,200 rows" in again.stdout, again.stderr
