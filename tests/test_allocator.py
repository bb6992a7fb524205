"""Which processes of a job preload jemalloc: those that compute on a CPU, and none where it is off or absent."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pneumo_ray import allocator
from pneumo_ray.allocator import OPTIONS, find_jemalloc, preloaded
from pneumo_ray.model import ModelConfig
from pneumo_ray.score.config import ExplainConfig, RobustnessConfig, ScoringScale
from pneumo_ray.train.config import DataConfig, ScalingConfig, TrainConfig
from pneumo_ray.tune.config import StudyConfig

pytestmark = pytest.mark.skipif(find_jemalloc() is None, reason="neither Ray's wheel nor the system has jemalloc here")


def has_jemalloc(pid: int) -> bool:
    return "jemalloc" in Path(f"/proc/{pid}/maps").read_text()


@contextmanager
def watched(kinds: tuple[str, ...]) -> Iterator[dict[str, bool]]:
    """Within the block, note whether jemalloc is mapped into Ray's processes of these kinds that this process has."""
    found: dict[str, bool] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                    for kind in kinds:
                        if title.startswith("ray::") and kind in title:
                            found[kind] = has_jemalloc(process.pid)
                except (psutil.Error, OSError):
                    continue  # it has just ended

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


CHOICES = ["jemalloc", pytest.param("system", marks=pytest.mark.faults)]


def training(run: Path, out: Path) -> TrainConfig:
    network = ModelConfig(arch="resnet18", weights="none")
    return TrainConfig(
        str(run / "manifest.parquet"), str(out), model=network, data=DataConfig(image_size=32), batch_size=16, epochs=1
    )


@pytest.mark.parametrize("chosen", CHOICES)
def test_the_training_worker_preloads_it_unless_off(chosen, ray_cluster, phantom_run, tmp_path):
    from pneumo_ray.train.launch import fit

    config = replace(training(phantom_run, tmp_path), scaling=ScalingConfig(allocator=chosen))
    with watched(("RayTrainWorker", "SplitCoordinator")) as found:
        fit(config)
    assert found == {"RayTrainWorker": chosen == "jemalloc", "SplitCoordinator": False}


@pytest.mark.parametrize("chosen", CHOICES)
def test_a_trial_preloads_it_unless_off(chosen, ray_cluster, phantom_run, tmp_path):
    from pneumo_ray.tune.job import run_study

    base = training(phantom_run, tmp_path)
    config = StudyConfig(
        base.manifest,
        base.out,
        model=base.model,
        data=base.data,
        batch_size=16,
        epochs=1,
        study="balance",
        arms=("none",),
        seeds=1,
        scaling=ScalingConfig(allocator=chosen),
    )
    with watched(("TrialRunner",)) as found:
        run_study(config)
    assert found == {"TrialRunner": chosen == "jemalloc"}


@pytest.mark.parametrize("chosen", CHOICES)
def test_scoring_actors_preload_it_unless_off(chosen, ray_cluster, phantom_run, model, tmp_path):
    from pneumo_ray.score.job import explain_archive
    from pneumo_ray.score.robustness import measure_robustness

    manifest, scale = str(phantom_run / "manifest.parquet"), ScoringScale(allocator=chosen)
    with watched(("_ExplainActor", "_ConditionActor")) as found:
        explain_archive(ExplainConfig(str(model), out=str(tmp_path / "scores"), manifest=manifest, scale=scale))
        measure_robustness(RobustnessConfig(str(model), manifest=manifest, out=str(tmp_path / "robust"), scale=scale))
    assert found == dict.fromkeys(("_ExplainActor", "_ConditionActor"), chosen == "jemalloc")


def test_a_gpu_run_preloads_nothing(ray_cluster):
    from pneumo_ray.ray_cluster import compute_environment, on_each_node

    assert on_each_node(find_jemalloc) == [find_jemalloc()]
    assert compute_environment("jemalloc", use_gpu=True) == {}
    assert compute_environment("jemalloc", use_gpu=False)["MALLOC_CONF"] == OPTIONS


def test_nothing_is_preloaded_where_there_is_none(monkeypatch, tmp_path):
    class NoLibrary:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(allocator, "find_spec", lambda name: NoLibrary)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert find_jemalloc() is None
    assert preloaded([None, None]) == {}


@pytest.mark.parametrize("name", ["with space", "with:colon", "with$HOME"])
def test_a_path_that_cannot_be_preloaded_is_not(name, monkeypatch, tmp_path):
    class Spaced:
        submodule_search_locations = (str(tmp_path / name),)

    (tmp_path / name / "core").mkdir(parents=True)
    (tmp_path / name / "core" / "libjemalloc.so").touch()
    monkeypatch.setattr(allocator, "find_spec", lambda name: Spaced)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert find_jemalloc() is None


def test_a_machine_loads_the_library_that_it_has():
    """Nodes of a cluster may keep it in different places; the loader passes over those that are not there."""
    environment = preloaded(["/nowhere/libjemalloc.so", find_jemalloc(), None])
    environment = {name: value.replace("${LD_PRELOAD}", "") for name, value in environment.items()}  # as Ray does
    look = "import sys; sys.exit('jemalloc' not in open('/proc/self/maps').read())"
    assert subprocess.run([sys.executable, "-c", look], env=os.environ | environment).returncode == 0


FAULTS = """
import resource, sys
from pneumo_ray.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()


def fill():
    blocks = [bytearray(b"x") * (4 << 20) for _ in range(8)]  # 8,192 pages of 4 kB
    del blocks


fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept():
    """Without it each of five rounds faults its 32 MB in again."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MALLOC_CONF")}
    freed, kept = (
        int(
            subprocess.run([sys.executable, "-c", FAULTS, how], env=environment, capture_output=True, check=True).stdout
        )
        for how in ("freed", "kept")
    )
    if freed < 1000:
        pytest.skip("this C library, or a kernel with huge pages, keeps it anyway")
    assert kept < freed / 20


FRAGMENTED = """
import numpy as np

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

large = [np.ones(4 << 20, np.uint8) for _ in range(80)]
del large
before = resident()
small = [np.ones(256 << 10, np.uint8) for _ in range(1000)]
print(resident() - before)
"""
"""320 MB are freed as neighbours; then 250 MB in pieces a thousand times smaller are asked for. Prints the MB that it grows by."""


def test_small_blocks_fit_where_large_ones_were():
    environment = preloaded([find_jemalloc()])
    environment["LD_PRELOAD"] = environment["LD_PRELOAD"].removeprefix("${LD_PRELOAD}:")  # Ray would expand it
    words = [sys.executable, "-c", FRAGMENTED]
    done = subprocess.run(words, env=os.environ | environment, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 50


RETURNED = """
import sys
import psutil, torch
from pneumo_ray.allocator import return_freed_memory

blocks = [torch.ones(1 << 20) for _ in range(64)]  # 256 MB, page by page
del blocks
before = psutil.Process().memory_info().rss
return_freed_memory()
print(before - psutil.Process().memory_info().rss)
"""


def test_freed_memory_is_returned():
    """With the options of a trial's process jemalloc has kept it all."""
    environment = preloaded([find_jemalloc()]) | {"LD_PRELOAD": str(find_jemalloc())}
    done = subprocess.run(
        [sys.executable, "-c", RETURNED], env=os.environ | environment, capture_output=True, check=True
    )
    assert int(done.stdout) > 200 << 20
