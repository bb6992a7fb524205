"""The self-test of GPUs, each measurement on a CPU with a small network: that it measures, not what."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import Workload, agreement, bench_gpu, copies, ddp, scoring, training
from pneumo_ray.errors import ClusterError

ROOT = Path(__file__).parents[2]
SMALL = Workload(torch.device("cpu"), "resnet18", 32, train_batch=4, score_batch=4, steps=1, warm_up=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_cuda_one_sentence_says_so():
    with pytest.raises(ClusterError, match="torch finds no CUDA device"):
        next(bench_gpu(Path()))
    done = subprocess.run([sys.executable, "jobs/bench.py", "gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch finds no CUDA device")
    assert "Traceback" not in done.stderr


def test_it_needs_no_ray():
    code = "import benchmarks.gpu, sys; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_devices_are_compared_within_tolerance():
    """Here both are the CPU: in float32 nothing differs."""
    exact, half = agreement(SMALL)
    assert exact.ratio == 0
    assert half.ratio <= 1


def test_training_scoring_and_copies_have_rates():
    rows = [*training(SMALL, kinds=("eager",)), *copies(SMALL)]
    assert [row.ratio > 0 for row in rows] == [True] * 3


@pytest.mark.slow
def test_scoring_is_measured_eager_and_compiled():
    assert [row.ratio > 0 for row in scoring(SMALL)] == [True, True]


@pytest.mark.slow
def test_two_processes_train_one_network():
    assert ddp(SMALL, 2).ratio > 0
