"""Studies whose trials need more memory than the node has: Ray ends processes, and the study goes on with fewer at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pneumo_ray.model.trunks import TRUNKS_VARIABLE

ROOT = Path(__file__).parents[2]
HUNGRY = """
import numpy as np
import torch
from torch import nn

from pneumo_ray.model import Trunk, register_trunk

held = []


class Hungry(nn.Conv2d):
    def forward(self, x):
        if self.training and not held and x.device.type != "meta":
            held.append(np.ones(GIGABYTES << 27))
        return super().forward(x)


def small_net():
    net = nn.Sequential()
    net.add_module("first", Hungry(3, 8, 3, stride=4, padding=1))
    net.add_module("last", nn.Conv2d(8, 8, 3, stride=2, padding=1))
    return net


register_trunk("hungry", Trunk(8, (("last", 8),), "last", build=small_net, stride=8))
"""
OTHERS = 3.0
"""Gigabytes of all other processes of a study, at most."""


def run(folder: Path, manifest: Path, gigabytes: int, room: float, arms: dict[str, dict[str, str]]) -> str:
    """Run a study in which a trial of `hungry` holds memory from its first step on; return what it says."""
    memory = psutil.virtual_memory()
    if memory.available < (gigabytes * 2 + OTHERS + 1) * 1e9:
        pytest.skip("two hungry trials need more memory than is free here")
    (folder / "hungry_trunk.py").write_text(HUNGRY.replace("GIGABYTES", str(gigabytes)))
    (folder / "arms.json").write_text(json.dumps({"arms": arms}))
    threshold = (memory.total - memory.available + room * 1e9) / memory.total
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        TRUNKS_VARIABLE: "hungry_trunk",
        "RAY_memory_usage_threshold": f"{threshold:.4f}",
    }
    command = [sys.executable, "jobs/tune.py", "--manifest", str(manifest), "--out", str(folder / "out")]
    command += ["--space", str(folder / "arms.json"), "--seeds", "1", "--epochs", "1", "--model.weights", "none"]
    command += ["--data.image-size", "32", "--scaling.threads-per-worker", "1", "--scaling.max-failures", "0"]
    command += ["--recipe", "paper"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def statuses(folder: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["status"] for path in folder.glob("out/trials/*/trial.json")}


def test_trials_that_do_not_fit_together_run_alone(phantom_run, tmp_path):
    """Two trials of 4 GB in a node that has room for one of them; no attempt is counted as failed."""
    arms = {"first": {"model.arch": "hungry"}, "second": {"model.arch": "hungry"}}
    said = run(tmp_path, phantom_run / "manifest.parquet", 4, OTHERS + 5.5, arms)
    assert "1 trial(s) at once from here on" in said
    assert statuses(tmp_path) == {"first-seed0": "finished", "second-seed0": "finished"}


def test_a_trial_that_fits_no_node_is_recorded(phantom_run, tmp_path):
    """The other one finishes."""
    arms = {"hungry": {"model.arch": "hungry"}, "small": {"model.arch": "resnet18"}}
    said = run(tmp_path, phantom_run / "manifest.parquet", 6, OTHERS + 2, arms)
    assert "1 trial(s) at once from here on" in said
    assert statuses(tmp_path) == {"hungry-seed0": "failed", "small-seed0": "finished"}
    record = json.loads((tmp_path / "out/trials/hungry-seed0/trial.json").read_text())
    assert "memory of a node was full" in record["reason"]
