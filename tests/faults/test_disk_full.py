"""A disk that fills up while a job writes: a file system of its own in memory, which has room again later."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]


class Disk:
    """A mounted file system whose size can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, size: str, *options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(self.folder)]
        subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    (tmp_path / "disk").mkdir()
    made = Disk(tmp_path / "disk")
    try:
        made.mount("1m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system needs root")
    yield made
    subprocess.run(["umount", "--lazy", str(made.folder)], check=True)


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ)
    )


def is_refused(result: subprocess.CompletedProcess) -> None:
    """Hold a job to one sentence about the disk, and exit code 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "No space left" in errors[0]
    assert "Traceback" not in result.stderr


def no_half_files(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_scoring_continues_after_a_full_disk(disk, phantom_archive, model, tmp_path):
    def explain(out: Path) -> subprocess.CompletedProcess:
        words = ["--archive", str(phantom_archive), "--model", str(model), "--out", str(out), "--amp", "off"]
        return run("jobs/explain.py", *words)

    disk.mount("80k", "remount")
    is_refused(explain(disk.folder))
    no_half_files(disk.folder)
    done = {path: path.stat().st_mtime_ns for path in disk.folder.glob("part-*.parquet")}
    assert all(pq.read_table(path).num_rows for path in done), "what is there is whole"
    disk.mount("10m", "remount")
    again = explain(disk.folder)
    assert "wrote 80 rows" in again.stdout, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    ids = [name for path in disk.folder.glob("part-*.parquet") for name in pq.read_table(path)["image_id"].to_pylist()]
    assert len(set(ids)) == len(ids) == 80


def test_prepare_continues_after_a_full_disk(disk, phantom_archive):
    words = ["jobs/prepare.py", "--archive", str(phantom_archive), "--out", str(disk.folder), "--cache"]
    is_refused(run(*words))
    no_half_files(disk.folder)
    assert not (disk.folder / "manifest.parquet").exists()
    disk.mount("100m", "remount")
    again = run(*words)
    assert "wrote 80 rows" in again.stdout, again.stderr


def test_training_continues_after_a_full_disk_bitwise(disk, phantom_run, tmp_path):
    import torch

    from pneumo_ray.train.state import load_state

    def train(out: Path) -> subprocess.CompletedProcess:
        words = ["--manifest", str(phantom_run / "manifest.parquet"), "--out", str(out), "--epochs", "3"]
        words += ["--model.arch", "resnet18", "--model.weights", "none", "--data.image-size", "32"]
        return run("jobs/train.py", *words, "--batch-size", "16", "--recipe", "paper")

    disk.mount("200m", "remount")  # the state of an epoch is 134 MB, and the one before stays until it is written
    is_refused(train(disk.folder))
    no_half_files(disk.folder)
    assert load_state(str(disk.folder)).epoch == 1
    disk.mount("1g", "remount")
    again = train(disk.folder)
    assert again.returncode == 0, again.stderr
    assert "continuing after epoch 1" in again.stdout
    assert train(tmp_path / "whole").returncode == 0
    expected = load_state(str(tmp_path / "whole")).model
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_state(str(disk.folder)).model.items())
